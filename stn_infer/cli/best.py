"""``stn-infer best``: write the fastest verified file of a model on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import emit
from stn_infer.progress import step

if TYPE_CHECKING:
    from stn_infer.budget import Budget
    from stn_infer.sources.reference import Weights


@click.command(
    cls=Command,
    examples=(
        "stn-infer best model.onnx -o fastest.onnx",
        "stn-infer best st-cnn-affine-rts -o fastest.onnx --latency-ms 20 --max-error 1e-3",
        "stn-infer best model.onnx -o fastest.onnx --inputs photos/ --time-limit 600",
    ),
)
@options.model_argument
@options.source_options
@options.trial_options
@options.output_option("The ONNX file to write.")
@click.option(
    "--latency-ms",
    type=options.FiniteRange(min=0, min_open=True),
    metavar="MS",
    help="Largest median latency of a batch.  [default: any]",
)
@click.option(
    "--max-error",
    type=options.FiniteRange(min=0, min_open=True),
    help="Largest output error, relative to the output's scale.  [default: by precision]",
)
@click.option(
    "--time-limit",
    type=options.FiniteRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Leave out what does not fit; conversion and the first measurement are not interrupted.",
)
@options.batch_sizes_option("1,16,64")
@click.option(
    "--threads",
    callback=options.integers,
    metavar="N,...",
    help="Threads per call that are tried.  [default: 1 and one per physical core]",
)
@options.device_option
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Your own images, folders or array files, on which int8 is calibrated and precisions compared; repeatable.  "
    "[default: digits or noise, no int8]",
)
def command(
    model: str,
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    budget: Budget | None,
    output: Path,
    latency_ms: float | None,
    max_error: float | None,
    time_limit: float,
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    device: str,
    inputs: tuple[Path, ...],
) -> None:
    """Write the fastest file of a model on this machine.

    Precisions, runtimes, batch sizes and threads are tried. Each file is verified, and the one with the most samples
    per second within the bounds is written. `run --backend auto` then runs it in the same way. Exit code 3 when nothing
    meets the bounds.
    """
    from stn_infer.api.best import best

    emit(
        best(
            model,
            output,
            latency_ms=latency_ms,
            max_error=max_error,
            time_limit=time_limit,
            batch_sizes=batch_sizes,
            threads=threads or None,
            device=device,
            inputs=inputs or None,
            weights=weights,
            input_shapes=input_shapes,
            allow_code=allow_code,
            budget=budget,
            say=step,
        )
    )
