"""``stn-infer build``: build a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import emit
from stn_infer.progress import detail

if TYPE_CHECKING:
    from stn_infer.budget import Budget
    from stn_infer.sources.reference import Weights


@click.command(
    cls=Command,
    examples=(
        "stn-infer build model.onnx -o model.engine --profile 1:64:256",
        "stn-infer build model.onnx -o model.engine --profile 1:1:1 --profile 2:64:256",
        "stn-infer build crops.onnx -o crops.engine --profile batch=1:4:8 --profile boxes_batch=1:100:1000",
        "stn-infer build st-cnn-affine-rts -o model.engine --runtime tensorrt-rtx --target sm89",
    ),
)
@options.model_argument
@options.source_options
@options.trial_options
@options.output_option("The engine to write; OUTPUT.json records what it was built from.")
@click.option(
    "--runtime",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="Runtime that will run the engine.",
)
@click.option(
    "--target",
    metavar="smNN",
    help="GPU architecture to build for; TensorRT-RTX can build for one that is not in this machine.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="[NAME=]MIN:OPT:MAX",
    help="Batch sizes, or whole shapes (1x3x64x64:...), of the dynamic inputs; with NAME, of one input or of one "
    "dynamic axis, such as boxes_batch=1:100:1000; repeatable. The same NAME, or none, again begins another "
    "optimization profile of the engine.  [default: 1:64:256]",
)
@click.option(
    "--plugin/--native",
    default=None,
    help="Run spatial transformers in the plugin or in TensorRT's own layers.  [default: the plugin, if it is built]",
)
@click.option("--tf32", is_flag=True, help="Allow TF32; it moves samples by 0.1 pixels at a width of 1,000.")
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="0 builds fastest, 5 tries the most kernels.  [default: TensorRT's, 3]",
)
@click.option(
    "--workspace",
    type=options.FiniteRange(0, min_open=True),
    metavar="GIB",
    help="GiB of device memory that a layer may use while it runs.  [default: all]",
)
@click.option("--refittable", is_flag=True, help="Let 'stn-infer refit' replace the weights.")
@click.option(
    "--hardware",
    type=click.Choice(["ampere+", "same-compute-capability"]),
    help="Build an engine for other GPUs, too: Ampere and newer, or any of the same compute capability; it may be "
    "slower.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Build an engine that newer versions of TensorRT run; it has native layers, and may be slower.",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the times of kernels, which is read and extended.  [default: one in the engine cache]",
)
@options.gpu_option("build")
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Folder of the engine cache.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Build even if the same engine exists; without --timing-cache, kernels are measured again.",
)
def command(
    model: str,
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    budget: Budget | None,
    output: Path,
    runtime: str,
    target: str | None,
    profiles: tuple[str, ...],
    plugin: bool | None,
    tf32: bool,
    optimization_level: int | None,
    workspace: float | None,
    refittable: bool,
    hardware: str | None,
    version_compatible: bool,
    timing_cache: Path | None,
    device: str,
    cache: Path | None,
    rebuild: bool,
) -> None:
    """Build a TensorRT engine.

    An engine of the same model, GPU, runtime, plugin and options is reused; the reason is printed either way.
    """
    from stn_infer.api.engines.build import build
    from stn_infer.backends.tensorrt.options import BuildOptions

    report = build(
        model,
        output,
        BuildOptions.parse(
            runtime,
            target,
            profiles,
            plugin,
            tf32,
            device,
            optimization_level=optimization_level,
            workspace=workspace,
            refittable=refittable,
            hardware=hardware,
            version_compatible=version_compatible,
            timing_cache=timing_cache,
        ),
        weights=weights,
        input_shapes=input_shapes,
        allow_code=allow_code,
        budget=budget,
        cache=cache,
        rebuild=rebuild,
    )
    emit(report)
    for warning in report.warnings:
        detail(f"{report.sidecar.key.runtime}: {warning}")
