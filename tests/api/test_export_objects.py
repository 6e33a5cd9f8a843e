"""Export of modules that the program holds, with example inputs as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stn_infer
from stn_infer.api.export import export
from stn_infer.backends.ort import OrtBackend
from stn_infer.data.examples import load_with_inputs
from stn_infer.errors import StnInferError, UsageError
from tests.support.stn_styles import SHAPE, AffineGrid


class Trained(AffineGrid):
    """A network as training leaves it: in training mode, with dropout, statistics of batches and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(SHAPE[0])
        self.dropout = nn.Dropout(0.5)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(super().forward(x)))


def state_of(module: nn.Module) -> dict[str, Any]:
    values = {name: value.clone() for name, value in module.state_dict().items()}
    kept = {name: (it.requires_grad, it.device, it.dtype, it.grad) for name, it in module.named_parameters()}
    return {"values": values, "kept": kept, "modes": [it.training for it in module.modules()]}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def test_a_module_in_training(tmp_path: Path) -> None:
    """Wrapped, half precision, with a hook that changes what it returns; export sees it in evaluation mode."""
    torch.manual_seed(5)
    inner = Trained().half()
    inner.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    inner.norm.weight.requires_grad_(False)
    inner.norm.register_forward_hook(lambda layer, inputs, output: output * 2 + 1)
    module = torch.compile(nn.DataParallel(inner), backend="eager")
    assert isinstance(module, nn.Module)
    before, drawn = state_of(module), torch.get_rng_state()
    path = tmp_path / "model.onnx"
    given = torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(1), requires_grad=True)
    report = stn_infer.export(module, path, example_inputs=given, labels=None)
    assert same(state_of(module), before) and torch.equal(torch.get_rng_state(), drawn)
    assert module.training and inner.dropout.training and given.grad is None
    assert report.verification.passed and report.verification.reference == "float64"
    assert report.verification.inputs == "3 given, 1 given" and [it.fused for it in report.findings] == [True]
    (found,) = OrtBackend(path, threads=1).run({"x": given.detach().numpy()}).values()
    with torch.no_grad():
        np.testing.assert_allclose(found, inner.float().eval()(given).numpy(), atol=1e-5)


class Two(nn.Module):
    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return image.flatten(1) * scale


@pytest.mark.parametrize(
    "given",
    [
        {"scale": torch.ones(2, 1, dtype=torch.float64), "image": np.ones((2, 1, 2, 2), np.float16)},
        (torch.ones(2, 1, 2, 2, dtype=torch.bfloat16), torch.ones(2, 1)),
        [np.ones((2, 1, 2, 2)), np.ones((2, 1))],
    ],
)
def test_example_inputs_by_name_or_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    loaded = None

    def exported(found: Any, *arguments: Any, **named: Any) -> None:
        nonlocal loaded
        loaded = found

    monkeypatch.setattr("stn_infer.api.export._export", exported)
    export(Two(), tmp_path / "model.onnx", example_inputs=given)
    assert loaded is not None and loaded.input_shapes == ((1, 2, 2), (1,)) and loaded.dtypes == ("float32",) * 2
    assert [it.shape for it in loaded.examples] == [(2, 1, 2, 2), (2, 1)] and loaded.name == "Two"


def test_one_shape_is_that_of_the_only_input(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = export(nn.Linear(3, 2), path, input_shapes=(3,))
    assert report.inputs == ("input [batch, 3]",)
    text = str(report)
    assert text.splitlines()[0] == "no GridSample in the graph: nothing to fuse"
    assert text.splitlines()[-1].startswith(f"wrote {path} (") and "<pre>no GridSample" in report._repr_html_()
    loaded = load_with_inputs(stn_infer.load_source(nn.Linear(3, 2), input_shapes=[(3,)]), input_shapes=[(3,)])
    assert loaded.input_shapes == ((3,),) and loaded.name == "Linear"


IMAGE = torch.ones(2, *SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "AffineGrid: a module does not define its inputs' shapes; give input_shapes"),
        ({"input_shapes": [SHAPE], "example_inputs": IMAGE}, "give only one of them"),
        ({"input_shapes": SHAPE[1:]}, "cannot be run on an input of shape 9,7"),
        ({"input_shapes": "2,9,7"}, "input_shapes has one shape per input, integers of at least 1"),
        ({"input_shapes": 7}, "input_shapes has one shape per input, integers of at least 1"),
        ({"input_shapes": [(0, 9, 7)]}, "got [(0, 9, 7)]"),
        ({"input_shapes": [SHAPE, None]}, "input_shapes has one shape per input"),
        ({"example_inputs": 3}, "example_inputs: expected a tensor or an array [N, ...], a tuple or a dict of them"),
        ({"example_inputs": (IMAGE, 0.5)}, "example 1: expected a tensor or an array"),
        ({"example_inputs": {"y": IMAGE, "z": IMAGE}}, "takes the inputs x; given: y"),
        ({"example_inputs": (IMAGE, IMAGE)}, "takes the inputs x; given: 2 arrays"),
        ({"example_inputs": IMAGE.to(torch.complex64)}, "the example for 'x' has type complex64"),
        ({"example_inputs": np.array(["a"])}, "the example for 'x' has type <U1"),
        ({"example_inputs": torch.tensor(1.0)}, "the example for 'x' has shape []"),
        ({"example_inputs": IMAGE[:0]}, "the example for 'x' has shape [0, 2, 9, 7]"),
        ({"example_inputs": "missing.npz"}, "missing.npz does not exist"),
        ({"example_inputs": IMAGE, "output": 3}, "output is the path of the ONNX file to write, not int"),
        ({"example_inputs": IMAGE, "weights": IMAGE}, "weights is the path of a checkpoint, not Tensor"),
        ({"example_inputs": IMAGE, "preprocess": 3}, "preprocess is a text such as 'imagenet', or a Preprocess"),
        ({"example_inputs": IMAGE, "labels": "a,b"}, "labels is a list with one name per class, not 'a,b'"),
        ({"example_inputs": IMAGE, "labels": 3}, "labels is a list with one name per class, not 3"),
        ({"example_inputs": IMAGE, "tolerance": "1"}, "a tolerance must be a positive number, not 1"),
        ({"example_inputs": IMAGE, "fixed_batch": 1.5}, "the fixed batch is an integer of at least 1, not 1.5"),
        ({"example_inputs": IMAGE, "precision": "fp8"}, "unknown precision 'fp8'"),
        ({"source": AffineGrid, "input_shapes": [SHAPE]}, "got the class AffineGrid; give an instance of it"),
        ({"source": IMAGE, "input_shapes": [SHAPE]}, "expected a module, or the name or path of a source, got Tensor"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"source": AffineGrid(), "output": tmp_path / "model.onnx", **options}
    with pytest.raises(StnInferError) as caught:
        export(given.pop("source"), given.pop("output"), **given)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_loaded_model_has_its_weights() -> None:
    loaded = stn_infer.load_source(nn.Linear(3, 2), input_shapes=[(3,)])
    with pytest.raises(UsageError, match="Linear is already loaded; pass the weights to load_source"):
        export(loaded, "model.onnx", weights="w.pt")
