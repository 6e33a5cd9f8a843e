"""Checkpoints as training loops write them: which part is taken, what is said about it, and ``FILE#KEY``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stn_infer.errors import AssumptionWarning, WeightsError
from stn_infer.sources.checkpoints import apply_weights, load_weights
from stn_infer.sources.parts import Choice
from stn_infer.sources.reference import Weights

State = dict[str, Tensor]


class Net(nn.Module):
    """A small network with BatchNorm's buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 3)


@pytest.fixture(scope="module")
def right() -> State:
    torch.manual_seed(3)
    return dict(Net().state_dict())


@pytest.fixture(scope="module")
def wrong(right: State) -> State:
    return {key: value + 1 for key, value in right.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def parameters(state: State) -> State:
    return {key: value for key, value in state.items() if "running" not in key and "tracked" not in key}


def averaged_model(right: State) -> State:
    net = Net()
    net.load_state_dict(right)
    model = AveragedModel(net, use_buffers=True)
    model.update_parameters(net)
    return model.state_dict()


def optimizer(right: State) -> object:
    net = Net()
    adam = torch.optim.Adam(net.parameters())
    net.head(torch.ones(1, 2)).sum().backward()
    adam.step()
    return adam.state_dict()


def with_counters(state: State) -> State:
    """As thop leaves them: two counters of float64 in every module."""
    modules = ("", "body.", "body.0.", "body.1.", "head.")
    counters = {
        f"{m}{name}": torch.zeros(1, dtype=torch.float64) for m in modules for name in ("total_ops", "total_params")
    }
    return {**state, **counters}


def lightning(state: object, **more: object) -> dict[str, object]:
    return {
        "epoch": 3,
        "global_step": 10,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.9), "dirpath": "x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1},
        **more,
    }


ONLY = ""
Style = tuple[Callable[[State, State], object], str]
#: What is saved, from the right and the wrong weights, and the part that is named.
STYLES: dict[str, Style] = {
    "lightning": (lambda r, w: lightning(under("model.", r)), ONLY),
    "lightning, compiled": (lambda r, w: lightning(under("net._orig_mod.", r)), ONLY),
    "lightning, with a loss": (
        lambda r, w: lightning(under("net.", r) | {"criterion.weight": torch.ones(3)}),
        "took weights from 'state_dict.net'; other tensors beside them were left out (1)",
    ),
    "lightning, with averages": (
        lambda r, w: lightning(under("model.", w) | under("model_ema.module.", r)),
        "took averaged weights (EMA) from 'state_dict.model_ema.module'; it also has 'state_dict.model'",
    ),
    "AveragedModel": (lambda r, w: averaged_model(r), ONLY),
    "AveragedModel beside the model": (
        lambda r, w: {"swa_model": averaged_model(r), "model": w},
        "took averaged weights (EMA) from 'swa_model.module'; it also has 'model'",
    ),
    "ema_pytorch": (
        lambda r, w: (
            under("online_model.", w)
            | under("ema_model.", r)
            | {"initted": torch.tensor(True), "step": torch.tensor(5)}
        ),
        "took averaged weights (EMA) from 'ema_model'; it also has 'online_model'",
    ),
    "BasicSR": (lambda r, w: {"params": w, "params_ema": r}, "from 'params_ema'; it also has 'params'"),
    "BasicSR, without averages": (lambda r, w: {"params": r}, ONLY),
    "timm": (
        lambda r, w: {"epoch": 1, "arch": "x", "state_dict": w, "state_dict_ema": r, "version": 2, "metric": 0.9},
        "from 'state_dict_ema'; it also has 'state_dict'",
    ),
    "YOLO": (
        lambda r, w: {"epoch": 1, "best_fitness": 0.1, "model": w, "ema": r, "updates": 9, "optimizer": optimizer(r)},
        "from 'ema'; it also has 'model'",
    ),
    "module_ema": (
        lambda r, w: under("module.", w) | under("module_ema.", r),
        "from 'module_ema'; it also has 'module'",
    ),
    "averages beside bare keys": (lambda r, w: w | under("ema.", r), "from 'ema'; it also has '.' (the top level)"),
    "best beside model": (lambda r, w: {"best": w, "model": r}, "took weights from 'model'; it also has 'best'"),
    "GAN": (lambda r, w: {"netG": r, "netD": {"w": torch.zeros(3)}, "optimG": {}}, ONLY),
    "thop": (lambda r, w: with_counters(r), ONLY),
    "thop, data parallel": (lambda r, w: under("module.", with_counters(r)), ONLY),
    "optimizer": (lambda r, w: {"model": r, "optimizer": optimizer(r), "epoch": 2}, ONLY),
    "nested": (lambda r, w: {"trainer": {"modules": {"stn": under("module._orig_mod.", r)}}}, ONLY),
    "in a tuple": (lambda r, w: (r, {"lr": 0.1}), ONLY),
    "beside numbers": (lambda r, w: {**r, "epoch": 3, "lr": 0.1}, ONLY),
    "twice the same": (lambda r, w: {"netA": r, "netB": dict(r)}, "took weights from 'netA'; it also has 'netB'"),
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
def test_the_right_part_is_taken_and_named(style: Style, right: State, wrong: State, tmp_path: Path) -> None:
    make, note = style
    torch.save(make(right, wrong), tmp_path / "net.pt")
    net = Net()
    choice = applied(net, tmp_path / "net.pt")
    assert note in choice.note and bool(note) == bool(choice.note)
    assert not choice.incomplete
    for name, value in parameters(dict(net.state_dict())).items():
        assert torch.equal(value, right[name]), name


def applied(net: nn.Module, weights: object) -> Choice:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return apply_weights(net, weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda r, w: {"model": r, "ema": parameters(w)}, r"in 'ema' lack 2 of the 9 tensors \(body.1"),
        (lambda r, w: {"model": r, "ema": {"shadow_params": list(w.values())}}, "in 'ema.shadow_params' have no names"),
        (lambda r, w: {"model": r, "ema": w | {"head.bias": torch.ones(7)}}, "in 'ema' have other shapes"),
    ],
)  # fmt: skip
def test_averages_that_are_not_complete_are_skipped_with_a_warning(
    make: Callable[[State, State], object], why: str, right: State, wrong: State, tmp_path: Path
) -> None:
    torch.save(make(right, wrong), tmp_path / "net.pt")
    net = Net()
    with pytest.warns(
        AssumptionWarning, match=rf"net\.pt: the averaged weights {why}.*; took the weights in 'model' instead"
    ):
        choice = apply_weights(net, tmp_path / "net.pt")
    assert not choice.averaged
    assert torch.equal(net.head.weight, right["head.weight"])


