"""Mistakes that leave a file that runs: each must be found and, where possible, named, without false alarms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stn_infer import plugin
from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.basis import NO_CLAMP
from stn_infer.fusion.fuse import fuse
from stn_infer.metadata import ModelMetadata
from stn_infer.reference.onnx_file import OnnxReference
from stn_infer.reference.samples import Batch, sample_batches
from stn_infer.samplers import SamplerSpec
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.plain import export_plain
from stn_infer.verification.judging import Limits, judge
from stn_infer.verification.model import verify_model
from stn_infer.verification.runners import OnnxRunner
from stn_infer.verification.sampler_checks import SamplerCheck, check_sampler
from stn_infer.verification.tolerance import expect
from tests.support.wrong_files import Mutation, one_transformer, rounded_grid, rounding_up, swapped_axes, with_attribute

Array = NDArray[Any]

MISTAKES: dict[str, tuple[Mutation, str]] = {
    "nearest for bilinear": (with_attribute(mode="nearest"), "nearest sampling instead of bilinear"),
    "bicubic for bilinear": (with_attribute(mode="bicubic"), "bicubic sampling instead of bilinear"),
    "flipped align_corners": (with_attribute(align_corners=1), "align_corners=True instead of False"),
    "border for zeros": (with_attribute(padding_mode="border"), "border padding instead of zeros"),
    "reflection for zeros": (with_attribute(padding_mode="reflection"), "reflection padding instead of zeros"),
    "swapped x and y": (swapped_axes, "swapped x and y"),
    "float16 grid": (rounded_grid(), "a sampling grid in float16"),
    "bfloat16 grid": (rounded_grid(onnx.TensorProto.BFLOAT16), "a sampling grid in bfloat16"),
}


class Net(nn.Module):
    """Localization, affine grid and sampler, as in PyTorch's tutorial; close to the identity."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head = nn.Linear(shape[1] * 4, 6)
        with torch.no_grad():
            self.head.weight.mul_(0.05)
            self.head.bias.copy_(torch.tensor([0.8, 0.05, 0.02, -0.04, 0.7, 0.01]))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.head(nn.functional.adaptive_avg_pool2d(x, (x.shape[2], 4)).flatten(1)).view(-1, 2, 3)
        grid = nn.functional.affine_grid(theta, [x.shape[0], 1, x.shape[2], x.shape[3]], align_corners=False)
        return nn.functional.grid_sample(x, grid, align_corners=False)


@cache
def pair(width: int = 24) -> tuple[LoadedModel, onnx.ModelProto, onnx.ModelProto]:
    """The source, its portable file and its plain file."""
    shape = (1, 20, width)
    module = Net(shape).eval()
    plain = export_plain(module, [shape])
    portable, (finding,) = fuse(plain)
    assert finding.fused
    return LoadedModel("net", module, (shape,), ModelMetadata(), "factory"), portable, plain


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_file_is_found_against_its_source(mistake: str) -> None:
    mutate, cause = MISTAKES[mistake]
    loaded, portable, _ = pair()
    assert verify_model(loaded, portable).passed
    result = verify_model(loaded, mutate(portable))
    assert not result.passed
    assert any(cause in failure for failure in result.backends[0].failures), result.backends[0].failures


def test_a_float16_grid_at_width_1024_is_found_in_a_plain_file_too() -> None:
    loaded, portable, plain = pair(1024)
    for right in (portable, plain):
        assert verify_model(loaded, right).passed
        wrong = verify_model(loaded, rounded_grid()(right))
        assert not wrong.passed and "a sampling grid in float16" in " ".join(wrong.backends[0].failures)
        assert wrong.grids[0].max_px > 0.1


def test_a_float16_theta_is_found() -> None:
    """The head's result is rounded, which moves the corners of the grid."""
    loaded, portable, _ = pair(1024)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(portable)
    node = next(node for node in wrong.graph.node if node.op_type == "SpatialTransformer")
    at = list(wrong.graph.node).index(node)
    half = onnx.helper.make_node("Cast", [node.input[1]], ["half"], to=onnx.TensorProto.FLOAT16)
    back = onnx.helper.make_node("Cast", ["half"], ["theta_back"], to=onnx.TensorProto.FLOAT)
    node.input[1] = "theta_back"
    wrong.graph.node.insert(at, back)
    wrong.graph.node.insert(at, half)
    result = verify_model(loaded, wrong)
    assert not result.passed and result.grids[0].theta_px > 0.05


# ---- wrong backends for right files ------------------------------------------------------------------------------


