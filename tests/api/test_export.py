"""Export end to end; an error leaves no file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

import stn_infer
from stn_infer.api import export as exporter
from stn_infer.backends.ort import OrtBackend
from stn_infer.cli.main import main
from stn_infer.errors import ExportError, UsageError, VerificationError
from stn_infer.fusion.samplers import find_samplers, spatial_nodes
from stn_infer.metadata import Precision
from stn_infer.preprocess.rule import Preprocess
from tests.support.stn_styles import SHAPE, AffineGrid

FACTORY = "tests.support.stn_styles:AffineGrid"


class Classifier(AffineGrid):
    """Gray images [N, 1, 9, 7] to two scores."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.expand(-1, 2, -1, -1)).flatten(2).amax(2) * torch.tensor([1.0, -1.0])


GRAY = (1, *SHAPE[1:])


def test_export_writes_a_file_with_its_metadata(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(11)
    module = Classifier().eval()
    save_file({f"module.{name}": value for name, value in module.state_dict().items()}, weights)
    path = tmp_path / "model.onnx"
    report = stn_infer.export(
        "tests.api.test_export:Classifier",
        path,
        weights=weights,
        input_shapes=[GRAY],
        with_theta=True,
        preprocess=Preprocess.parse("gray,mean=0.1"),
        labels=["a", "b"],
    )
    assert report.size == path.stat().st_size
    assert report.outputs == ("output [batch, 2]", "theta [batch, 2, 3]")
    assert report.verification.passed and report.verification.reference == "float64"
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".part"] == []

    onnx.checker.check_model(str(path), full_check=True)
    backend = OrtBackend(path)
    assert backend.metadata.labels == ("a", "b")
    assert backend.metadata.preprocess == Preprocess("gray", mean=(0.1,))
    images = np.random.default_rng(0).standard_normal((5, *GRAY)).astype(np.float32)
    result = backend.run({"x": images})
    with torch.no_grad():
        np.testing.assert_allclose(result["output"], module(torch.from_numpy(images)).numpy(), atol=1e-5)
        theta = module.loc(torch.from_numpy(images).expand(-1, 2, -1, -1)).view(-1, 2, 3).numpy()
    np.testing.assert_allclose(result["theta"], theta, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preprocess": Preprocess("rgb")}, "channel"),
        ({"preprocess": Preprocess("gray", size=(5, 5))}, "5"),
        ({"labels": ["only one"]}, "1 label given for the 2 classes"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        exporter.export("tests.api.test_export:Classifier", tmp_path / "m.onnx", input_shapes=[GRAY], **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


class BatchOfOne(nn.Module):
    """Takes batches of one sample only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(1, *SHAPE).relu()


def test_a_model_for_one_sample_is_exported_with_a_batch_of_one(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = exporter.export("tests.api.test_export:BatchOfOne", path, input_shapes=[SHAPE])
    assert report.inputs == ("x [1, 2, 9, 7]",)
    assert "accepts a batch of 1 but not of 2" in report.notes[0] and "has a batch of 1" in report.notes[0]
    assert report.torch_seconds > 0 and report.own_seconds > 0
    x = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    (found,) = OrtBackend(path, threads=1).run({"x": x}).values()
    np.testing.assert_array_equal(found, x.clip(0))


def test_a_file_that_fails_verification_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older file")
    build = exporter.build_portable

    def tampered(*arguments: object) -> object:
        built = build(*arguments)  # type: ignore[arg-type]
        (node,) = [node for node in built.model.graph.node if node.op_type == "SpatialTransformer"]
        next(a for a in node.attribute if a.name == "align_corners").i = 1
        return built

    monkeypatch.setattr(exporter, "build_portable", tampered)
    with pytest.raises(VerificationError, match=r"sampler 0 .* points are wrong|output 'output' is off by"):
        exporter.export(FACTORY, path, input_shapes=[SHAPE])
    assert path.read_bytes() == b"an older file"
    result = CliRunner().invoke(main, ["export", FACTORY, "--input-shape", "2,9,7", "-o", str(path)])
    assert result.exit_code == 3
    assert path.read_bytes() == b"an older file"


def test_theta_needs_a_fused_transformer(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no theta to add"):
        exporter.export(
            "tests.support.stn_styles:ClampedGrid", tmp_path / "m.onnx", input_shapes=[SHAPE], with_theta=True
        )


class TwoInputs(nn.Module):
    """Two inputs; outputs by key, one of them integers."""

    def __init__(self) -> None:
        super().__init__()
        self.base = AffineGrid()

    def forward(self, image: Tensor, gain: Tensor) -> dict[str, Tensor]:
        warped = self.base(image) * gain[:, :, None, None]
        return {"warped": warped, "brightest": warped.mean((2, 3)).argmax(1)}


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    report = exporter.export("tests.api.test_export:TwoInputs", path, input_shapes=[SHAPE, (1,)])
    assert report.inputs == ("image [batch, 2, 9, 7]", "gain [batch, 1]")
    assert report.outputs == ("warped [batch, 2, 9, 7]", "brightest [batch]")
    assert len(spatial_nodes(onnx.load(path))) == 1


class FixedBatch(nn.Module):
    """Takes batches of two samples only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1).relu()


def test_a_batch_that_the_output_contradicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected the batch on axis 0"):
        exporter.export("tests.api.test_export:FixedBatch", tmp_path / "m.onnx", input_shapes=[SHAPE])


def test_a_given_fixed_batch(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    arguments = ["export", "tests.api.test_export:FixedBatch", "--input-shape", "2,9,7", "--fixed-batch", "2", "-v"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "x [2, 2, 9, 7] -> output [2, 126]" in result.output
    steps = ("loading tests", "exporting FixedBatch", "fusing", "verifying: running float64", "verifying: comparing")
    pattern = r".*\n.* s  ".join(steps)
    pattern += r".*\n.* s  CPU time: \d+\.\d s in torch.onnx.export, \d+\.\d s in stn-infer"
    assert re.search(pattern, result.stderr)
    x = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    (found,) = OrtBackend(path, threads=1).run({"x": x}).values()
    np.testing.assert_array_equal(found, x.reshape(3, -1).clip(0))


class Float32Only(nn.Module):
    """Raises an error for any type but float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return x.flatten(1).relu()


def test_a_model_without_float64_is_compared_in_float32(tmp_path: Path) -> None:
    report = exporter.export("tests.api.test_export:Float32Only", tmp_path / "m.onnx", input_shapes=[SHAPE])
    assert report.verification.reference == "float32"
    assert report.verification.tolerance == 1e-4
    assert any("float64" in note for note in report.notes)


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    result = CliRunner().invoke(main, ["export", FACTORY, "--input-shape", "2,9,7", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert (
        "fused GridSample into stn::SpatialTransformer (affine, 6 parameters from " in result.output
        and "verified: max relative output error " in result.output
    )
    assert CliRunner().invoke(main, ["verify", str(path), "--source", FACTORY]).exit_code == 0
    torch.save({key: value * 1.01 for key, value in AffineGrid().state_dict().items()}, tmp_path / "other.pt")
    others = ["--weights", str(tmp_path / "other.pt")]
    checked = CliRunner().invoke(main, ["verify", str(path), "--source", FACTORY, *others])
    assert checked.exit_code == 3
    assert checked.stderr.startswith("error: ")


class Random(AffineGrid):
    """Dropout as it is often written, active in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5))


def test_a_model_with_random_outputs_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(
        VerificationError, match="returns different outputs for the same inputs: check its forward for dropout"
    ):
        stn_infer.export("tests.api.test_export:Random", path, input_shapes=[SHAPE])
    assert not path.exists()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_functions_can_be_inlined(precision: Precision, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = stn_infer.export(
        FACTORY, path, input_shapes=[SHAPE], precision=precision, with_theta=True, functions="inline"
    )
    assert report.verification.passed and report.findings[0].fused
    assert any(note.startswith("written with plain operators") for note in report.notes)
    written = onnx.load(path)
    assert not written.functions and [entry.domain for entry in written.opset_import] == [""]
    assert [value.name for value in written.graph.output] == ["output", "theta"]
    kinds = {node.op_type for node in written.graph.node}
    assert "GridSample" in kinds and "CastLike" not in kinds and ("Cast" in kinds) == (precision == "fp16")
    assert find_samplers(written) and len({node.name for node in written.graph.node}) == len(written.graph.node)
