"""``stn-infer inspect``: show what is in a TensorRT engine."""

from __future__ import annotations

from pathlib import Path

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import emit, tell
from stn_infer.cli.terminal.verbosity import asked


@click.command(
    cls=Command,
    examples=("stn-infer inspect model.engine", "stn-infer inspect model.engine --json"),
)
@click.argument("engine", type=click.Path(path_type=Path))
@options.gpu_option("load the engine")
def command(engine: Path, device: str) -> None:
    """Show what is in a TensorRT engine.

    What built it and for which GPU; its inputs, outputs and profiles; its layers with their precisions, the ONNX nodes
    that were fused into each, and the plugins. Engines of other tools are shown too.
    """
    from stn_infer.api.engines.inspect import inspect_engine

    report = inspect_engine(engine, device)
    emit(report)
    for warning in report.warnings if asked().verbose else ():
        tell(f"{report.header.runtime}: {warning}")