def runner(model: onnx.ModelProto, mutate: Mutation | None = None, fused: bool = False) -> OnnxRunner:
    """onnxruntime, which applies ``mutate`` to every file before it runs it."""

    def open_model(content: bytes) -> OrtBackend:
        proto = onnx.ModelProto.FromString(content)
        return OrtBackend((mutate(proto) if mutate else proto).SerializeToString(), threads=1, plugin=fused)

    return OnnxRunner("ort", model, open_model, inlined=False)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_backend_is_found_without_a_source(mistake: str) -> None:
    mutate, cause = MISTAKES[mistake]
    loaded, portable, _ = pair()
    reference, batches = OnnxReference(portable), sample_batches(loaded)
    limits = Limits(1e-5, 1e-3)
    assert judge(runner(portable), reference, expect(reference, batches), limits).report.status == "passed"
    report = judge(runner(portable, mutate), reference, expect(reference, batches), limits).report
    assert report.status == "failed" and cause in report.reason, report.failures


def isolated(model: onnx.ModelProto, expected: SamplerSpec, seed: int, **options: Any) -> SamplerCheck:
    tested = runner(model, **options)
    graph = model.graph
    size, output_size = (
        tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[2:])
        for value in (graph.input[0], graph.output[0])
    )
    try:
        return check_sampler(0, tested.samplers[0], expected, size, output_size, partial(tested.isolated, 0), seed)
    finally:
        tested.close()


KINDS: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = [
    ("affine", (12, 16), (10, 12)),
    ("affine", (28, 28), (28, 28)),
    ("projective", (12, 16), (16, 16)),
    ("basis", (12, 16), (10, 12)),
    ("affine", (5, 6, 8), (4, 8, 8)),
]


@pytest.mark.parametrize("fused", [False, True], ids=["function", "library"])
@pytest.mark.parametrize(("kind", "size", "output_size"), KINDS)
def test_no_false_alarm_over_twenty_seeds(
    kind: Any, size: tuple[int, ...], output_size: tuple[int, ...], fused: bool
) -> None:
    if fused and not plugin.available():
        pytest.skip("the plugin library is not built: stn-infer plugin build")
    modes = ("bilinear", "nearest", "bicubic")[: 5 - len(size)]
    samplers = list(product(modes, ("zeros", "border", "reflection"), (False, True)))
    for seed in range(20):
        mode, padding_mode, align_corners = samplers[seed % len(samplers)]
        model = one_transformer(kind, size, output_size, mode, padding_mode, align_corners, 18 + 2 * (len(size) == 3))
        check = isolated(model, SamplerSpec(mode, padding_mode, align_corners), seed, fused=fused)
        assert check.passed, check.problem
        assert len(check.invariants) >= 4 and all(check.invariants.values())


QUOTIENTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[float, tuple[float, ...]]]] = {
    "clamped and moved": ((12, 16), (10, 12), (0.3, (0.25, -0.5))),
    "clamped at more than 1": ((12, 16), (10, 12), (1.3, ())),
    "volume": ((5, 6, 8), (4, 8, 8), (0.5, (0.0, 0.25, 0.0))),
    "neither": ((12, 16), (10, 12), (NO_CLAMP, ())),
}


@pytest.mark.parametrize("fused", [False, True], ids=["function", "library"])
@pytest.mark.parametrize("case", QUOTIENTS)
def test_no_false_alarm_for_quotients(case: str, fused: bool) -> None:
    if fused and not plugin.available():
        pytest.skip("the plugin library is not built: stn-infer plugin build")
    size, output_size, division = QUOTIENTS[case]
    samplers = list(product(("bilinear", "nearest"), ("zeros", "border", "reflection"), (False, True)))
    for seed, sampler in enumerate(samplers):
        model = one_transformer("projective", size, output_size, *sampler, opset=20, division=division)
        check = isolated(model, SamplerSpec(*sampler), seed, fused=fused)
        assert check.passed, check.problem
        assert len(check.invariants) >= 4 and all(check.invariants.values())


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"w_min": NO_CLAMP}, "a denominator that is not clamped"),
        ({"offset": [0.0, 0.0]}, "no offset after the division"),
        ({"w_min": NO_CLAMP, "offset": [0.0, 0.0]}, "neither a clamp of the denominator nor an offset"),
    ],
)
def test_a_runtime_that_ignores_a_part_of_the_division_is_found(wrong: dict[str, Any], name: str) -> None:
    """As a library would that is older than version 2 of the op."""
    model = one_transformer("projective", division=(0.3, (0.25, -0.5)))
    check = isolated(model, SamplerSpec(), 0, mutate=with_attribute(**wrong))
    assert not check.passed and f"likely cause: {name}" in check.problem, check.problem


