"""``stn-infer optimize``: any ONNX file, its sampling grids fused."""

from __future__ import annotations

from pathlib import Path

import click

from stn_infer.cli import options


@click.command()
@click.argument("model", metavar="IN.onnx")
@options.output_option("The ONNX file to write; it appears only after it was compared with the original.")
@click.option(
    "--fix/--no-fix", default=True, show_default=True, help="Also repair what lint marks with [*] beside the grids."
)
@click.option(
    "--input-shape",
    multiple=True,
    metavar="NAME=N,C,H,W",
    help="Size of an input that the file leaves open, to compare at; without N for one sample; repeat for several.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="On each output's error over its scale.  [default: 1e-5]",
)
def command(model: str, output: Path, fix: bool, input_shape: tuple[str, ...], tolerance: float | None) -> None:
    """Rewrite IN.onnx so that sampling grids which are linear in their parameters run as one fused op.

    Grids that are not provably so are left as they are, with the reason. The result is compared with the original in
    onnxruntime on random inputs, and written only where it agrees (else exit code 3). External data stay external,
    as OUT.onnx.data.
    """
    from stn_infer.api.optimize import describe, optimize
    from stn_infer.proto.inputs import parse_named_shapes

    report = optimize(model, output, fix=fix, tolerance=tolerance, input_shapes=parse_named_shapes(input_shape) or None)
    click.echo(describe(report))