def test_a_block_called_ema_is_not_an_average(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ema = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            self.head = nn.Linear(2, 2)

    torch.save({"model": Attention().state_dict(), "epoch": 1}, tmp_path / "net.pt")
    assert applied(Attention(), tmp_path / "net.pt").note == ""


def test_a_key_takes_another_part(right: State, wrong: State, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"model": right, "ema": under("module.", wrong), "other": {"w": torch.ones(1)}}, path)
    net = Net()
    for key, expected in (("model", right), ("ema", wrong), ("ema.module", wrong)):
        choice = applied(net, f"{path}#{key}")
        assert choice.note == ""
        assert torch.equal(net.head.weight, expected["head.weight"])
        assert torch.equal(load_weights(f"{path}#{key}")["head.weight"], expected["head.weight"])
    with pytest.raises(WeightsError, match=r"no part 'emma'; the parts with tensors are 'model', 'ema', 'other'"):
        apply_weights(net, f"{path}#emma")
    with pytest.raises(WeightsError, match="no part 'emma'"):
        load_weights(f"{path}#emma")
    with pytest.raises(WeightsError, match=r"the keys of 'other' do not fit Net: 8 missing .*, 1 unexpected \(w\)"):
        apply_weights(net, f"{path}#other")


def test_a_key_takes_the_part_of_that_name_first(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    optimizer = {name: torch.zeros(1) for name in "xyz"}
    torch.save({"w": torch.zeros(2), "ema": {"w": torch.ones(2), "v": torch.ones(2), "optim": optimizer}}, path)
    assert load_weights(f"{path}#ema").keys() == {"w", "v"}
    assert load_weights(f"{path}#ema.optim").keys() == {"x", "y", "z"}
    assert torch.equal(load_weights(f"{path}#.")["w"], torch.zeros(2))
    with pytest.raises(WeightsError, match=r"no part 'x'; the parts with tensors are .*'\.' \(the top level\)"):
        load_weights(f"{path}#x")


def test_the_key_of_the_top_level(right: State, wrong: State, tmp_path: Path) -> None:
    torch.save(right | under("ema.", wrong), tmp_path / "net.pt")
    net = Net()
    assert applied(net, f"{tmp_path / 'net.pt'}#.").name == ""
    assert torch.equal(net.head.weight, right["head.weight"])
    with pytest.raises(WeightsError, match="the keys do not fit Linear: 2 missing"):
        apply_weights(nn.Linear(2, 3), f"{tmp_path / 'net.pt'}#.")


def test_the_part_that_is_named_is_the_one_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"state_dict": {"module.x": torch.zeros(2)}, "net": {"x": torch.ones(2)}}, path)
    with pytest.warns(AssumptionWarning, match="took weights from 'state_dict.module'; it also has 'net'"):
        assert torch.equal(load_weights(path)["x"], torch.zeros(2))


