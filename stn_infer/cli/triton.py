"""``stn-infer triton``: write a model as a folder that Triton Inference Server serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import emit

if TYPE_CHECKING:
    from stn_infer.budget import Budget
    from stn_infer.sources.reference import Weights


@click.command(
    cls=Command,
    examples=(
        "stn-infer triton model.onnx -o models --check",
        "stn-infer triton model.onnx -o models --name digits --device cuda --instances 2",
        "stn-infer triton model.onnx -o models --platform tensorrt --engine model.engine",
    ),
)
@options.model_argument
@options.source_options
@options.trial_options
@options.output_option("The model repository; made if it is not there.", folder=True)
@click.option("--name", help="The model's name in the repository.  [default: of the file or source]")
@click.option(
    "--platform",
    type=click.Choice(["python", "onnxruntime", "tensorrt"]),
    default="python",
    show_default=True,
    help="Triton's backend: python runs onnxruntime and adds prediction, label and confidence.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the server runs the model; tensorrt is always on GPUs.",
)
@click.option(
    "--engine",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The engine of SOURCE, for the platform tensorrt.",
)
@click.option("--max-batch", type=click.IntRange(min=1), help="Largest batch.  [default: 64, or the engine's]")
@click.option(
    "--queue-delay",
    type=click.IntRange(min=0, max=10_000_000),
    default=0,
    show_default=True,
    metavar="MICROSECONDS",
    help="How long a request waits for others to join its batch; those that arrive while the model runs always do.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Instances of the model, for each GPU or on the CPU.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of each instance on a CPU.  [default: one per core for one instance, else 1]",
)
@options.labels_option
@options.activation_option
@options.top_k_option
@click.option(
    "--served-at",
    metavar="PATH",
    help="The repository's absolute path on the server, where it differs from the path here.",
)
@click.option("--overwrite", is_flag=True, help="Replace the model of that name in the repository.")
@click.option(
    "--check",
    is_flag=True,
    help="Before it is written, serve it by this machine's tritonserver and compare its answers with those of run.",
)
def command(
    model: str,
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    budget: Budget | None,
    output: Path,
    name: str | None,
    platform: Literal["python", "onnxruntime", "tensorrt"],
    device: Literal["cpu", "cuda"],
    engine: Path | None,
    max_batch: int | None,
    queue_delay: int,
    instances: int,
    threads: int | None,
    labels: tuple[str, ...] | None,
    activation: str | None,
    top_k: int | None,
    served_at: str | None,
    overwrite: bool,
    check: bool,
) -> None:
    """Write a model as a folder that Triton Inference Server serves.

    The folder has the model, its config.pbtxt, the plugin library and a README with the lines that start and ask the
    server. A file of `export --embed-preprocess` takes uint8 pictures there.
    """
    from stn_infer.api.triton import triton

    emit(
        triton(
            model,
            output,
            name=name,
            platform=platform,
            device=device,
            engine=engine,
            max_batch=max_batch,
            queue_delay=queue_delay,
            instances=instances,
            threads=threads,
            top_k=top_k,
            labels=labels,
            activation=activation,
            served_at=served_at,
            overwrite=overwrite,
            check=check,
            weights=weights,
            input_shapes=input_shapes,
            allow_code=allow_code,
            budget=budget,
        )
    )
