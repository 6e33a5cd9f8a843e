"""Checkpoints: which load, and the one-line message for those that do not."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stn_infer.errors import WeightsError
from stn_infer.sources.checkpoints import apply_weights, check_finite, load_weights


class Net(nn.Module):
    """A small network with nesting, BatchNorm's counter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 3)
        self.register_buffer("mask", torch.zeros(2))


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return dict(Net().state_dict())


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {prefix + key: value for key, value in state.items()}


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": dict,
    "ordered": OrderedDict,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state},
    "nested": lambda state: {"model": {"state_dict": state}},
    "data parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled, then data parallel": prefixed("module._orig_mod."),
    "compiled body": lambda state: {key.replace("body.", "body._orig_mod."): value for key, value in state.items()},
    "lightning": lambda state: {"state_dict": prefixed("model.")(state)},
    "deep": prefixed("network.inner."),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_wrappers_are_removed(
    wrapper: Callable[[dict[str, Tensor]], object], zipped: bool, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "net.pt"
    torch.save(wrapper(state), path, _use_new_zipfile_serialization=zipped)
    net = Net()
    apply_weights(net, path)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(prefixed("module.")(state), path)
    loaded = load_weights(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_submodule_called_module_keeps_its_name(tmp_path: Path) -> None:
    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    saved, loaded = Wrapping(), Wrapping()
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    apply_weights(loaded, tmp_path / "net.pt")
    assert torch.equal(loaded.module.weight, saved.module.weight)


def test_half_weights_are_cast_and_a_batch_counter_is_optional(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(half, tmp_path / "net.pt")
    net = Net()
    apply_weights(net, tmp_path / "net.pt")
    assert net.head.weight.dtype == torch.float32
    assert torch.equal(net.head.weight, state["head.weight"].half().float())


def write_truncated(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_truncated_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-5])


def write_pickle(content: object) -> Callable[[Path, dict[str, Tensor]], None]:
    return lambda path, state: path.write_bytes(pickle.dumps(content)) and None


def write_torch(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path, dict[str, Tensor]], None]:
    return lambda path, state: torch.save(change(state), path)


def within_itself() -> dict[str, object]:
    content: dict[str, object] = {}
    content["state_dict"] = content
    return content


UNREADABLE: dict[str, tuple[str, Callable[[Path, dict[str, Tensor]], object], str]] = {
    "missing": ("net.pt", lambda path, state: None, "does not exist"),
    "folder": ("net.pt", lambda path, state: path.mkdir(), "is a folder"),
    "truncated": ("net.pt", write_truncated, "the end of torch.save's archive is missing"),
    "truncated safetensors": ("net.safetensors", write_truncated_safetensors, "not a complete safetensors file"),
    "empty": ("net.pt", lambda path, state: path.touch(), "is empty; the download"),
    "empty safetensors": ("net.safetensors", lambda path, state: path.touch(), "is empty; the download"),
    "text": (
        "net.pt",
        lambda path, state: path.write_text("hello world"),
        "not a checkpoint but text",
    ),
    "other pickle": ("net.pt", write_pickle(Fraction(1, 3)), r"found an object of fractions\.Fraction"),
    "plain list": ("net.pt", write_torch(lambda state: [1, 2]), "the checkpoint contains no tensors"),
    "whole module": (
        "net.pt",
        write_torch(lambda state: Net()),
        r"a whole pickled model \(\S*Net\), which only",
    ),
    "a module inside": (
        "net.pt",
        write_torch(lambda state: {"model": Net(), "ema": None, "epoch": 3}),
        r"under 'model' is a whole .*: torch\.save\(torch\.load\(FILE, weights_only=False\)\['model'\]\.state_dict\(\)",
    ),
    "numbers": ("net.pt", write_torch(lambda state: {"lr": 0.5}), "the checkpoint contains no tensors"),
    "itself": ("net.pt", write_torch(lambda state: within_itself()), "the checkpoint contains no tensors"),
    "a number": ("net.pt", write_torch(lambda state: 0.5), "expected a dictionary of tensors, found a float"),
    "unnamed": ("net.pt", write_torch(lambda state: list(state.values())), "its tensors have no names"),
    "no tensors": ("net.pt", write_torch(lambda state: {"state_dict": {}}), "the checkpoint contains no tensors"),
}


@pytest.mark.parametrize(("name", "write", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_file_is_one_line(
    name: str,
    write: Callable[[Path, dict[str, Tensor]], object],
    message: str,
    state: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    write(path, state)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    assert str(caught.value).startswith((f"{path}: ", f"{path} is "))
    assert "\n" not in str(caught.value)


def test_unpickling_never_runs_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "net.pt").write_bytes(pickle.dumps({"weight": Trap()}))
    with pytest.raises(WeightsError, match="the checkpoint contains no tensors"):
        load_weights(tmp_path / "net.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_numbers_and_arrays_of_numpy_beside_the_tensors(state: dict[str, Tensor], tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    best = {"best": np.float64(0.97), "epoch": np.int64(3), "rate": np.float32(1e-3), "done": np.bool_(True)}
    torch.save({"state_dict": state, **best}, path, _use_new_zipfile_serialization=zipped)
    assert load_weights(path).keys() == state.keys()
    torch.save({"state_dict": state, "log": np.array([print], dtype=object)}, path)
    assert load_weights(path).keys() == state.keys()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="TorchScript"):
        load_weights(tmp_path / "net.pt")


def test_keys_that_do_not_fit_are_listed(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(
        {"other." + key: value for key, value in list(state.items())[:4]} | {"odd": torch.ones(1)},
        p := tmp_path / "net.pt",
    )
    with pytest.raises(WeightsError) as caught:
        apply_weights(Net(), p)
    message = str(caught.value)
    assert "the keys of 'other' do not fit Net: 5 missing (body.1.bias, body.1.running_mean, " in message
    assert "1 unexpected (odd)" in message


def test_shapes_that_do_not_fit_are_listed(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state | {"head.weight": torch.ones(3, 5)}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"1 of 10 tensors .*head.weight is 3x5, expected 3x2"):
        apply_weights(Net(), tmp_path / "net.pt")


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_a_tensor_that_is_not_finite_is_named(
    value: float, what: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["head.bias"][1] = value
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=rf"head.bias contains {what} \(1 of 3 values\)"):
        apply_weights(Net(), tmp_path / "net.pt")


def test_complex_numbers_for_real_weights_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file({**state, "head.weight": state["head.weight"] + 1j}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"head\.weight contains complex numbers"):
        apply_weights(Net(), tmp_path / "net.safetensors")


def test_infinity_is_allowed_in_a_buffer_and_nan_is_not() -> None:
    net = Net()
    net.mask[0] = float("-inf")
    check_finite(net, "net")
    net.mask[1] = float("nan")
    with pytest.raises(WeightsError, match="mask contains NaN"):
        check_finite(net, "net")


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    """torch reads compressed archives, whatever they unpack to."""
    torch.save({"weight": torch.zeros(4_000_000)}, tmp_path / "plain.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    assert set(load_weights(tmp_path / "plain.pt")) == {"weight"}
    with pytest.raises(WeightsError, match=r"bomb\.pt: its [\d,]+ bytes unpack to 16,0[\d,]+; save it again"):
        load_weights(bomb)


def test_a_list_of_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a million names takes minutes; a file of 67 MB may have them."""
    names = {f"k{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(150_000)}
    header = json.dumps(names).encode()
    (tmp_path / "many.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with zipfile.ZipFile(tmp_path / "many.pt", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("many/data.pkl", b"\x80\x02(" + b"N" * 200_000 + b"t.")
    monkeypatch.setattr("stn_infer.sources.inert_pickle.LONGEST_INDEX", 100_000)  # reading 8 MiB takes 20 s
    for name in ("many.safetensors", "many.pt"):
        with pytest.raises(WeightsError, match=r"the list of its tensors has [\d,more]+ bytes, expected at most"):
            load_weights(tmp_path / name)
