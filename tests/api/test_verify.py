"""Verification: what it compares, and when it fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf, nan

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from stn_infer.deviation import Deviation
from stn_infer.errors import ModelError, VerificationError
from stn_infer.fusion.fuse import fuse
from stn_infer.metadata import ModelMetadata
from stn_infer.reference.model import Reference
from stn_infer.reference.samples import Batch, sample_batches
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.plain import export_plain
from stn_infer.verification.model import verify_model
from stn_infer.verification.report import BackendReport, GridDeviation, Verification, failures
from stn_infer.verification.runners import EagerRunner
from tests.support.onnx_files import then
from tests.support.stn_styles import SHAPE, AffineGrid, TwoTransformers


@cache
def pair() -> tuple[LoadedModel, onnx.ModelProto]:
    torch.manual_seed(0)
    module = AffineGrid().eval()
    model, _ = fuse(export_plain(module, [SHAPE]))
    return LoadedModel("net", module, (SHAPE,), ModelMetadata(), "factory"), model


def shifted(model: onnx.ModelProto, suffix: str, amount: float) -> onnx.ModelProto:
    """A copy with ``amount`` added to the first value of one constant."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = [tensor for tensor in copy.graph.initializer if tensor.name.endswith(suffix)]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += amount
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def test_a_shifted_grid_is_measured_in_pixels() -> None:
    loaded, model = pair()
    width = SHAPE[2]
    verification = verify_model(loaded, shifted(model, "stn_0_bias", 0.02))
    assert not verification.passed
    # theta[0, 0] scales x: its outermost point, half a pixel from the edge, moves furthest
    expected = 0.02 * (width - 1) / width * width / 2
    assert verification.grids[0].max_px == pytest.approx(expected, rel=1e-3)
    with pytest.raises(VerificationError, match="net: ort: sampler 0 is off by"):
        verification.check("net")


def test_a_nan_in_the_file_fails() -> None:
    loaded, model = pair()
    assert not verify_model(loaded, shifted(model, "stn_0_bias", nan)).passed


def test_unpaired_grids_are_noted() -> None:
    loaded, _ = pair()
    plain = export_plain(loaded.module, [SHAPE])
    grid = next(node for node in plain.graph.node if node.op_type == "GridSample")
    second = onnx.NodeProto()
    second.CopyFrom(grid)
    second.name, second.output[0] = "second", "unused"
    plain.graph.node.append(second)
    verification = verify_model(loaded, plain)
    assert verification.passed and verification.grids == ()
    assert any("cannot be paired" in note for note in verification.notes)


def test_a_missing_output() -> None:
    _, model = pair()

    class Twice(AffineGrid):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            warped = super().forward(x)
            return warped, warped

    with pytest.raises(ModelError, match="1 output, its source 2"):
        verify_model(LoadedModel("twice", Twice().eval(), (SHAPE,), ModelMetadata(), "factory"), model)


def test_the_reference_is_float64_and_does_not_change_the_model() -> None:
    module = TwoTransformers().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    reference = Reference(module, [SHAPE])
    (output,), samplings = reference.run([np.zeros((2, *SHAPE), np.float32)])
    assert (reference.dtype, output.dtype) == ("float64", np.float64)
    assert [sampling.spec.mode for sampling in samplings] == ["bilinear", "bicubic", "bilinear"]
    assert all(sampling.grid.shape == (2, *SHAPE[1:], 2) and sampling.size == SHAPE[1:] for sampling in samplings)
    assert torch.get_default_dtype() == torch.float32
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])


def test_nearest_flips_are_counted_and_do_not_fail() -> None:
    class Nearest(nn.Module):
        """Samples exactly between pixels, where the last bit decides."""

        def __init__(self, size: int) -> None:
            super().__init__()
            mesh = torch.linspace(-1, 1, size + 1)[1:-1]
            self.register_buffer("mesh", torch.stack(torch.meshgrid(mesh, mesh, indexing="ij")[::-1], -1)[None])
            self.theta = nn.Linear(1, 1)
            self.theta.weight.data.fill_(0)
            self.theta.bias.data.fill_(1 + 1e-8)

        def forward(self, x: Tensor) -> Tensor:
            scale = self.theta(x.mean((1, 2, 3))[:, None])[:, :, None, None]
            return nn.functional.grid_sample(x, self.mesh * scale, mode="nearest", align_corners=False)

    shape = (1, 12, 12)
    module = Nearest(12).eval()
    loaded = LoadedModel("nearest", module, (shape,), ModelMetadata(), "factory")
    model, (finding,) = fuse(export_plain(module, [shape]))
    assert finding.fused
    verification = verify_model(loaded, model)
    (grid,) = verification.grids
    assert grid.mode == "nearest" and 0 < grid.flips < grid.points
    assert verification.passed
    assert f"{grid.flips} of {grid.points} nearest samples flipped" in verification.summary()


