"""SOURCE: each kind is recognized, and each mistake is a one-line message that says what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stn_infer.errors import SourceError, StnInferError, UsageError, WeightsError
from stn_infer.models import NETWORKS, SHIPPED, create, shipped
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.load import load_source, parse_input_shapes

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, broken=False):
        super().__init__()
        self.head = nn.Linear(4, classes)
        if broken:
            with torch.no_grad():
                self.head.weight[0, 0] = float("nan")
    def forward(self, x):
        return self.head(x)

ready = nn.Linear(2, 2).half()
number = 3
class space:
    make = Net

def make(): return Net()
def wide(classes): return Net(classes)
def broken(): return Net(broken=True)
def raises(): raise RuntimeError("no such GPU\\nsecond line")
def leaves(): raise SystemExit("usage: train.py DATA")
def nothing(): return None
def lazy(): return nn.LazyLinear(3)
def parallel(): return nn.DataParallel(Net())
def compiled(): return torch.compile(Net())
def both(): return torch.compile(nn.DataParallel(Net()))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module ``factories_under_test`` in it."""
    (tmp_path / "factories_under_test.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("factories_under_test", None)


def error_of(source: str, **options: object) -> str:
    with pytest.raises(StnInferError) as caught:
        load_source(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


# ---- names -------------------------------------------------------------------------------------------------------


def test_a_network_has_reproducible_random_weights_and_a_note() -> None:
    before = torch.get_rng_state()
    first, second = load_source("st-cnn-affine"), load_source("st-cnn-affine")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.origin == "network" and "random" in first.note
    assert first.input_shapes == (NETWORKS["st-cnn-affine"].input_shape,)
    assert not first.module.training
    weights = zip(first.module.parameters(), second.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_a_network_is_built_for_the_given_input_shape() -> None:
    loaded = load_source("fcn", input_shapes=[(1, 20, 24)])
    assert loaded.input_shapes == ((1, 20, 24),)
    assert loaded.module(torch.zeros(2, 1, 20, 24)).shape == (2, 10)


def test_a_network_takes_weights(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = create("fcn")
    save_file(net.state_dict(), tmp_path / "fcn.safetensors")
    loaded = load_source("fcn", weights=tmp_path / "fcn.safetensors")
    image = torch.rand(2, 1, 28, 28)
    assert loaded.note == ""
    assert torch.equal(loaded.module(image), net.eval()(image))


def test_shipped_models_load_as_their_recipes_define() -> None:
    for name in SHIPPED:
        loaded, model = load_source(name), shipped(name)
        assert (loaded.name, loaded.origin, loaded.metadata.source, loaded.note) == (name, "shipped", name, "")
        assert loaded.input_shapes == (model.recipe.input_shape,)
        assert loaded.metadata.preprocess == model.recipe.preprocess
        assert loaded.metadata.labels == model.recipe.labels
        image = torch.rand(1, *model.recipe.input_shape)
        assert loaded.module(image).isfinite().all()


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert "did you mean st-cnn-affine" in error_of("st-cnn-afine")
    assert "'stn-infer models' lists the names" in error_of("resnet")


def test_other_files_are_named_with_their_use(folder: Path) -> None:
    for name in ("net.engine", "net", "model.onnx"):
        (folder / name).write_bytes(b"\0 anything")
    assert "--backend tensorrt" in error_of("net.engine")
    assert "not a known kind of file: expected an ONNX file" in error_of("net")
    assert "is already an ONNX file" in error_of("model.onnx")
    assert "none.onnx does not exist" in error_of("none.onnx")
    assert "with --weights" in error_of("model.safetensors")
    assert "net:FACTORY" in error_of("net.py")


# ---- recipes -----------------------------------------------------------------------------------------------------


def test_a_recipe_with_weights_beside_it(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'labels = ["a", "b"]\n[model]\nnetwork = "fcn"\ninput_shape = [1, 8, 8]\noptions = { classes = 2 }\n'
        '[preprocess]\nscale = "1/255"\n'
    )
    loaded = load_source(str(recipe))
    assert "random" in loaded.note
    assert (loaded.name, loaded.origin, loaded.input_shapes) == ("mine", "recipe", ((1, 8, 8),))
    assert loaded.metadata.labels == ("a", "b") and loaded.metadata.preprocess == Preprocess()

    trained = create("fcn", classes=2, input_shape=(1, 8, 8))
    save_file(trained.state_dict(), tmp_path / "mine.safetensors")
    loaded = load_source(str(recipe))
    image = torch.rand(1, 1, 8, 8)
    assert loaded.note == ""
    assert torch.equal(loaded.module(image), trained.eval()(image))
    assert "WeightsError" in error_of(str(recipe), input_shapes=[(1, 9, 9)])


def test_a_recipe_passes_its_options_to_a_factory(folder: Path) -> None:
    (folder / "wide.toml").write_text(
        '[model]\nnetwork = "factories_under_test:wide"\ninput_shape = [4]\noptions = { classes = 7 }\n'
    )
    loaded = load_source("wide.toml", allow_code=True)
    assert loaded.note == ""
    assert loaded.module(torch.zeros(2, 4)).shape == (2, 7)


def test_a_shipped_model_reports_an_input_shape_that_does_not_fit() -> None:
    assert "build the network with the options it was trained with" in error_of(SHIPPED[0], input_shapes=[(1, 30, 30)])


def test_wrong_recipes_are_named(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    assert "SourceError" in error_of(str(recipe)) and str(recipe) in error_of(str(recipe))
    recipe.write_text('[model]\nnetwork = "fcn"\ninput_shape = [1, 8, 8]\noptions = { clases = 2 }\n')
    assert error_of(str(recipe)).startswith(f"SourceError: recipe {recipe}: ")


# ---- factories ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["make", "Net", "space.make"])
def test_factories_in_the_current_folder(folder: Path, attribute: str) -> None:
    loaded = load_source(f"factories_under_test:{attribute}", input_shapes=[(4,)])
    assert (loaded.name, loaded.origin) == (attribute, "factory")
    assert loaded.metadata.source == f"factories_under_test:{attribute}"
    assert not loaded.module.training and isinstance(loaded.module, nn.Module)


def test_a_module_instance_is_converted_to_fp32(folder: Path) -> None:
    loaded = load_source("factories_under_test:ready", input_shapes=[(2,)])
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised where PyTorch imports its compiler
@pytest.mark.parametrize("wrapped", ["parallel", "compiled", "both"])
def test_training_wrappers_are_removed(folder: Path, wrapped: str) -> None:
    loaded = load_source(f"factories_under_test:{wrapped}", input_shapes=[(4,)])
    assert type(loaded.module).__name__ == "Net"
    torch.save({f"module.{key}": torch.ones_like(value) for key, value in loaded.module.state_dict().items()}, "w.pt")
    loaded = load_source(f"factories_under_test:{wrapped}", weights=Path("w.pt"), input_shapes=[(4,)])
    assert loaded.module(torch.ones(1, 4)).tolist() == [[5.0, 5.0, 5.0]]


def test_a_factory_has_the_same_random_weights_each_time(folder: Path) -> None:
    before = torch.random.get_rng_state()
    first, second = (load_source("factories_under_test:make", input_shapes=[(4,)]).module for _ in range(2))
    assert torch.equal(first.head.weight, second.head.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("factories_under_test:raises", "called with no arguments, raised RuntimeError: no such GPU second line"),
        ("factories_under_test:leaves", "raised SystemExit: usage: train.py DATA"),
        ("factories_under_test:wide", "argument: 'classes'; a recipe's options become its arguments"),
        ("factories_under_test:nothing", "callable that returns one, got NoneType"),
        ("factories_under_test:number", "callable that returns one, got int"),
        ("factories_under_test:mak", "has no 'mak'; did you mean make"),
        ("factories_under_test:lazy", "expected a module with known shapes"),
        ("factories_under_test:broken", "WeightsError: factories_under_test:broken: head.weight contains NaN"),
        ("not_there_at_all:make", "raised ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raises_on_import:make", "raised SyntaxError"),
        ("net.py:make", "expected package.module:factory, got 'net.py:make'"),
        (":make", "expected package.module:factory"),
    ],
)
def test_factories_that_fail(folder: Path, source: str, message: str) -> None:
    (folder / "raises_on_import.py").write_text("def make(:\n")
    assert message in error_of(source, input_shapes=[(4,)])


def test_a_factory_needs_input_shapes(folder: Path) -> None:
    with pytest.raises(UsageError, match="--input-shape"):
        load_source("factories_under_test:make")


def test_weights_for_a_factory(folder: Path) -> None:
    torch.save({"state_dict": {"head.weight": torch.ones(3, 4), "head.bias": torch.ones(3)}}, "net.pt")
    loaded = load_source("factories_under_test:make", weights=Path("net.pt"), input_shapes=[(4,)])
    assert loaded.module(torch.ones(1, 4)).tolist() == [[5.0, 5.0, 5.0]]
    torch.save({"head.weight": torch.ones(3, 4)}, "net.pt")
    with pytest.raises(WeightsError, match=r"1 missing \(head.bias\)"):
        load_source("factories_under_test:make", weights=Path("net.pt"), input_shapes=[(4,)])


# ---- exported programs -------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.head(image.flatten(1)) * scale


def save_program(path: Path, dynamic: bool) -> None:
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        TwoInputs().eval(),
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, 3)),
        dynamic_shapes=(batch, batch) if dynamic else None,
    )
    torch.export.save(program, path)


def test_a_program_with_a_dynamic_batch(tmp_path: Path) -> None:
    save_program(tmp_path / "net.pt2", dynamic=True)
    loaded = load_source(str(tmp_path / "net.pt2"))
    assert (loaded.name, loaded.origin, loaded.fixed_batch) == ("net", "pt2", None)
    assert loaded.input_shapes == ((1, 2, 2), (3,))
    assert loaded.module(torch.ones(5, 1, 2, 2), torch.ones(5, 3)).shape == (5, 3)


def test_a_program_with_a_fixed_batch(tmp_path: Path) -> None:
    save_program(tmp_path / "net.pt2", dynamic=False)
    loaded = load_source(str(tmp_path / "net.pt2"))
    assert (loaded.fixed_batch, loaded.input_shapes) == (2, ((1, 2, 2), (3,)))


def test_wrong_programs(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    assert "does not exist" in error_of(str(path))
    path.write_bytes(b"PK\x03\x04 no zip")
    assert "SourceError" in error_of(str(path)) and "torch.export.save" in error_of(str(path))


# ---- --input-shape -----------------------------------------------------------------------------------------------


def test_input_shapes_are_parsed() -> None:
    assert parse_input_shapes(["3,32,100"]) == ((3, 32, 100),)
    assert parse_input_shapes(["3,32,100;20", "1, 8, 8"]) == ((3, 32, 100), (20,), (1, 8, 8))
    assert parse_input_shapes([]) == ()


@pytest.mark.parametrize("text", ["", "3,x", "3,,2", "0,2", "3,-1", "3x28x28", "1.5", "3,4;"])
def test_wrong_input_shapes(text: str) -> None:
    with pytest.raises(UsageError, match="--input-shape"):
        parse_input_shapes([text])


def test_wrong_sources_are_source_errors() -> None:
    with pytest.raises(SourceError):
        load_source("nothing-like-it")


def test_the_current_folder_comes_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "colorsys.py").write_text("raise RuntimeError('the current folder was imported')\n")
    with (folder / "factories_under_test.py").open("a") as file:
        file.write("\nimport colorsys\nassert colorsys.rgb_to_hsv\nlinear = nn.Linear(4, 2)\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    sys.path.insert(0, str(folder))
    load_source("factories_under_test:linear", input_shapes=[(4,)])
    assert sys.path[-1] == str(folder) and sys.path.count(str(folder)) == 1
