"""The options that every command has, and what they change."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from stn_infer.cli.help import Command
from stn_infer.cli.output import echo, emit, tell
from stn_infer.cli.terminal.verbosity import add_common_options, asked
from stn_infer.errors import AssumptionWarning, FallbackWarning, InputError
from tests.cli.test_help import ALL
from tests.cli.test_main import OneCommand


class WithOptions(OneCommand):
    """The command has the options that all commands have."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return add_common_options(Command("do", callback=self._action)) if cmd_name == "do" else None


def invoke(action: Callable[[], object], *arguments: str) -> Result:
    return CliRunner().invoke(WithOptions(action), ["do", *arguments])


def work() -> None:
    print("from the user's model")
    warnings.warn("gray was assumed", AssumptionWarning, stacklevel=1)
    warnings.warn("m runs without CUDA graphs", FallbackWarning, stacklevel=1)
    tell("about a minute")
    emit({"answer": float("nan")}, lambda: echo("note: a note", "the answer is 42"))


@pytest.mark.parametrize("name", [name for name, command in ALL.items() if not isinstance(command, click.Group)])
def test_every_command_has_them(name: str) -> None:
    options = {option for parameter in ALL[name].params for option in parameter.opts}
    assert {"--json", "-v", "--verbose", "-q", "--quiet", "--debug"} <= options


def test_results_alone_are_on_stdout() -> None:
    result = invoke(work)
    assert result.stdout == "note: a note\nthe answer is 42\n"
    graphs = "warning: m runs without CUDA graphs\n"
    assert result.stderr == f"from the user's model\nwarning: gray was assumed\n{graphs}about a minute\n"


def test_quiet_leaves_out_notes_and_warnings() -> None:
    result = invoke(work, "-q")
    assert result.stdout == "the answer is 42\n"
    assert result.stderr == "from the user's model\n"


def test_json_is_one_document() -> None:
    result = invoke(work, "--json")
    assert result.stdout == '{\n "answer": "nan"\n}\n'
    assert "warning: gray was assumed" in result.stderr


def test_an_error_is_one_line_with_json_and_quiet() -> None:
    def fails() -> None:
        raise InputError("no file")

    for options in (["--json"], ["-q"], ["-q", "--json"], ["-v"]):
        result = invoke(fails, *options)
        assert (result.stdout, result.stderr, result.exit_code) == ("", "error: no file\n", 1)


def test_one_invocation_leaves_nothing_to_the_next() -> None:
    seen = []
    for options in (["-q", "--json"], ["-v"], []):
        invoke(lambda: seen.append(asked()), *options)
    assert [(it.quiet, it.json, it.verbose) for it in seen] == [
        (True, True, False),
        (False, False, True),
        (False, False, False),
    ]


@pytest.mark.parametrize("options", [("-q", "-v"), ("--verbose", "--quiet")])
def test_quiet_and_verbose_exclude_each_other(options: tuple[str, str]) -> None:
    result = invoke(work, *options)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == "error: --quiet and --verbose exclude each other; give one of them\n"