def report(error: float = 0.0, pixels: float = 0.0) -> Verification:
    outputs, grids = (Deviation("output", 10 * error, 10.0),), (GridDeviation(0, "bilinear", pixels),)
    found = failures(outputs, grids, (), 1e-5, 1e-3)
    backend = BackendReport("ort", "failed" if found else "passed", found, "", outputs, grids)
    return Verification("float64", "float64 eager PyTorch", 1e-5, (backend,), "1 random")


@pytest.mark.parametrize(("error", "pixels", "passed"), [(1e-5, 1e-3, True), (2e-5, 0, False), (0, 2e-3, False)])
def test_limits(error: float, pixels: float, passed: bool) -> None:
    assert report(error, pixels).passed is passed


@pytest.mark.parametrize("value", [inf, nan])
def test_non_finite_errors_never_pass(value: float) -> None:
    assert not report(error=value).passed
    assert not report(pixels=value).passed


def test_no_backend_that_ran_means_not_passed() -> None:
    missing = BackendReport("tensorrt", "unavailable", ("no GPU",))
    result = Verification("float64", "", 1e-5, (missing,), "")
    assert not result.passed
    with pytest.raises(VerificationError, match="no backend"):
        result.check("net")


def test_sample_batches() -> None:
    image = LoadedModel("net", nn.Identity(), ((3, 20, 30), (4,)), ModelMetadata(), "factory")
    batches = sample_batches(image)
    assert [(batch.kind, len(batch.inputs[0])) for batch in batches] == [("random", 3), ("random", 1), ("images", 8)]
    assert [value.shape for value in batches[2].inputs] == [(8, 3, 20, 30), (8, 4)]
    pictures = batches[2].inputs[0]
    assert pictures.min() >= 0 and 0.5 < pictures.max() <= 1 and pictures.std() > 0.05
    vector = LoadedModel("net", nn.Identity(), ((4,),), ModelMetadata(), "factory")
    assert [batch.kind for batch in sample_batches(vector)] == ["random", "random"]


def test_given_batches_replace_the_samples() -> None:
    loaded, model = pair()
    batch = Batch("zeros", (np.zeros((4, *SHAPE), np.float32),))
    assert verify_model(loaded, model, batches=[batch]).inputs == "4 zeros"


def test_wrong_outputs_are_found_despite_flips() -> None:
    """Every sample has flips here; an output of the wrong sign must not hide behind them."""

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Linear(1, 6)
            self.theta.weight.data.fill_(1e-9)
            self.theta.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])

        def forward(self, x: Tensor) -> Tensor:
            theta = self.theta(x.mean((1, 2, 3))[:, None]).view(-1, 2, 3)
            grid = nn.functional.affine_grid(theta, [x.shape[0], 1, 8, 8], align_corners=False)
            return nn.functional.grid_sample(x, grid, mode="nearest", align_corners=False)

    shape = (1, 16, 16)
    loaded = LoadedModel("halved", Halved().eval(), (shape,), ModelMetadata(), "factory")
    model, _ = fuse(export_plain(loaded.module, [shape]))
    right = verify_model(loaded, model)
    assert right.passed and right.grids[0].flips > 0
    model.graph.node[-1].output[0] = "positive"
    model.graph.node.append(onnx.helper.make_node("Neg", ["positive"], ["output"]))
    assert not verify_model(loaded, model).passed


