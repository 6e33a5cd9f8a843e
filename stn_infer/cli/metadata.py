"""``stn-infer metadata``: print or store what an ONNX file says about its inputs and classes."""

from __future__ import annotations

from pathlib import Path

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import echo, emit
from stn_infer.cli.terminal.completion import complete_files
from stn_infer.cli.terminal.verbosity import asked
from stn_infer.errors import UsageError


@click.command(
    cls=Command,
    examples=(
        "stn-infer metadata model.onnx",
        "stn-infer metadata model.onnx --preprocess imagenet,size=224x224 --labels classes.txt",
        "stn-infer metadata model.onnx --activation sigmoid",
        "stn-infer metadata model.onnx --preprocess preprocessor_config.json -o ready.onnx",
    ),
)
@click.argument("model", metavar="FILE.onnx", shell_complete=complete_files(".onnx"))
@options.preprocess_option
@options.labels_option
@options.activation_option
@options.output_option("The ONNX file to write.  [default: FILE.onnx itself]", required=False)
def command(
    model: str,
    preprocess: str | None,
    labels: tuple[str, ...] | None,
    activation: str | None,
    output: Path | None,
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
    emit(found)
    if stores and not asked().json:
        echo(f"wrote {output or model}")
