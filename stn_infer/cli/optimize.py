"""``stn-infer optimize``: fuse the spatial transformers of any ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import emit
from stn_infer.cli.terminal.completion import complete_files
from stn_infer.metadata import Functions

if TYPE_CHECKING:
    from stn_infer.budget import Budget


@click.command(
    cls=Command,
    examples=(
        "stn-infer optimize model.onnx -o fused.onnx",
        "stn-infer optimize model.onnx -o fused.onnx --no-fix --input-shape image=1,3,224,224",
    ),
)
@click.argument("model", metavar="IN.onnx", shell_complete=complete_files(".onnx"))
@options.output_option("The ONNX file to write, once it is compared with the original.")
@click.option("--fix/--no-fix", default=True, show_default=True, help="Also fix what lint marks with [*].")
@options.functions_option
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="NAME=N,C,H,W",
    help="Shape for the comparison, for an input with dynamic sizes, with or without the batch; repeatable.",
)
@click.option(
    "--tolerance",
    type=options.FiniteRange(min=0, min_open=True),
    help="Largest output error, relative to the output's scale.  [default: 1e-5]",
)
@options.preprocess_option
@options.labels_option
@options.activation_option
@options.embed_options
@options.trial_options
def command(
    model: str,
    output: Path,
    fix: bool,
    functions: Functions,
    input_shapes: tuple[str, ...],
    tolerance: float | None,
    preprocess: str | None,
    labels: tuple[str, ...] | None,
    activation: str | None,
    embed_preprocess: bool,
    source_size: tuple[int, int] | None,
    budget: Budget | None,
) -> None:
    """Fuse the spatial transformers of any ONNX file.

    A GridSample whose grid is provably linear in its parameters becomes one stn op; others stay, and the reason is
    printed. The result is written only if its outputs agree with the original's on random inputs in onnxruntime (exit
    code 3 otherwise). External data stay external, as OUT.onnx.data.
    """
    from stn_infer.api.optimize import optimize
    from stn_infer.proto.inputs import parse_named_shapes

    report = optimize(
        model,
        output,
        fix=fix,
        tolerance=tolerance,
        input_shapes=parse_named_shapes(input_shapes) or None,
        functions=functions,
        preprocess=preprocess,
        labels=labels,
        activation=activation,
        embed_preprocess=embed_preprocess,
        source_size=source_size,
        budget=budget,
    )
    emit(report)
