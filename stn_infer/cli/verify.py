"""``stn-infer verify``: compare every backend with a float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import echo, emit, show_tables
from stn_infer.cli.terminal.completion import complete_files
from stn_infer.cli.terminal.verbosity import asked
from stn_infer.text_tables import Table

if TYPE_CHECKING:
    from stn_infer.budget import Budget
    from stn_infer.sources.reference import Weights
    from stn_infer.verification.report import BackendReport, Verification

_COLUMNS = ("backend", "", "theta px", "grid px", "sampler error", "invariants", "output error", "runtime or reason")


@click.command(
    cls=Command,
    examples=(
        "stn-infer verify model.onnx",
        "stn-infer verify fused.onnx --against model.onnx --backend ort --backend ort-fused",
    ),
)
@options.model_argument
@options.source_options
@options.trial_options
@options.original_option
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE.onnx",
    shell_complete=complete_files(".onnx"),
    help="ONNX file to use as the reference instead of the source.",
)
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Your own images, folders or array files to compare on; repeatable.  [default: noise and digits]",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="eager, eager-fused, ort, ort-fused, ort-rounded, openvino, openvino-fused, tensorrt or tensorrt-rtx; "
    "repeatable.  [default: all]",
)
@options.device_option
@click.option(
    "--tolerance",
    type=options.FiniteRange(min=0, min_open=True),
    help="Largest output error, relative to the output's scale.  [default: 1e-5 with a source, 1e-4 without]",
)
def command(
    model: str,
    source: str | None,
    against: Path | None,
    inputs: tuple[Path, ...],
    backends: tuple[str, ...],
    device: str,
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    budget: Budget | None,
    tolerance: float | None,
) -> None:
    """Compare every backend with a float64 reference: sampling grids in pixels, samplers, outputs.

    The reference is the PyTorch source in float64; for an ONNX file of unknown origin, the file itself in float64.
    Exit code 3 when a backend is wrong, 1 when none could run the file. ort-rounded runs a bfloat16 file, which
    onnxruntime cannot run on a CPU, in float32 with every value rounded.
    """
    from stn_infer.api.verify import verify

    result = verify(
        model,
        source=source,
        weights=weights,
        input_shapes=input_shapes,
        allow_code=allow_code,
        budget=budget,
        tolerance=tolerance,
        backends=backends or None,
        device=device,
        against=against,
        inputs=inputs or None,
    )
    emit(result, lambda: _print(result))
    result.check(model)
    if asked().json:
        return
    if result.emulated:
        echo("passed, with half precision emulated in float32: no backend on this machine runs the file itself")
    else:
        echo("passed" if result.ran_the_file else "passed in PyTorch only: no backend on this machine runs the file")


def _print(result: Verification) -> None:
    for note in result.notes:
        echo(f"note: {note}")
    echo(f"reference: {result.title}; inputs: {result.inputs}; tolerance {result.tolerance:.0e}")
    rows = [_row(report) for report in result.backends]
    show_tables(Table(headings=_COLUMNS, rows=rows, text=True, optional=("invariants",)))
    for report in result.ran:
        for failure in report.failures:
            echo(f"{report.backend}: {failure}")


def _row(report: BackendReport) -> tuple[str, ...]:
    if report.status == "unavailable" or not report.outputs:
        what = "-" if report.status == "unavailable" else "failed"
        return (report.backend, what, "", "", "", "", "", report.reason)
    grids, checks = report.grids, report.checks
    flips = sum(grid.flips for grid in grids)
    sampler = f"{max((check.deviation.max_error for check in checks), default=0.0):.1e}" if checks else "-"
    if any(grid.mode == "nearest" for grid in grids):
        sampler += f", {flips} of {sum(grid.points for grid in grids)} samples flipped"
    held = [held for check in checks for held in check.invariants.values()]
    return (
        report.backend,
        report.status,
        f"{max(grid.theta_px for grid in grids):.1e}" if grids else "-",
        f"{max(grid.max_px for grid in grids):.1e}" if grids else "-",
        sampler,
        f"{sum(held)} of {len(held)}" if held else "-",
        f"{max(output.max_error for output in report.outputs):.1e}",
        report.about,
    )
