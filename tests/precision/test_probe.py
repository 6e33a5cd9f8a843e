"""The deviation of one file from another: outputs, grids in pixels, classes, activations."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stn_infer.fusion.samplers import SamplerNode
from stn_infer.precision.probe import PrecisionLoss, Probe, activation_peaks
from stn_infer.reference.calls import SamplerCall, TracedRun
from stn_infer.samplers import DEFAULT_SPEC
from tests.support.precision_models import images, model_of, small_stn


def changed(model: onnx.ModelProto, name: str, add: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor) + np.float32(add)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return copy


@pytest.mark.parametrize("plain", [False, True])
def test_a_shift_of_theta_is_measured_in_pixels(plain: bool) -> None:
    """theta + 0.1 in all six values moves a corner by 0.1 (1 + 7/8 + 7/8); a pixel is 1/4."""
    model = small_stn()
    deviation = PrecisionLoss()
    feeds = {"x": images()}
    wanted, found = (Probe(item, plain=plain).run(feeds) for item in (model, changed(model, "t0_b_theta", 0.1)))
    deviation.add(wanted, found, scored=True)
    assert deviation.grid_px == pytest.approx(0.1 * (1 + 2 * 7 / 8) * 4, rel=1e-5)
    assert wanted.calls[0].size == (8, 8) and wanted.calls[0].grid.shape == (16, 8, 8, 2)
    assert list(wanted.outputs) == ["y"]


def test_a_plain_sampler_and_a_fused_one_have_the_same_grid() -> None:
    from onnx import inliner

    model, feeds = small_stn(transformers=2), {"x": images()}
    deviation = PrecisionLoss()
    deviation.add(Probe(model).run(feeds), Probe(inliner.inline_local_functions(model)).run(feeds), scored=True)
    assert deviation.grid_px is not None and 0 < deviation.grid_px < 1e-5
    assert deviation.output_error < 1e-5 and deviation.agreement == 1.0 and deviation.compared == 16


def run_of(values: list[list[float]], grid: float = 0.0) -> TracedRun:
    points = np.full((len(values), 1, 1, 2), grid)
    image = np.zeros((len(points), 1, 10, 10), np.float32)
    call = SamplerCall.of(SamplerNode(DEFAULT_SPEC), image, points, image)
    return TracedRun({"y": np.array(values, np.float32)}, (call,))


def test_errors_are_relative_to_the_scale_of_all_batches_and_classes_are_counted() -> None:
    deviation = PrecisionLoss()
    deviation.add(run_of([[1.0, 2.0]]), run_of([[1.0, 2.5]]), scored=True)
    deviation.add(run_of([[0.0, 10.0]]), run_of([[10.0, 9.9]], 0.01), scored=True)
    deviation.add(run_of([[0.0, 1.0]]), run_of([[1.0, 0.0]]), scored=False)
    assert deviation.output_error == pytest.approx(1.0)
    assert deviation.agreement == 0.5 and deviation.compared == 2
    assert deviation.grid_px == pytest.approx(0.05)


def test_nan_is_an_infinite_error() -> None:
    deviation = PrecisionLoss()
    deviation.add(run_of([[1.0, 2.0]]), run_of([[math.nan, 2.0]], math.nan), scored=True)
    assert deviation.output_error == math.inf and deviation.grid_px == math.inf


def test_integers_are_counted() -> None:
    deviation = PrecisionLoss()
    deviation.add_outputs({"y": np.array([1, 2, 3, 4])}, {"y": np.array([1, 2, 3, 9])})
    assert deviation.output_error == 0.25 and deviation.agreement is None and deviation.grid_px is None


def test_peaks_are_the_largest_magnitudes_over_all_batches() -> None:
    model = model_of(
        [helper.make_node("Mul", ["x", "c"], ["a"]), helper.make_node("Exp", ["a"], ["y"])],
        {"c": np.array(-2.0, np.float32)},
    )
    low, high = images() * 0.5, images() + 1
    peaks = activation_peaks(model, [{"x": high}, {"x": low}])
    assert set(peaks) == {"x", "a", "y"}
    assert peaks["x"] == high.max() and peaks["a"] == 2 * high.max() and peaks["y"] == pytest.approx(1.0, abs=0.1)
    assert math.isnan(activation_peaks(model, [{"x": low * np.nan}, {"x": low}])["a"])
    assert math.isinf(activation_peaks(model, [{"x": low - 100}])["y"])
