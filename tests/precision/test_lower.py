"""Export in reduced precision end to end: measured errors, an error beyond the tolerance, and files that run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import stn_infer
from stn_infer.api import export as exporter
from stn_infer.api.export import export
from stn_infer.backends.ort import OrtBackend
from stn_infer.cli.main import main
from stn_infer.errors import ModelError, UsageError, VerificationError
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.models import create
from stn_infer.precision.eager_bf16 import EagerBf16
from stn_infer.precision.lower import PrecisionReport
from stn_infer.reference.samples import sample_images
from stn_infer.sources.load import LoadedModel

MODEL = "tutorial-stn-r"


@pytest.fixture(scope="module")
def built() -> dict[tuple[str, bool], Any]:
    """Models already exported, by name and whether for bf16: PyTorch's exporter takes seconds."""
    return {}


@pytest.fixture(autouse=True)
def export_once(monkeypatch: pytest.MonkeyPatch, built: dict[tuple[str, bool], Any]) -> None:
    original = exporter.build_portable

    def build(loaded: LoadedModel, precision: Any, *rest: Any) -> Any:
        key = (loaded.name, precision == "bf16")
        if key not in built:
            built[key] = original(loaded, precision, *rest)
        copy = onnx.ModelProto()
        copy.CopyFrom(built[key].model)
        return replace(built[key], model=copy)

    monkeypatch.setattr(exporter, "build_portable", build)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 images 28 x 28."""
    folder = tmp_path_factory.mktemp("digits")
    for index, image in enumerate(sample_images(40, (1, 28, 28))):
        Image.fromarray((image[0] * 255).round().astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.mark.parametrize(
    ("precision", "output", "px", "size"),
    [("fp16", 2e-3, 0.01, 0.6), ("bf16", 2e-2, 0.1, 0.6), ("int8", 5e-2, 0.3, 0.5)],
)
def test_export_of_a_shipped_model(
    tmp_path: Path, digits: Path, precision: Any, output: float, px: float, size: float
) -> None:
    path = tmp_path / "model.onnx"
    calibration = [digits] if precision == "int8" else None
    report = export(MODEL, path, precision=precision, calibration=calibration, with_theta=True)
    lowered = report.precision
    assert lowered is not None and report.verification.passed
    assert lowered.size < size * lowered.float_size and abs(path.stat().st_size - lowered.size) < 200
    assert 0 < lowered.output_error < output
    assert lowered.grid_px is not None and 0 < lowered.grid_px < px
    assert lowered.agreement == 1.0 and lowered.compared >= 40

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)] == [1, 1, 1]
    assert model.opset_import[0].version == (22 if precision == "bf16" else 18)
    assert len(spatial_nodes(model)) == 1 and len(model.functions) == 1
    assert {prop.key: prop.value for prop in model.metadata_props}["stn_infer.precision"] == precision
    if precision == "bf16":
        assert lowered.eager_error is not None and 0 < lowered.eager_error < output
        assert any("onnxruntime's CPU provider has no bfloat16 operators" in note for note in report.notes)
        with pytest.raises(ModelError, match="its CPU execution provider has no bfloat16 operators"):
            OrtBackend(path)
        return
    # The measured error is that of the written file.
    summary = stn_infer.run(path, [digits], tmp_path / "predictions", format="npz")
    assert summary.ok == 40
    images = sample_images(40, (1, 28, 28))
    with torch.no_grad():
        expected = stn_infer.load_source(MODEL).module(torch.from_numpy(images)).numpy()
    for plugin in (False, None):
        backend = OrtBackend(path, plugin=plugin)
        assert backend.metadata.precision == precision
        found = backend.run({"input": images})["output"]
        assert np.abs(found - expected).max() / np.abs(expected).max() < 2 * output


def test_beyond_the_tolerance_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older file")
    arguments = ["export", MODEL, "-o", str(path), "--precision", "fp16", "--tolerance", "1e-7"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3 and result.stdout == ""
    assert f"{MODEL} in fp16: max relative output error" in result.stderr and "--tolerance" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert path.read_bytes() == b"an older file" and list(tmp_path.iterdir()) == [path]


def test_the_command_line_shows_size_and_errors(tmp_path: Path, digits: Path) -> None:
    path = tmp_path / "model.onnx"
    arguments = ["export", MODEL, "-o", str(path), "--precision", "fp16", "--calibrate", str(digits)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    header = next(index for index, line in enumerate(lines) if "same class" in line)
    assert lines[header + 1].split()[:3] == ["fp32", "121", "KiB"]
    assert lines[header + 2].split()[:2] == ["fp16", "68"] and " px " in lines[header + 2]
    assert lines[header + 3] == "compared with the fp32 file on 40 calibration samples", "without noise"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8"], "int8 is calibrated on your own images; add --calibrate PATH"),
        (["--calibrate", "."], "--calibrate applies only to reduced precision; add --precision int8"),
        (["--grid-tolerance", "1"], "--grid-tolerance applies only to reduced precision"),
        (["--precision", "fp8"], "fp8"),
        (["--precision", "fp16", "--tolerance", "inf"], "inf is not a finite number"),
    ],
)
def test_incompatible_options(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["export", MODEL, "-o", str(tmp_path / "m.onnx"), *options])
    assert result.exit_code == 2 and message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown precision 'half': expected one of fp32, fp16, bf16, int8"):
        export(MODEL, tmp_path / "m.onnx", precision="half")  # type: ignore[arg-type]


class Loud(nn.Module):
    """Features far beyond float16's range, scaled down by the next layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.before, self.after = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.scores = nn.Linear(4, 3)
        with torch.no_grad():
            self.before.weight.mul_(1e6)
            self.after.weight.mul_(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3] from [N, 1, 12, 12]."""
        return self.scores(self.after(self.before(x)).amax((2, 3)))  # type: ignore[no-any-return]


def test_overflowing_tensors_are_named_and_stay_in_float32(tmp_path: Path) -> None:
    report = export(
        "tests.precision.test_lower:Loud", tmp_path / "m.onnx", input_shapes=[(1, 12, 12)], precision="fp16"
    )
    text = " ".join(report.notes)
    assert "weight 'before.weight' reaches" in text and "activation 'conv2d' reaches" in text
    assert report.precision is not None and report.precision.output_error < 1e-3
    assert report.precision.grid_px is None
    found = OrtBackend(tmp_path / "m.onnx").run({"x": sample_images(4, (1, 12, 12))})["output"]
    assert np.isfinite(found).all()


REPORT = PrecisionReport(
    precision="fp16",
    size=600,
    float_size=1200,
    output_error=1e-3,
    grid_px=0.01,
    agreement=0.995,
    compared=200,
    eager_error=None,
    inputs="200 random",
    tolerance=5e-3,
    grid_tolerance=0.05,
    notes=(),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_error": 6e-3}, r"max relative output error 6.00e-03 vs. fp32, expected at most 0.005"),
        ({"output_error": math.nan}, "max relative output error nan"),
        ({"eager_error": 1.0}, "max relative output error in eager PyTorch 1.00e"),
        ({"grid_px": 0.06}, r"max grid error 0.06 px vs. fp32, expected at most 0.05 px"),
        ({"grid_px": math.inf}, "max grid error inf px"),
    ],
)
def test_each_error_is_checked_against_its_tolerance(change: dict[str, Any], message: str) -> None:
    REPORT.check("m")
    replace(REPORT, grid_px=None, agreement=None).check("m")
    with pytest.raises(VerificationError, match=message) as caught:
        replace(REPORT, **change).check("m")
    assert "--calibrate" in str(caught.value), "it was measured on noise"
    with pytest.raises(VerificationError) as caught:
        replace(REPORT, **change, on_own=True).check("m")
    assert "--calibrate" not in str(caught.value)


def test_the_table_without_a_sampler_and_scores() -> None:
    full, bare = (report.table().splitlines()[2] for report in (REPORT, replace(REPORT, grid_px=None, agreement=None)))
    assert " ".join(full.split()) == "fp16 1 KiB 1.0e-03 1.0e-02 px 99.5 % of 200"
    assert " ".join(bare.split()) == "fp16 1 KiB 1.0e-03 - -"


def test_eager_bf16_uses_the_given_grids() -> None:
    module = create("tutorial-stn").eval()
    images = sample_images(3, (1, 28, 28))
    identity = torch.nn.functional.affine_grid(torch.eye(2, 3).expand(3, 2, 3), (3, 1, 28, 28), align_corners=False)
    with torch.no_grad():
        expected = module.classifier(torch.from_numpy(images)).numpy()
    runner = EagerBf16(module)
    (same,) = runner.run([images], [identity.numpy()]) or [None]
    (moved,) = runner.run([images], [identity.numpy() + 0.5]) or [None]
    assert same is not None and moved is not None and same.dtype == np.float32
    scale = np.abs(expected).max()
    assert 1e-5 < np.abs(same - expected).max() / scale < 2e-2 < np.abs(moved - expected).max() / scale
    assert next(module.parameters()).dtype == torch.float32
    # Grids that do not fit are reported, not ignored.
    assert runner.run([images], []) is None
    assert runner.run([images], [identity.numpy()] * 2) is None
    assert runner.run([images], [identity.numpy()[:, :5]]) is None
