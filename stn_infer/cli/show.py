"""``stn-infer show``: draw the regions that a model samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import SOME_FAILED, echo, echo_failures, emit, tell
from stn_infer.cli.terminal.completion import complete_paths

if TYPE_CHECKING:
    from stn_infer.budget import Budget
    from stn_infer.sources.reference import Weights


@click.command(
    cls=Command,
    examples=(
        "stn-infer show st-cnn-affine-rts images/ -o picture.png",
        "stn-infer show model.onnx inputs.npy -o picture.svg --count 4",
        "stn-infer show model.onnx photos/ -o picture.png --sample 8 --labels classes.txt",
        "stn-infer show st-cnn-affine-rts images/ -o moving.gif --count 4",
        "stn-infer show mine.toml images/ -o training.webp --snapshots work/mine-model-0.snapshots",
    ),
)
@options.model_argument
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", shell_complete=complete_paths)
@options.source_options
@options.trial_options
@options.output_option("The picture to write: .png, .svg or .pdf; .gif or .webp: an animation.")
@click.option(
    "--count", type=click.IntRange(min=1, max=64), help="Draw the first inputs, at most this many.  [default: 8]"
)
@click.option("--sample", type=click.IntRange(min=1, max=64), help="Draw so many inputs, chosen at random, instead.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the random choice.  [default: 0]")
@click.option("--frames", type=click.IntRange(min=3, max=500), help="Of moving inputs.  [default: 24]")
@click.option(
    "--frame-ms",
    type=click.IntRange(min=20, max=5000),
    help="Time per frame.  [default: 80; 250 with --snapshots]",
)
@click.option(
    "--snapshots",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Animate a training run: a checkpoint of SOURCE per frame, or a folder of them; repeatable, in order.",
)
@options.preprocess_option
@options.strict_option
@options.labels_option
@options.activation_option
@options.top_k_option
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    inputs: tuple[str, ...],
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    budget: Budget | None,
    output: Path,
    count: int | None,
    sample: int | None,
    seed: int | None,
    frames: int | None,
    frame_ms: int | None,
    snapshots: tuple[Path, ...],
    preprocess: str | None,
    strict: bool,
    labels: tuple[str, ...] | None,
    activation: str | None,
    top_k: int | None,
) -> None:
    """Draw each INPUT with the region that the model samples, the warped output and the prediction.

    The region is a quadrilateral or a mesh; its dot marks the corner that becomes the top left. Several regions of one
    image have the colors of the frames around what is sampled. Of volumes, slices are drawn with the sampled box.

    INPUT is as for run; a CSV file or a folder with one subfolder per class, as for eval, marks predictions as right or
    wrong. An input that cannot be read has a panel with the error; then the exit code is 4. A .gif or .webp file shows
    the inputs as they turn, grow and move, or with --snapshots how the regions change in training.
    """
    from stn_infer.api.show import show

    report = show(
        model,
        inputs,
        output,
        weights=weights,
        input_shapes=input_shapes,
        allow_code=allow_code,
        budget=budget,
        count=count,
        sample=sample,
        seed=seed,
        frames=frames,
        frame_ms=frame_ms,
        snapshots=snapshots or None,
        preprocess=preprocess,
        strict=strict,
        labels=labels,
        activation=activation,
        top_k=top_k,
    )
    emit(report, lambda: echo(*report.results))
    echo_failures(report.failures, len(report.failures))
    tell(*(f"note: {note}" for note in report.notes))
    if report.failures:
        ctx.exit(SOME_FAILED)
