"""Outputs that depend on the other samples of a batch: found by the function, export, verify, lint and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import stn_infer
from stn_infer.cli.main import main
from stn_infer.repairs.dependence import dependence_note, dependent_outputs
from tests.support.batch_axes import KINDS, file_of


class Standardized(nn.Module):
    """Statistics over the batch in one output of two."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"own": x * 2, "mixed": (x - x.mean(0)) / (x.var(0, correction=0) + 1e-3).sqrt()}


@pytest.mark.parametrize("exact", [True, False])
def test_function(exact: bool) -> None:
    dtype = np.float64 if exact else np.float32
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)

    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:  # type: ignore[type-arg]
        (given,) = inputs
        return [
            given + 1e-5 * given.mean(0) * exact,
            given - given.mean(0),
            given.sum(1),
            given.mean()[None],
            given * 1,
        ]

    wanted = (0, 1) if exact else (1,)
    assert dependent_outputs(run, [x[:1]], 3, run([x]), exact=exact) == wanted
    assert dependent_outputs(run, [x[:1]], 1, run([x[:1]]), exact=exact) == ()


def test_outputs_with_other_rows_than_the_samples_are_not_compared() -> None:
    x = np.arange(6.0).reshape(3, 2)
    assert dependent_outputs(lambda inputs: [np.tile(x, (2, 1))], [x[:1]], 3, [np.tile(x, (2, 1))], exact=True) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_of_all_samples_is_not_cut(kind: str, tmp_path: Path) -> None:
    onnx.save(file_of(kind), tmp_path / "m.onnx")
    assert not any("batch-dependent" in note for note in stn_infer.verify(tmp_path / "m.onnx", backends=["ort"]).notes)
    assert [each for each in stn_infer.lint(tmp_path / "m.onnx").findings if each.code == "batch-dependent"] == []


def test_nan_and_infinity_are_no_difference() -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1], [1, 2, 3, 4]])
    assert dependent_outputs(lambda inputs: list(inputs), [x[:1]], 2, [x], exact=True) == ()


@pytest.mark.slow
def test_export_verify_lint_and_run_tell(tmp_path: Path) -> None:
    path, note = tmp_path / "m.onnx", dependence_note(["mixed"])
    assert note.startswith("batch-dependent: output 'mixed' of a sample depends on")
    report = stn_infer.export("tests.repairs.test_dependence:Standardized", path, input_shapes=[(4,)])
    assert note in report.notes
    assert note in stn_infer.verify(path, backends=["ort"]).notes
    (finding,) = [each for each in stn_infer.lint(path).findings if each.code == "batch-dependent"]
    assert (finding.tensor, finding.severity) == ("mixed", "warning")
    np.save(tmp_path / "x.npy", torch.randn(5, 4).numpy())
    arguments = ["run", str(path), str(tmp_path / "x.npy"), "--format", "npz"]
    told = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "a")])
    assert told.exit_code == 0 and note in told.output
    silent = CliRunner().invoke(main, [*arguments, "--batch-size", "1", "-o", str(tmp_path / "b")])
    assert silent.exit_code == 0 and "batch-dependent" not in silent.output