class Stem(nn.Module):
    """A convolution whose result is only sampled; theta comes from the image itself."""

    def __init__(self, dropout: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(SHAPE[0], 3, 3, padding=1)
        self.head = nn.Linear(SHAPE[0], 6)
        self.head.bias.data = torch.tensor([1.0, 0.1, 0, 0, 0.9, 0.1])
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        if self.dropout:
            features = nn.functional.dropout(
                features, 0.5
            )  # active in evaluation mode too, since training=True is the default
        theta = self.head(x.mean((2, 3))).view(-1, 2, 3)
        grid = nn.functional.affine_grid(theta, list(features.shape), align_corners=False)
        return nn.functional.grid_sample(features, grid, align_corners=False)


def stem(dropout: bool = False) -> tuple[LoadedModel, onnx.ModelProto]:
    torch.manual_seed(0)
    module = Stem(dropout).eval()
    return LoadedModel("stem", module, (SHAPE,), ModelMetadata(), "factory"), fuse(export_plain(module, [SHAPE]))[0]


def test_the_image_that_a_sampler_reads_is_compared_too() -> None:
    """Theta, the sampler and the downstream network are right; the sampled features are wrong."""
    loaded, model = stem()
    right = verify_model(loaded, model)
    assert right.passed and 0 < right.grids[0].image < 1e-6
    wrong = verify_model(loaded, shifted(model, "stem.weight", 0.01))
    assert 1e-3 < wrong.grids[0].image < 0.1
    with pytest.raises(VerificationError, match="the image that sampler 0 reads is off by"):
        wrong.check("stem")


def test_a_model_that_is_random_before_its_sampler_fails() -> None:
    assert not verify_model(*stem(dropout=True)).passed


def test_a_forward_that_writes_in_place_does_not_change_the_inputs() -> None:
    class InPlace(AffineGrid):
        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5).mul_(2)
            return super().forward(x)

    torch.manual_seed(0)
    module = InPlace().eval()
    loaded = LoadedModel("in-place", module, (SHAPE,), ModelMetadata(), "factory")
    model, _ = fuse(export_plain(module, [SHAPE]))
    batch = Batch("noise", (np.random.default_rng(0).random((3, *SHAPE), np.float32),))
    before = batch.inputs[0].copy()
    assert verify_model(loaded, model, batches=[batch]).passed
    EagerRunner(loaded, "cpu", fused=False).run(batch.inputs)
    assert np.array_equal(batch.inputs[0], before)


class Ending(AffineGrid):
    """A spatial transformer, with ``end`` applied to its result and its input."""

    def __init__(self, end: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(super().forward(x), x)


def ending(end: Callable[[Tensor, Tensor], Tensor]) -> tuple[LoadedModel, onnx.ModelProto]:
    torch.manual_seed(0)
    module = Ending(end).eval()
    return LoadedModel("ending", module, (SHAPE,), ModelMetadata(), "factory"), fuse(export_plain(module, [SHAPE]))[0]


@pytest.mark.parametrize("size", [1e-2, 1e-6, 1e-12])
def test_a_small_output_is_judged_on_its_own_scale(size: float) -> None:
    loaded, model = ending(lambda warped, x: warped.mean((2, 3)) * size)
    right = verify_model(loaded, model)
    assert right.passed and right.outputs[0].scale < 3 * size, right.summary()
    wrong = verify_model(loaded, then(model, "Mul", 1 + 5e-5))
    assert wrong.outputs[0].scaled == pytest.approx(5e-5, rel=0.1)
    with pytest.raises(VerificationError, match="output 'output' is off by"):
        wrong.check("ending")


def test_an_infinite_logit_must_have_the_same_place_and_sign() -> None:
    masked = torch.tensor([0.0, -inf])
    loaded, model = ending(lambda warped, x: warped.mean((2, 3)) + masked)
    assert verify_model(loaded, model).passed
    assert not verify_model(loaded, then(model, "Mul", -1.0)).passed


@pytest.mark.parametrize("same", [False, True])
def test_the_remainder_of_a_cancellation_is_not_an_error(same: bool) -> None:
    """About 1e-17 in float64 and 1e-8 in float32 from rounding, or exactly zero if both terms are the same."""

    def rest(warped: Tensor, x: Tensor) -> Tensor:
        return warped.mean((1, 2, 3)) - (warped.mean((1, 2, 3)) if same else warped.mean(3).mean(2).mean(1))

    loaded, model = ending(rest)
    right = verify_model(loaded, model)
    assert right.passed and right.tolerance == 1e-5 and 1e-4 < right.outputs[0].scale <= 1, right.summary()
    assert verify_model(loaded, then(model, "Add", 1e-8)).passed
    assert not verify_model(loaded, then(model, "Add", 2e-5)).passed
