"""``--help`` of every command: one plain sentence, options in groups, valid examples, and no runtime loaded."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from stn_infer.cli import help as help_module
from stn_infer.cli.bench import command as bench
from stn_infer.cli.help import SOURCE_HELP, Command, Group
from stn_infer.cli.main import COMMANDS, main


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand, by the words on the command line."""
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        yield name, command
        inner = command.commands if isinstance(command, click.Group) else {}
        inner = {**inner, **(bench.others if command is bench else {})}
        yield from ((f"{name} {other}", each) for other, each in inner.items())


ALL = dict(commands())


def help_of(name: str) -> str:
    done = CliRunner().invoke(main, [*name.split(), "--help"])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", ALL)
def test_help_is_a_sentence_and_examples(name: str) -> None:
    lines = help_of(name).splitlines()
    first = " ".join(line.strip() for line in lines[2 : lines.index("", 2)])
    assert first.endswith(".") and len(first) < 110, first
    examples = lines[lines.index("Examples:") + 1 :]
    assert sum(line.startswith("  ") for line in examples) >= 2
    assert max(map(len, examples)) < 100


@pytest.mark.parametrize("name", ALL)
def test_wrong_options_name_the_help_of_their_command(name: str) -> None:
    """click's parser does not know the command for which it parses."""
    options = [it for it in ALL[name].params if isinstance(it, click.Option) and not it.is_flag and it.nargs == 1]
    for words in ("--nope", *(opt for option in options for opt in option.opts)):
        done = CliRunner().invoke(main, [*name.split(), words])
        assert done.exit_code == 2 and done.stderr.startswith("error: "), done.stderr
        assert done.stderr.endswith(f" (see 'stn-infer {name} --help')\n"), done.stderr


@pytest.mark.parametrize("name", ALL)
def test_examples_are_valid(name: str) -> None:
    command = ALL[name]
    assert isinstance(command, Command | Group) and len(command.examples) >= 2
    for example in command.examples:
        words = shlex.split(example, posix=True)
        if words[0] != "stn-infer":
            assert "$(stn-infer" in example or "stn-infer" in words
            continue
        typed = " ".join(words[1:3])
        target, arguments = (ALL[typed], words[3:]) if typed in ALL else (ALL[words[1]], words[2:])
        assert typed.startswith(name) or words[1] == name
        arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
        target.make_parser(click.Context(target)).parse_args(list(arguments))  # raises for an unknown option


def test_source_is_the_same_in_every_command() -> None:
    sentence = " ".join(SOURCE_HELP.split())
    taking = [name for name in ALL if sentence in " ".join(help_of(name).split())]
    assert taking == ["export", "build", "refit", "run", "eval", "verify", "bench", "best", "triton", "show"]
    for name in taking:
        text = help_of(name)
        assert "Source options:" in text and "--weights" in text and "--input-shape" in text


def test_every_name_in_the_table_of_groups_is_an_option() -> None:
    known = {option for command in ALL.values() for each in command.params for option in each.opts}
    assert set(help_module._GROUP_OF) <= known


def test_no_help_loads_a_runtime() -> None:
    code = (
        "import sys\n"
        "from stn_infer.cli.main import main\n"
        f"for name in {list(ALL)}:\n"
        "    try: main([*name.split(), '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'rich', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
