"""One name for one thing: what an option of several commands means, and what its value is called."""

from __future__ import annotations

import contextlib
from collections import defaultdict

import click

from tests.cli.test_help import ALL

#: Options that do not take the same kind of value in every command, and why.
DIFFERENT = {
    "--against": "verify needs the reference as one ONNX file, eval compares several models of any kind",
    "--backend": "run has one; eval and verify compare several",
    "--batch-size": "bench measures several, under --batch-sizes too",
    "--device": "triton: of the server, which has its own numbers of GPUs",
    "--input-shape": "optimize takes the names of an ONNX file's inputs, all others those of a source by their order",
    "--inputs": "export: one file of example inputs; verify and bench: paths of the user's own samples",
    "--output": "run also writes to object stores, by URL",
    "--resume": "run resumes the job in its output folder, bench names a result",
    "--target": "lint: runtimes; build: a GPU architecture",
    "--threads": "best tries several",
}
#: Values that are called otherwise in code: plurals of repeatable options aside.
RENAMED = {"examples": "--inputs", "declared": "--input", "calibration": "--calibrate", "show_all": "--all"}


def uses() -> dict[str, list[tuple[str, click.Option]]]:
    """Each long option with the commands that have it."""
    found = defaultdict(list)
    for name, command in ALL.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in parameter.opts:
                    if option.startswith("--"):
                        found[option].append((name, parameter))
    return found


def kind(option: click.Option) -> tuple[object, ...]:
    choices = option.type.choices if isinstance(option.type, click.Choice) else None
    which = choices if option.name not in ("backend", "format") else None  # of the command's own kind
    return type(option.type), which, option.metavar, option.multiple, option.is_flag, option.nargs


def test_an_option_takes_the_same_in_every_command() -> None:
    differing = {name for name, those in uses().items() if len({kind(each) for _, each in those}) > 1}
    assert differing == set(DIFFERENT)


def test_what_all_commands_share_is_written_once() -> None:
    for name in ("--weights", "--input-shape", "--allow-code", "--preprocess", "--labels", "--strict", "--activation"):
        helps = {each.help for command, each in uses()[name] if command != "optimize"}
        assert len(helps) == 1, name
    for name, helps in (("--device", 4), ("--batch-size", 2)):
        assert len({each.help for _, each in uses()[name]}) <= helps, name


def test_numbers_are_finite() -> None:
    accepted = []
    for name, those in uses().items():
        for command, each in those:
            if isinstance(each.type, click.types.FloatParamType):
                for text in ("nan", "inf", "-inf"):
                    with contextlib.suppress(click.BadParameter):
                        each.type.convert(text, each, None)
                        accepted.append((command, name, text))
    # their limits are checked where the environment's are
    assert {name for _, name, _ in accepted} == {"--trial-seconds", "--trial-memory"}


def test_one_name_in_code_is_one_option() -> None:
    options = defaultdict(set)
    for those in uses().values():
        for _, each in those:
            assert each.name is not None
            options[each.name].add(max(each.opts, key=len))
    assert {name: found for name, found in options.items() if len(found) > 1} == {}
    strange = {}
    for name, found in options.items():
        (option,) = found
        if name not in (plain := option.removeprefix("--").replace("-", "_"), f"{plain}s"):
            strange[name] = option
    assert strange == RENAMED
