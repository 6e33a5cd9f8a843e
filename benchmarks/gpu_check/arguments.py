"""The command line of the scripts that one step of the check runs, each with a file of results of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.records import Records


def parse(
    documentation: str | None, script: str, tiny: str, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Records | None]:
    """The arguments ``device`` and ``tiny``, and where lines are appended; None: nowhere.

    Args:
        documentation: the script's docstring.
        script: its file's name, that of the step unless ``--step`` gives one.
        tiny: what ``--tiny`` does.
        argv: the arguments; None: those of the process.
    """
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script")
    parser.add_argument("--tiny", action="store_true", help=tiny)
    parser.add_argument("-o", "--output", type=Path, help="where lines are appended")
    parser.add_argument("--run", default="", help="the run's name in the file")
    parser.add_argument("--step", default=script, help="the step's name in the file")
    arguments = parser.parse_args(argv)
    return arguments, Records(arguments.output, arguments.run, arguments.step) if arguments.output else None
