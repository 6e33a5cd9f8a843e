"""Lower precisions and the user's own inputs: the files of `export`, its tolerances, and what PyTorch says to int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from stn_infer.api.bench import bench, resolve_case
from stn_infer.api.export import export
from stn_infer.benchmarking.prepare.case import Prepared, prepare
from stn_infer.benchmarking.request import Case, Method
from stn_infer.benchmarking.result import CALIBRATION, Model
from stn_infer.errors import InputError, UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.metadata import PRECISIONS, Precision
from stn_infer.precision.lower import TOLERANCES
from stn_infer.transforms import Affine

METHOD = Method(
    rounds=1, seconds=0.01, samples=4, turns=1, warmup_seconds=0.0, warmup_limit=0.1, row_limit=1.0, isolate=False
)


class Net(nn.Module):
    """A transformer before a convolution, which is what int8 quantizes."""

    def __init__(self) -> None:
        super().__init__()
        localization = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
        self.transformer = SpatialTransformer(localization, Affine(), (8, 8), identity_init=False)
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.transformer(x)).relu().mean((2, 3))


NET = f"{__name__}:Net"
SHAPE = [(1, 8, 8)]


def prepared(folder: Path, case: Case) -> tuple[Prepared, Model]:
    both = frozenset(("plain", "portable"))
    return prepare(case, folder, resolve_case, files=both, tolerance=None, seed=0, say=lambda text: None)


def quantized(path: str | None) -> int:
    assert path is not None
    return sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def test_int8_runs_in_onnxruntime_and_pytorch_says_why_not() -> None:
    done = bench(
        NET,
        batch_sizes=(2,),
        variants=("eager", "ort-plain", "ort"),
        input_shapes=SHAPE,
        precision="int8",
        method=METHOD,
    )
    assert "PyTorch has no module" in done.get("eager", 2).reason
    for variant in ("ort-plain", "ort"):
        row = done.get(variant, 2)
        assert row.status == "timed" and row.precision == "int8"
        assert row.error is not None and 1e-5 < row.error < 0.1
    (model,) = done.models
    assert model.tolerance == TOLERANCES["int8"][0]
    assert any("INT8 is calibrated on the samples that are fed" in note for note in model.notes)
    assert {"plain in int8", "portable in int8"} <= set(model.build_s)


def test_the_files_are_quantized_where_exports_are(tmp_path: Path) -> None:
    found, _ = prepared(tmp_path, Case(NET, input_shapes=((1, 8, 8),), precision="int8", batch_sizes=(2,)))
    # the convolution's input; what makes theta, and the sampler, stay as they are
    assert quantized(found.plain) == quantized(found.portable) == 1
    assert any(node.op_type == "SpatialTransformer" for node in onnx.load(found.portable or "").graph.node)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("source", [NET, "st-cnn-affine-rts"])
def test_the_timed_file_is_the_one_that_export_writes(tmp_path: Path, source: str, precision: Precision) -> None:
    shape = (1, 8, 8) if source == NET else (1, 42, 42)
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).random((40, *shape), dtype=np.float32))
    inputs = (str(tmp_path / "mine.npy"),)
    folder = tmp_path / "bench"
    folder.mkdir()
    case = Case(source, input_shapes=(shape,), precision=precision, batch_sizes=(2,), inputs=inputs)
    timed, _ = prepared(folder, case)
    assert timed.portable is not None
    exported = export(
        source,
        tmp_path / "exported.onnx",
        input_shapes=(shape,),
        precision=precision,
        calibration=None if precision == "fp32" else inputs,
    )
    assert Path(timed.portable).read_bytes() == exported.path.read_bytes()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_without_samples_it_is_too(tmp_path: Path, precision: Precision) -> None:
    folder = tmp_path / "bench"
    folder.mkdir()
    timed, _ = prepared(folder, Case(NET, input_shapes=((1, 8, 8),), precision=precision, batch_sizes=(2,)))
    exported = export(NET, tmp_path / "exported.onnx", input_shapes=SHAPE, precision=precision)
    assert timed.portable is not None and Path(timed.portable).read_bytes() == exported.path.read_bytes()


def test_what_is_a_grid_is_known_in_both_files_of_a_portable_one_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    first, _ = prepared(tmp_path / "made", Case("st-fcn-affine", batch_sizes=(2,)))
    folder = tmp_path / "again"
    folder.mkdir()
    again, _ = prepared(folder, Case(first.portable or "", source="st-fcn-affine", batch_sizes=(2,)))
    assert again.plain is not None and set(again.cuts) >= set(first.cuts)


def test_a_file_in_a_lower_precision_is_measured_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    first, _ = prepared(tmp_path / "made", Case("fcn", precision="fp16", batch_sizes=(2,)))
    file = tmp_path / "half.onnx"
    model = onnx.load(first.plain or "")
    model.metadata_props.add(key="stn_infer.precision", value="fp16")
    model.metadata_props.add(key="stn_infer.source", value="fcn")
    onnx.save(model, file)
    done = bench(file, batch_sizes=(2,), variants=("eager", "ort-plain"), method=METHOD)
    assert done.models[0].case.precision == "fp16" and done.models[0].tolerance == 1e-2
    assert done.get("ort-plain", 2).status == "timed" and done.get("eager", 2).status == "timed"
    assert any("is in fp16, and so is everything else" in note for note in done.models[0].notes)
    with pytest.raises(UsageError, match=r"half\.onnx is in fp16 already; leave --precision out"):
        bench(file, batch_sizes=(2,), variants=("ort-plain",), precision="int8", method=METHOD)


def test_the_users_samples_are_fed_and_give_the_ranges(tmp_path: Path) -> None:
    samples = np.linspace(0, 9, 3 * 64, dtype=np.float32).reshape(3, 1, 8, 8)
    np.save(tmp_path / "mine.npy", samples)
    case = Case(
        NET, input_shapes=((1, 8, 8),), precision="int8", batch_sizes=(2, 4), inputs=(str(tmp_path / "mine.npy"),)
    )
    found, model = prepared(tmp_path, case)
    assert model.inputs == "3 samples of your own"
    np.testing.assert_array_equal(found.expected(4).inputs[0], samples[[0, 1, 2, 0]])
    np.testing.assert_array_equal(found.expected(2).inputs[0], samples[:2])
    assert any("3 samples, fewer than batch 4" in note for note in model.notes)
    assert not any("INT8 is calibrated on the samples" in note for note in model.notes)
    file = onnx.load(found.portable or "")
    (node,) = (it for it in file.graph.node if it.op_type == "QuantizeLinear")
    (scale,) = (it for it in file.graph.initializer if it.name == node.input[1])
    with torch.inference_mode():
        warped = found.load().module.transformer(torch.from_numpy(samples))
    other = tmp_path / "other"
    other.mkdir()
    np.save(
        tmp_path / "mine.npy", samples * np.float32([1, 1, 7]).reshape(3, 1, 1, 1)
    )  # fed to batch 2 are the same samples
    again = prepared(other, replace(case, batch_sizes=(2,)))[1]
    assert (
        again.inputs_sha256["2"] == model.inputs_sha256["2"] and again.sha256[CALIBRATION] != model.sha256[CALIBRATION]
    )
    # 127 steps to the largest magnitude, of all three samples
    assert float(onnx.numpy_helper.to_array(scale)) == pytest.approx(float(warped.abs().max()) / 127, rel=0.01)


def test_an_int8_file_beside_itself_has_a_tolerance_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "again").mkdir()
    case = Case(NET, input_shapes=((1, 8, 8),), precision="int8", batch_sizes=(2,))
    first, model = prepared(tmp_path / "made", case)
    file = onnx.load(first.plain or "")
    del file.metadata_props[:]
    file.metadata_props.add(key="stn_infer.precision", value="int8")
    onnx.save(file, tmp_path / "bare.onnx")
    _, bare = prepared(tmp_path / "again", Case(str(tmp_path / "bare.onnx"), batch_sizes=(2,)))
    assert (model.tolerance, bare.tolerance, bare.case.precision) == (0.1, 1e-2, "int8")
    done = bench(tmp_path / "bare.onnx", batch_sizes=(2,), variants=("ort-plain",), method=METHOD)
    assert done.get("ort-plain", 2).status == "timed"


def test_one_sample_over_and_over_is_told_as_that(tmp_path: Path) -> None:
    sample = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    np.save(tmp_path / "one.npy", sample)
    case = Case(NET, input_shapes=((1, 8, 8),), batch_sizes=(4,), inputs=(str(tmp_path / "one.npy"),))
    (note,) = (note for note in prepared(tmp_path, case)[1].notes if "same sampling grid" in note)
    assert note.endswith("feed more than one sample")


def test_inputs_that_are_not_there_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        bench("no-such-model", inputs=[tmp_path / "nowhere"])


def test_a_cache_that_cannot_be_flushed_is_refused() -> None:
    for device, boundary in (("cpu", "device"), ("cuda:0", "host")):
        with pytest.raises(UsageError, match="the L2 cache can only be flushed on a GPU at the device boundary"):
            bench("cnn", device=device, method=Method(boundary=boundary, l2="flushed"))  # type: ignore[arg-type]