def test_too_many_complete_parts_are_an_error(tmp_path: Path) -> None:
    torch.save({f"{index}.weight": torch.full((1, 1), float(index)) for index in range(2000)}, tmp_path / "net.pt")
    net = nn.Linear(1, 1, bias=False)
    with pytest.raises(WeightsError, match=r"2,000 parts of it have all tensors of Linear: '0', .*; choose one with"):
        apply_weights(net, tmp_path / "net.pt")
    applied(net, f"{tmp_path / 'net.pt'}#1234")
    assert net.weight.item() == 1234


def test_parts_that_nothing_distinguishes_are_an_error(right: State, wrong: State, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"netG_A": right, "netG_B": wrong}, path)
    with pytest.raises(WeightsError, match=r"net\.pt: 2 parts of it are complete: 'netG_A', 'netG_B'; choose one with"):
        apply_weights(Net(), path)
    with pytest.raises(WeightsError, match=r"2 parts of it have 9 tensors each: 'netG_A', 'netG_B'; choose one with"):
        load_weights(path)
    net = Net()
    applied(net, f"{path}#netG_B")
    assert torch.equal(net.head.weight, wrong["head.weight"])


def test_without_a_network_averages_are_taken_with_a_warning(right: State, wrong: State, tmp_path: Path) -> None:
    torch.save({"model": wrong, "model_ema": averaged_model(right)}, tmp_path / "net.pt")
    with pytest.warns(AssumptionWarning, match=r"took averaged weights \(EMA\) from 'model_ema.module'"):
        loaded = load_weights(tmp_path / "net.pt")
    assert torch.equal(loaded["head.weight"], right["head.weight"])


def test_heads_for_training_are_left_out_on_request(right: State, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(right | {"aux.weight": torch.ones(2, 2)}, path)
    net = Net()
    with pytest.raises(WeightsError, match=r"1 unexpected \(aux.weight\); --ignore-extra leaves them out"):
        apply_weights(net, path)
    for weights in (Weights(path, ignore_extra=True), f"{path}?ignore-extra"):
        assert applied(net, weights).extra == ("aux.weight",)
    assert torch.equal(net.head.weight, right["head.weight"])


def test_a_prefix_on_some_of_the_keys(right: State, tmp_path: Path) -> None:
    torch.save({key.replace("body.", "net.body."): value for key, value in right.items()}, tmp_path / "net.pt")
    message = r"7 of the keys of Net begin with 'net\.' and 2 do not \(head\.weight, head\.bias\); rename them"
    with pytest.raises(WeightsError, match=message):
        apply_weights(Net(), tmp_path / "net.pt")


def test_sparse_tensors_are_named(right: State, tmp_path: Path) -> None:
    torch.save(right | {"head.weight": right["head.weight"].to_sparse()}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"head\.weight is a sparse tensor, expected a dense one"):
        apply_weights(Net(), tmp_path / "net.pt")


def test_a_pickled_model_beside_other_tensors(tmp_path: Path) -> None:
    torch.save({"ema": {"m": Net()}, "best_fitness": torch.ones(1), "epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"under 'ema\.m' is a whole pickled model .*\['ema'\]\['m'\]\.state_dict"):
        apply_weights(Net(), tmp_path / "net.pt")


def test_references(tmp_path: Path) -> None:
    for text in ("net.pt", "net.pt#ema.module", "net.pt#ema?ignore-extra", "net.pt?ignore-extra"):
        assert str(Weights.of(text)) == text
    assert Weights.of("a.pt#b#c") == Weights("a.pt", "b#c")
    odd = tmp_path / "run#3.pt"
    odd.touch()
    assert Weights.of(odd) == Weights(str(odd))
    assert Weights.of(f"{odd}#ema") == Weights(str(odd), "ema")