@pytest.mark.parametrize("kind", ["affine", "projective"])
def test_rounding_half_up_is_a_bias(kind: Any) -> None:
    model = one_transformer(kind, mode="nearest", output_size=(8, 8))
    right = isolated(model, SamplerSpec("nearest"), 0)
    assert right.passed and right.deviation.flips.up == right.deviation.flips.down == 0
    wrong = isolated(model, SamplerSpec("nearest"), 0, mutate=rounding_up)
    assert not wrong.passed and "rounding half up instead of half to even" in wrong.problem
    assert wrong.deviation.flips.down == 0 and wrong.deviation.flips.up > 20


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_several_mistakes_at_once_are_found(mode: str) -> None:
    model = one_transformer(mode=mode)

    def mutate(proto: onnx.ModelProto) -> onnx.ModelProto:
        return with_attribute(mode="bicubic", padding_mode="border", align_corners=1)(proto)

    assert not isolated(model, SamplerSpec(mode), 0, mutate=mutate).passed


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (SamplerSpec("bicubic"), "bilinear sampling instead of bicubic"),
        (SamplerSpec("nearest"), "bilinear sampling instead of nearest"),
        (SamplerSpec(padding_mode="border"), "zeros padding instead of border"),
        (SamplerSpec(padding_mode="reflection"), "zeros padding instead of reflection"),
        (SamplerSpec(align_corners=True), "align_corners=False instead of True"),
    ],
)
def test_the_likely_cause_is_named(expected: SamplerSpec, name: str) -> None:
    check = isolated(one_transformer(), expected, 1)
    assert not check.passed and f"likely cause: {name}" in check.problem


def test_an_identity_head_does_not_hide_a_mistake() -> None:
    """A zero-initialized head samples at the identity, where a wrong padding or axis does not change the outputs."""
    loaded, _, _ = pair()
    module = Net((1, 20, 24)).eval()
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
    still = LoadedModel("still", module, loaded.input_shapes, ModelMetadata(), "factory")
    model, _ = fuse(export_plain(module, loaded.input_shapes))
    assert verify_model(still, model).passed
    result = verify_model(still, with_attribute(padding_mode="border")(model))
    assert np.max([output.scaled for output in result.outputs]) <= 1e-5, "the outputs are right"
    assert not result.passed and "border padding instead of zeros" in result.backends[0].reason


def scaled_output(factor: float) -> Mutation:
    def mutate(model: onnx.ModelProto) -> onnx.ModelProto:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        name = wrong.graph.output[0].name
        for node in wrong.graph.node:
            for index, output in enumerate(node.output):
                node.output[index] = "unscaled" if output == name else output
        wrong.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
        wrong.graph.node.append(onnx.helper.make_node("Mul", ["unscaled", "factor"], [name]))
        return wrong

    return mutate


def test_a_scaled_output_does_not_hide_behind_a_sensitive_warp() -> None:
    """At width 1024, float32's error on noise is 1e-4 in the warp, but the downstream network is exact."""
    loaded, portable, _ = pair(1024)
    right = verify_model(loaded, portable)
    assert right.passed and right.tolerance > 1.2e-4
    result = verify_model(loaded, scaled_output(1.0001)(portable))
    (failure,) = result.backends[0].failures
    assert "downstream of the samplers, given the same warped images; expected at most 1e-05" in failure


def with_basis(change: Callable[[Array], Array]) -> Mutation:
    def mutate(model: onnx.ModelProto) -> onnx.ModelProto:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        basis = next(tensor for tensor in wrong.graph.initializer if tensor.name == "basis")
        values = change(onnx.numpy_helper.to_array(basis)).astype(np.float32)
        basis.CopyFrom(onnx.numpy_helper.from_array(values, "basis"))
        return wrong

    return mutate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda basis: basis * np.float32("nan"), "its basis contains NaN"),
        (lambda basis: basis * 0.99, "its kind is affine, but its basis is not x, y"),
    ],
)
def test_a_basis_that_kernels_would_not_read(change: Callable[[Array], Array], message: str, capfd: Any) -> None:
    """The function in the file reads the basis, but a kernel of kind affine computes the rows itself."""
    model = with_basis(change)(one_transformer())
    check = isolated(model, SamplerSpec(), 0)
    assert not check.passed and message in check.problem
    assert capfd.readouterr() == ("", "")  # LAPACK reports NaN on stdout


def test_outputs_of_nan_alone_fail() -> None:
    _, portable, _ = pair()
    wrong = scaled_output(float("nan"))(portable)
    reference, tested = OnnxReference(wrong), runner(wrong)
    images = np.random.default_rng(0).random((2, 1, 20, 24), dtype=np.float32)
    report = judge(tested, reference, expect(reference, [Batch("random", (images,))]), Limits(1e-5, 1e-3)).report
    assert report.status == "failed" and "has no finite number in the reference either" in report.reason


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_no_false_alarm_in_a_model_over_twenty_seeds(mode: str) -> None:
    loaded, portable, _ = pair()
    model = with_attribute(mode=mode)(portable)
    reference, tested = OnnxReference(model), runner(model)
    for seed in range(20):
        images = np.random.default_rng(seed).random((8, *loaded.input_shapes[0]), dtype=np.float32)
        expectations = expect(reference, [Batch("random", (images,))])
        report = judge(tested, reference, expectations, Limits(1e-5, 1e-3), seed=seed).report
        assert report.status == "passed", report.failures
