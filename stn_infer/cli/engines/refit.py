"""``stn-infer refit``: put other weights into a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import emit, tell
from stn_infer.cli.terminal.verbosity import asked

if TYPE_CHECKING:
    from stn_infer.budget import Budget
    from stn_infer.sources.reference import Weights


@click.command(
    cls=Command,
    examples=(
        "stn-infer refit model.engine retrained.onnx -o retrained.engine",
        "stn-infer refit model.engine st-cnn-affine-rts --weights epoch-40.pt -o model.engine",
    ),
)
@click.argument("engine", type=click.Path(path_type=Path))
@options.model_argument
@options.source_options
@options.trial_options
@options.output_option("The engine to write; OUTPUT.json records what is in it.")
@options.gpu_option("load the engine")
def command(
    engine: Path,
    model: str,
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    budget: Budget | None,
    output: Path,
    device: str,
) -> None:
    """Put the weights of MODEL into a TensorRT engine.

    MODEL is the network that the engine was built from with 'build --refittable', trained further or again. This takes
    seconds, a build minutes.
    """
    from stn_infer.api.engines.refit import refit

    report = refit(
        engine,
        model,
        output,
        device=device,
        weights=weights,
        input_shapes=input_shapes,
        allow_code=allow_code,
        budget=budget,
    )
    emit(report)
    for warning in report.warnings if asked().verbose else ():
        tell(f"{report.sidecar.key.runtime}: {warning}")
