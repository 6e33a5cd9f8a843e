"""``stn-infer verify``: an ONNX file against its source in float64."""

from __future__ import annotations

from pathlib import Path

import click

from stn_infer.cli import options


@click.command()
@click.argument("model", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@click.option("--source", help="What it was exported from; known already for shipped models.")
@options.weights_option
@options.input_shape_option
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="On the outputs' error over their scale.  [default: 1e-5]",
)
def command(
    model: Path, source: str | None, weights: Path | None, input_shape: tuple[str, ...], tolerance: float | None
) -> None:
    """Compare MODEL.onnx in onnxruntime with its PyTorch source in float64: outputs, and grids in pixels.

    Exit code 3 when it is off by more than the tolerance.
    """
    from stn_infer.sources import parse_input_shapes
    from stn_infer.verification import verify

    result = verify(
        model,
        source=source,
        weights=weights,
        input_shapes=parse_input_shapes(input_shape) or None,
        tolerance=tolerance,
    )
    for note in result.notes:
        click.echo(f"note: {note}")
    click.echo(
        f"reference: {result.reference} eager PyTorch; inputs: {result.inputs}; tolerance {result.tolerance:.0e}"
    )
    for output in result.outputs:
        click.echo(f"output {output.name}: max error {output.max_error:.2e} (scale {output.scale:.3g})")
    for grid in result.grids:
        flips = f", {grid.flips} of {grid.points} samples flipped" if grid.mode == "nearest" else ""
        click.echo(f"sampler {grid.sampler} ({grid.mode}): grid within {grid.max_px:.2e} px{flips}")
    result.check(str(model))
    click.echo("passed")
