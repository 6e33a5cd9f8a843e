"""``stn-infer export``: a trained model to a portable ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options

if TYPE_CHECKING:
    from stn_infer.exporter import ExportReport


@click.command()
@options.source_argument
@options.output_option("The ONNX file to write; it appears only after it was verified.")
@options.weights_option
@options.input_shape_option
@click.option("--with-theta", is_flag=True, help="Add theta [N, D, K] of every spatial transformer as outputs.")
@options.preprocess_option
@options.labels_option
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="On the outputs' error over their scale.  [default: 1e-5]",
)
def command(
    source: str,
    output: Path,
    weights: Path | None,
    input_shape: tuple[str, ...],
    with_theta: bool,
    preprocess: str | None,
    labels: tuple[str, ...] | None,
    tolerance: float | None,
) -> None:
    """Export SOURCE to a portable ONNX file.

    SOURCE is a shipped model's name, a recipe (.toml), a .pt2 file or package.module:factory, the current folder being
    importable. The file runs in every ONNX runtime; its spatial transformers run fused where a kernel is registered.
    """
    from stn_infer.exporter import export
    from stn_infer.metadata import Preprocess
    from stn_infer.sources import parse_input_shapes

    report = export(
        source,
        output,
        weights=weights,
        input_shapes=parse_input_shapes(input_shape) or None,
        with_theta=with_theta,
        preprocess=None if preprocess is None else Preprocess.parse(preprocess),
        labels=labels,
        tolerance=tolerance,
    )
    click.echo(_text(report))


def _text(report: ExportReport) -> str:
    from stn_infer.graph.spatial import describe

    lines = [
        *(f"note: {note}" for note in report.notes),
        describe(report.findings),
        f"verified: {report.verification.summary()} (inputs: {report.verification.inputs})",
        f"wrote {report.path} ({report.size / 1024:.0f} KiB): "
        f"{'; '.join(report.inputs)} -> {'; '.join(report.outputs)}",
    ]
    return "\n".join(lines)
