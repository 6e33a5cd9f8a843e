"""``stn-infer eval``: score a model's predictions of labeled samples."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import SOME_FAILED, echo, echo_failures, emit, progress_bar, show_tables, table_console
from stn_infer.cli.terminal.completion import complete_source
from stn_infer.text_tables import Table, fits

if TYPE_CHECKING:
    from stn_infer.api.evaluate import Comparison, Evaluation
    from stn_infer.budget import Budget
    from stn_infer.pipeline.scores import Classification
    from stn_infer.sources.reference import Weights

_WIDEST = 20  # classes of a confusion matrix that a terminal shows


@click.command(
    cls=Command,
    examples=(
        "stn-infer eval model.onnx photos/",
        "stn-infer eval model.fp16.onnx labels.csv --json",
        "stn-infer eval model.onnx photos/ --against model.int8.onnx --backend ort --backend openvino",
    ),
)
@options.model_argument
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@options.source_options
@options.trial_options
@click.option(
    "--against",
    multiple=True,
    metavar="SOURCE",
    shell_complete=complete_source(),
    help="Another model to compare with on the same samples, such as an INT8 file; repeatable.",
)
@click.option(
    "--backend",
    "backends",
    type=click.Choice(["ort", "eager", "openvino", "tensorrt", "tensorrt-rtx"]),
    multiple=True,
    default=("ort",),
    show_default="ort",
    help="Runtime that runs the model; several are compared.",
)
@options.device_option
@options.batch_size_option(64)
@options.preprocess_option
@options.strict_option
@options.labels_option
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    metavar="K",
    help="Also report how often the label is among the K best classes.",
)
@options.threads_option
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    data: Path,
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    budget: Budget | None,
    against: tuple[str, ...],
    backends: tuple[str, ...],
    device: str,
    batch_size: int,
    preprocess: str | None,
    strict: bool,
    labels: tuple[str, ...] | None,
    top_k: int | None,
    threads: int | None,
) -> None:
    """Predict labeled samples and report accuracy, sequence error or IoU.

    DATA is a folder with one subfolder per class (photos/cat/1.png), or a CSV file with the columns path and label, or
    path, left, top, right and bottom (boxes, in pixels of the model's input). Samples that cannot be read are not
    scored; then the exit code is 4. With --against, or several backends, one table compares all of them.
    """
    from stn_infer.api.evaluate import compare

    warnings.filterwarnings("ignore", module="PIL")
    result = compare(
        [model, *against],
        data,
        backends=backends,
        weights=weights,
        input_shapes=input_shapes,
        allow_code=allow_code,
        budget=budget,
        device=device,
        batch_size=batch_size,
        preprocess=preprocess,
        strict=strict,
        labels=labels,
        top_k=top_k,
        threads=threads,
        progress=progress_bar("evaluate"),
    )
    if len(result.evaluations) == 1:
        single = result.evaluations[0]
        emit(single, lambda: _print(single))
    else:
        emit(result, lambda: _compare(result))
    worst = max(result.evaluations, key=lambda each: each.failed)
    echo_failures(worst.failures, worst.failed)
    if worst.failed:
        ctx.exit(SOME_FAILED)


def _compare(result: Comparison) -> None:
    show_tables(result.table())
    echo(*result.remarks())


def _print(result: Evaluation) -> None:
    echo(f"{result.scored} of {result.samples} samples scored, {result.failed} failed")
    if result.classification is not None:
        among = result.classification.top_k_accuracy
        more = "" if among is None else f", {result.classification.top_label} {among:.2%}"
        echo(f"accuracy {result.classification.accuracy:.2%}{more}")
        _print_classes(result.classification)
    if result.sequence is not None:
        echo(f"sequence error {result.sequence.error:.2%}, character error {result.sequence.character_error:.2%}")
    if result.boxes is not None:
        echo(f"mean IoU {result.boxes.mean_iou:.3f}, IoU above 0.5: {result.boxes.above_half:.2%}")


def _print_classes(found: Classification) -> None:
    scores = [
        (
            each.label,
            str(each.samples),
            *("" if value is None else f"{value:.2%}" for value in (each.precision, each.recall)),
        )
        for each in found.classes
    ]
    columns = ("class", "samples", "precision", "recall")
    rows = [(*row, *map(str, counts)) for row, counts in zip(scores, found.confusion, strict=True)]
    labels = tuple(each.label for each in found.classes)
    whole = Table(headings=(*columns, *labels), rows=rows, numbers=frozenset(range(1, 4 + len(labels))))
    if len(labels) <= _WIDEST and fits(whole, table_console().width):
        show_tables(whole)
        echo("rows: true class, columns: predicted class")
    else:
        show_tables(Table(headings=columns, rows=scores, numbers=frozenset((1, 2, 3))))
        echo("--json has the confusion matrix")
