"""``--json``, ``--verbose``, ``--quiet`` and ``--debug``: the options of every command, added in one place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

import click

from stn_infer.errors import UsageError

_KEY = f"{__name__}.asked"


@dataclass
class Asked:
    """How the command is to print.

    Attributes:
        json: the result as one JSON document on stdout.
        quiet: results and errors only.
        verbose: also what is done, and how long it took.
        stdout: where the result goes, while ``sys.stdout`` is stderr; None: to ``sys.stdout``.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    stdout: TextIO | None = None


def asked() -> Asked:
    """What the command line that is being run asks for; outside of a command, nothing."""
    ctx = click.get_current_context(silent=True)
    if ctx is None:
        return Asked()
    found: Asked = ctx.meta.setdefault(_KEY, Asked())
    return found


def stdout() -> TextIO:
    """Where results go."""
    return asked().stdout or sys.stdout


@contextmanager
def results_apart() -> Iterator[None]:
    """A block in which stdout takes results only: what a user's model prints goes to stderr."""
    found = asked()
    found.stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        found.stdout = None


def _note(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    found: Asked = ctx.meta.setdefault(_KEY, Asked())
    if value and parameter.name is not None:
        setattr(found, parameter.name, True)
    if found.quiet and found.verbose:
        raise UsageError("--quiet and --verbose exclude each other; give one of them")


def _flag(*names: str, help: str, **more: Any) -> click.Option:
    return click.Option(names, is_flag=True, expose_value=False, help=help, **more)


def debug_option() -> click.Option:
    """``--debug``, which the command line itself reads before anything else."""
    return _flag("--debug", help="Show the traceback of an error.")


def _common() -> tuple[click.Option, ...]:
    return (
        _flag("--json", help="Print the result as one JSON document; its layout is stable.", callback=_note),
        _flag("-v", "--verbose", help="Also print what is done, on stderr.", callback=_note),
        _flag("-q", "--quiet", help="Print nothing but results and errors.", callback=_note),
        debug_option(),
    )


def add_common_options(command: click.Command) -> click.Command:
    """Give ``command``, and each command inside it, the options that all commands have; those it has stay."""
    inside = {**getattr(command, "commands", {}), **getattr(command, "others", {})}
    for each in inside.values():
        add_common_options(each)
    known = {option for parameter in command.params for option in parameter.opts}
    common = (debug_option(),) if isinstance(command, click.Group) else _common()
    command.params += [option for option in common if not known.intersection(option.opts)]
    return command
