"""``stn-infer run``: batched predictions, with a status file of one row per input."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import SOME_FAILED, echo, emit, progress_bar
from stn_infer.cli.terminal.completion import complete_paths

if TYPE_CHECKING:
    from stn_infer.budget import Budget
    from stn_infer.sources.reference import Weights


def _output_names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None or value == "all":
        return None
    return () if value == "none" else tuple(filter(None, (name.strip() for name in value.split(","))))


def _gpus(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    numbers = [number.strip() for number in value.split(",")]
    if not all(re.fullmatch(r"\d{1,3}", number) for number in numbers):
        raise click.BadParameter(f"expected the numbers of GPUs, such as 0,1, not {value!r}")
    return tuple(f"cuda:{int(number)}" for number in numbers)


@click.command(
    cls=Command,
    examples=(
        "stn-infer run model.onnx images/ -o predictions",
        "stn-infer run model.onnx plates/ -o predictions --save-images pictures",
        "stn-infer run st-cnn-affine-rts inputs.npy -o predictions --format npz --batch-size 256",
        "stn-infer run model.onnx s3://bucket/photos -o s3://bucket/predictions --ray=10.0.0.1:6379",
    ),
)
@options.model_argument
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", shell_complete=complete_paths)
@options.source_options
@options.trial_options
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIRECTORY",
    help="Folder, or its URL, for predictions and status files; new or empty, unless --resume or --overwrite.",
)
@options.backend_option("ort", "eager", "openvino", "tensorrt", "tensorrt-rtx", "auto")
@options.device_option
@click.option(
    "--devices",
    metavar="N,...",
    callback=_gpus,
    help="Several GPUs of this machine that share the inputs, such as 0,1; instead of --device.",
)
@options.batch_size_option(64)
@click.option(
    "--format",
    type=click.Choice(["csv", "jsonl", "parquet", "npz"]),
    default="csv",
    show_default=True,
    help="File format of the predictions; npz stores outputs of any shape.",
)
@click.option("--resume", is_flag=True, help="Resume the interrupted job in the output folder.")
@click.option(
    "--check-inputs", is_flag=True, help="With --resume, compare the inputs' contents instead of their times."
)
@options.preprocess_option
@options.strict_option
@options.labels_option
@options.activation_option
@options.top_k_option
@click.option(
    "--threshold",
    type=options.FiniteRange(min=0, max=1),
    help="With sigmoid, the least confidence of a class that is listed.  [default: 0.5, or none with --top-k]",
)
@click.option(
    "--outputs",
    metavar="NAME,...",
    callback=_output_names,
    help="The model's own outputs that are stored: all, none, or names.  [default: all]",
)
@click.option("--with-theta", is_flag=True, help="Also store theta of every spatial transformer; the file stays.")
@click.option(
    "--save-images",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Save the warped images, and the inputs with the sampled regions and the prediction.",
)
@click.option("--overwrite", is_flag=True, help="Replace the job in the output folder, and its pictures.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads that read and predict.  [default: one per core]")
@click.option(
    "--shard-rows", type=click.IntRange(min=1), help="Inputs per output file.  [default: 4096, fewer for large outputs]"
)
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Spread the job over a Ray cluster: HOST:PORT, auto for the one on this machine, or without ADDRESS one that "
    "is started for the job.",
)
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    inputs: tuple[str, ...],
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    budget: Budget | None,
    output: str,
    backend: str,
    device: str,
    devices: tuple[str, ...] | None,
    batch_size: int,
    format: str,
    resume: bool,
    check_inputs: bool,
    preprocess: str | None,
    strict: bool,
    labels: tuple[str, ...] | None,
    activation: str | None,
    top_k: int | None,
    threshold: float | None,
    outputs: tuple[str, ...] | None,
    with_theta: bool,
    save_images: str | None,
    overwrite: bool,
    workers: int | None,
    shard_rows: int | None,
    ray: str | None,
) -> None:
    """Predict each INPUT and write the predictions.

    INPUT is an image, a folder, a glob pattern, an .npy or .npz file, a URL of these, @list.txt with one path per line,
    or - for such a list on stdin. A status file has one row per input; when some inputs could not be read, the exit
    code is 4. The backend auto, with its batch size and threads, is what stn-infer best found for the file on this
    machine.
    """
    from stn_infer.api.run import run

    # Pillow's warnings about files that it can read; the status file reports those that it cannot
    warnings.filterwarnings("ignore", module="PIL")
    summary = run(
        model,
        inputs,
        output,
        weights=weights,
        input_shapes=input_shapes,
        allow_code=allow_code,
        budget=budget,
        backend=backend,
        device=device,
        devices=devices,
        batch_size=batch_size if ctx.get_parameter_source("batch_size") is ParameterSource.COMMANDLINE else None,
        format=format,
        resume=resume,
        check_inputs=check_inputs,
        preprocess=preprocess,
        strict=strict,
        labels=labels,
        activation=activation,
        top_k=top_k,
        threshold=threshold,
        outputs=outputs,
        with_theta=with_theta,
        save_images=save_images,
        overwrite=overwrite,
        workers=workers,
        shard_rows=shard_rows,
        ray=ray,
        progress=progress_bar("predict"),
    )

    def text() -> None:
        echo(summary.headline)
        if save_images is not None:
            echo(f"pictures: {save_images}/warped*, {save_images}/inputs")

    emit(summary, text)
    for line in summary.lines()[1:]:
        echo(line, err=True)
    if summary.failed:
        ctx.exit(SOME_FAILED)
