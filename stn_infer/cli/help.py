"""The layout of every command's ``--help``: one plain sentence, what SOURCE is, options in groups, examples.

It imports nothing large.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from stn_infer.cli.terminal.status import status_line
from stn_infer.cli.terminal.verbosity import results_apart
from stn_infer.files import check_not_read

#: In a context's ``meta``: what the command's options have read, or name as a file.
READ = "stn_infer.read"

#: The description of SOURCE in every command that takes one.
SOURCE_HELP = (
    "SOURCE is an ONNX file, the name of a shipped model or a network (stn-infer models lists them), a model config "
    "(.toml), a .pt2 file, or package.module:factory, imported from the current folder: the only SOURCE that runs "
    "code. Files are identified by their content."
)

# An option has the same meaning in every command, and so the same group.
_GROUPS: dict[str, str] = {
    "Source options": "--weights --input-shape --input --source --against --suite --allow-code --ignore-extra",
    "Input options": "--inputs --calibrate --preprocess --strict --labels --count --sample --seed",
    "Runtime options": "--backend --variant --list-variants --device --devices --batch-size --batch-sizes --threads "
    "--workers",
    "Engine options": "--runtime --target --profile --plugin --tf32 --cache --rebuild --engine",
    "Serving options": "--name --platform --max-batch --queue-delay --instances --served-at --check",
    "Prediction options": "--activation --top-k --threshold --outputs",
    "Limits": "--trial-seconds --trial-memory --time-limit",
    "Measurement options": "--quick --boundary --rounds --separate --seconds --samples --l2 --concurrency --rate",
    "Precision and tolerance options": "--precision --tolerance --grid-tolerance --latency-ms --max-error",
    "Output options": "--output --format --all --explain --fail-on --resume --check-inputs --shard-rows "
    "--overwrite --save-images --dynamic-size --fixed-batch --with-theta --fix --functions",
    "Animation options": "--frames --frame-ms --snapshots",
    "Common options": "--json --verbose --quiet --debug",
}
_GROUP_OF = {name: title for title, names in _GROUPS.items() for name in names.split()}
_OTHER = "Other options"
_FEWEST = 3  # fewer groups are listed without headings


class _Help:
    """Shared by :class:`Command` and :class:`Group`."""

    examples: Sequence[str]
    params: list[click.Parameter]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; an error names this command's help, where click's parser does not know the command."""
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc, no-any-return]
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring, and the description of SOURCE if the command takes one."""
        super().format_help_text(ctx, formatter)  # type: ignore[misc]
        if any(parameter.metavar == "SOURCE" for parameter in self.params if isinstance(parameter, click.Argument)):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(SOURCE_HELP)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on one line."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)  # type: ignore[misc]


class Command(_Help, click.Command):
    """A click command with ``examples``, whose options are listed in groups."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.examples = examples

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, its steps on the status line; its result alone goes to stdout."""
        output = ctx.params.get("output")
        if isinstance(output, Path):
            check_not_read(output, ctx.meta.get(READ, ()))
        with results_apart(), status_line():
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, in the order of the table above; few groups become one list."""
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in (*_GROUPS, _OTHER)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups[_GROUP_OF.get(max(parameter.opts, key=len), _OTHER)].append(record)
        groups = {title: records for title, records in groups.items() if records}
        if len(groups) < _FEWEST:
            groups = {"Options": [record for records in groups.values() for record in records]}
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Group(_Help, click.Group):
    """A click group with ``examples``, whose commands are :class:`Command`."""

    command_class = Command

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.examples = examples
