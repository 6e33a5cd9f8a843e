"""``stn-infer metadata``: print or store what an ONNX file says about its inputs and classes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import echo, echo_text
from stn_infer.errors import UsageError

if TYPE_CHECKING:
    from stn_infer.metadata import ModelMetadata

_SHOWN = 10


@click.command(
    cls=Command,
    examples=(
        "stn-infer metadata model.onnx",
        "stn-infer metadata model.onnx --preprocess imagenet,size=224x224 --labels classes.txt",
        "stn-infer metadata model.onnx --activation sigmoid",
        "stn-infer metadata model.onnx --preprocess preprocessor_config.json -o ready.onnx",
    ),
)
@click.argument("model", metavar="FILE.onnx")
@options.preprocess_option
@options.labels_option
@options.activation_option
@options.output_option("The ONNX file to write.  [default: FILE.onnx itself]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; its layout is stable.")
def command(
    model: str,
    preprocess: str | None,
    labels: tuple[str, ...] | None,
    activation: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print what an ONNX file says about its inputs and classes, or store it.

    --preprocess, --labels and --activation are stored; without them, nothing is written. The text of --preprocess
    changes single fields of what is stored. run, eval, show and bench use what is stored.
    """
    from stn_infer.api.metadata import read_metadata, write_metadata

    stores = preprocess is not None or labels is not None or activation is not None
    if stores:
        found = write_metadata(model, output, preprocess=preprocess, labels=labels, activation=activation)
    elif output is not None:
        raise UsageError("-o is the file to write; say what to store with --preprocess, --labels or --activation")
    else:
        found = read_metadata(model)
    if as_json:
        echo_text(_json(found))
        return
    echo(*_lines(found))
    if stores:
        echo(f"wrote {output or model}")


def _lines(found: ModelMetadata) -> list[str]:
    lines = [f"preprocess: {found.preprocess.describe() if found.preprocess else 'unknown'}"]
    if found.labels is None:
        lines.append("labels: unknown")
    else:
        more = "" if len(found.labels) <= _SHOWN else f", ... ({len(found.labels)} in all)"
        lines.append(f"labels: {', '.join(found.labels[:_SHOWN])}{more}")
    lines.append(f"activation: {found.scores.describe() if found.scores else 'unknown'}")
    lines.append(f"precision: {found.precision}")
    if found.source:
        lines.append(f"source: {found.source}")
    if found.weights:
        lines.append(f"weights: {found.weights}")
    if found.batch_dependent:
        lines.append(f"batch-dependent outputs: {', '.join(found.batch_dependent)}")
    lines += [f"{each.kind}: {each.name}, from {', '.join(each.reads)}" for each in found.decodings]
    return lines


def _json(found: ModelMetadata) -> str:
    fields = asdict(found)
    fields["text"] = None if found.preprocess is None else found.preprocess.describe()
    return json.dumps(fields, indent=1)
