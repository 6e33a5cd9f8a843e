"""``stn-infer export``: export a PyTorch model to a portable ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import emit
from stn_infer.metadata import PRECISIONS, Functions, Precision
from stn_infer.progress import detail

if TYPE_CHECKING:
    from stn_infer.sources.reference import Weights


@click.command(
    cls=Command,
    examples=(
        "stn-infer export st-cnn-affine-rts -o model.onnx",
        "stn-infer export mypackage.nets:make --weights net.pt --input-shape 3,64,64 -o model.onnx",
        "stn-infer export net.toml -o model.onnx --precision int8 --calibrate images/",
    ),
)
@options.model_argument
@options.output_option("The ONNX file to write, once it is verified.")
@options.source_options
@click.option(
    "--dynamic-size",
    is_flag=True,
    help="Export dynamic height and width of image inputs; --input-shape is then an example.",
)
@options.functions_option
@click.option(
    "--input",
    "declared",
    multiple=True,
    metavar="NAME:TYPE:SHAPE",
    help="Type and shape of an input, without the batch, such as lengths:int64:20; replaces --input-shape; repeatable.",
)
@click.option(
    "--inputs",
    "examples",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Example inputs [N, ...] (.npz by name, .npy, .pt) instead of --input-shape; the file is verified on them.",
)
@click.option(
    "--fixed-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Export this batch size instead of a dynamic one; the default for models whose code needs one is 1.",
)
@click.option("--with-theta", is_flag=True, help="Add theta [N, D, K] of every spatial transformer as outputs.")
@options.preprocess_option
@options.labels_option
@options.activation_option
@options.embed_options
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Precision of weights and features; theta and the sampling stay in FP32.",
)
@click.option(
    "--calibrate",
    "calibration",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Your own images, folders or array files, for INT8 calibration and to measure the accuracy; repeatable.",
)
@click.option(
    "--tolerance",
    type=options.FiniteRange(min=0, min_open=True),
    help="Largest output error, relative to the output's scale.  [default: 1e-5; fp16 0.005, bf16 0.05, int8 0.1]",
)
@click.option(
    "--grid-tolerance",
    type=options.FiniteRange(min=0, min_open=True),
    metavar="PX",
    help="Largest distance of sampling points from FP32's in reduced precision, in pixels.  [default: fp16 0.05, "
    "bf16 0.25, int8 0.5]",
)
def command(
    model: str,
    output: Path,
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    dynamic_size: bool,
    functions: Functions,
    fixed_batch: int | None,
    declared: tuple[str, ...],
    examples: Path | None,
    with_theta: bool,
    preprocess: str | None,
    labels: tuple[str, ...] | None,
    activation: str | None,
    embed_preprocess: bool,
    source_size: tuple[int, int] | None,
    precision: Precision,
    calibration: tuple[Path, ...],
    tolerance: float | None,
    grid_tolerance: float | None,
) -> None:
    """Export a PyTorch model to a portable ONNX file.

    The file is verified before it is written. It runs in every runtime that supports ONNX's model-local functions,
    and its spatial transformers run fused where a kernel is registered; with --functions inline, it consists of plain
    operators. export takes every SOURCE but an ONNX file, which optimize rewrites.
    """
    from stn_infer.api.export import export

    report = export(
        model,
        output,
        weights=weights,
        input_shapes=input_shapes,
        allow_code=allow_code,
        with_theta=with_theta,
        preprocess=preprocess,
        labels=labels,
        activation=activation,
        embed_preprocess=embed_preprocess,
        source_size=source_size,
        tolerance=tolerance,
        precision=precision,
        calibration=calibration or None,
        grid_tolerance=grid_tolerance,
        dynamic_size=dynamic_size,
        functions=functions,
        fixed_batch=fixed_batch,
        inputs=declared,
        example_inputs=examples,
    )
    emit(report)
    detail(
        f"CPU time: {report.torch_seconds:.1f} s in torch.onnx.export, {report.own_seconds:.1f} s in stn-infer "
        "(fusion, verification)"
    )
