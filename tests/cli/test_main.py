from __future__ import annotations

import contextlib
import errno
import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from stn_infer.cli.main import COMMANDS, LazyGroup, main
from stn_infer.errors import InputError, OutputError, UsageError, VerificationError
from stn_infer.extras import install


class OneCommand(LazyGroup):
    """The command-line group with a single command, ``do``, that calls a function."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__("stn-infer")
        self._action = action

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["do"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        debug = click.Option(["--debug"], is_flag=True, expose_value=False)
        return click.Command("do", callback=self._action, params=[debug]) if cmd_name == "do" else None


def invoke(action: Callable[[], object], *arguments: str) -> Result:
    return CliRunner().invoke(OneCommand(action), ["do", *arguments])


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no file"), 1),
        (UsageError("not so"), 2),
        (VerificationError("off by 1 px"), 3),
        (OutputError("x"), 1),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(error: Exception, code: int) -> None:
    result = invoke(raising(error))
    assert result.stderr == f"error: {error}\n"
    assert result.stdout == ""
    assert result.exit_code == code


def test_a_message_of_several_lines_becomes_one() -> None:
    assert invoke(raising(InputError("first\n   second"))).stderr == "error: first second\n"


def test_interrupted() -> None:
    result = invoke(raising(KeyboardInterrupt()))
    assert result.exit_code == 130
    assert result.stderr.strip() == "error: interrupted"


def test_an_interrupt_that_a_library_caught_is_still_one() -> None:
    def half_done() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("partially initialized module")

    before = signal.getsignal(signal.SIGINT)
    result = invoke(half_done)
    assert result.exit_code == 130 and result.stderr.strip() == "error: interrupted"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_import_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.3)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def imports() -> None:
        importlib.import_module("slow_to_import")
        time.sleep(30)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    result = invoke(imports)
    assert result.exit_code == 128 + signal.SIGTERM and result.stderr.strip() == "error: interrupted"
    assert sys.modules.pop("slow_to_import").whole is True
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_disk_full_names_the_file() -> None:
    result = invoke(raising(OSError(errno.ENOSPC, "No space left on device", "/x/y.csv")))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no space left to write /x/y.csv")
    assert result.stderr.count("\n") == 1


def test_an_os_error_names_its_file() -> None:
    result = invoke(raising(PermissionError(errno.EACCES, "Permission denied", "/x/y")))
    assert (result.stderr, result.exit_code) == ("error: /x/y: Permission denied\n", 1)


def test_memory_that_cannot_be_had_is_one_line() -> None:
    result = invoke(raising(MemoryError("Unable to allocate 128. GiB")))
    assert result.stderr.startswith("error: not enough memory (Unable to allocate 128. GiB); ")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_a_missing_package_is_named() -> None:
    result = invoke(raising(ModuleNotFoundError("No module named 'lmdb'", name="lmdb")))
    assert "'lmdb' is required but not installed" in result.stderr
    assert result.exit_code == 1
    result = invoke(raising(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")))
    assert result.stderr == f"error: this needs PyTorch, which is not installed; {install('export')}\n"
    assert result.exit_code == 1


def test_a_missing_module_of_the_package_is_an_internal_error() -> None:
    result = invoke(raising(ModuleNotFoundError("No module named 'stn_infer.x'", name="stn_infer.x")))
    assert result.stderr.startswith("error: internal error: ModuleNotFoundError")


def test_a_bug_is_one_line_without_debug_and_a_traceback_with_it() -> None:
    result = invoke(raising(ZeroDivisionError("oops")))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: internal error: ZeroDivisionError: oops; run with --debug")
    assert "Traceback" not in result.stderr
    result = invoke(raising(ZeroDivisionError("oops")), "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: internal error")


def test_a_command_may_exit_with_another_code() -> None:
    assert invoke(lambda: click.get_current_context().exit(4)).exit_code == 4
    assert invoke(lambda: None).exit_code == 0


def test_errors_pass_through_outside_standalone_mode() -> None:
    with pytest.raises(InputError, match="no file"):
        OneCommand(raising(InputError("no file"))).main(["do"], standalone_mode=False)


def test_a_wrong_option_is_one_line() -> None:
    result = CliRunner().invoke(OneCommand(lambda: None), ["do", "--color"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: No such option")
    assert result.stderr.count("\n") == 1
    assert "do --help" in result.stderr


def test_an_unknown_command_suggests_the_nearest() -> None:
    result = CliRunner().invoke(main, ["exprot"])
    assert result.exit_code == 2
    assert "no such command: 'exprot'; did you mean 'export'?" in result.stderr
    unknown = CliRunner().invoke(main, ["zzz"]).stderr
    assert unknown == "error: no such command: 'zzz' (see 'stn-infer --help')\n"


def test_help_lists_the_installed_commands() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in ("export", "run", "verify"):
        assert COMMANDS[name] in " ".join(result.stdout.split())


@pytest.mark.parametrize("words", [[], ["plugin"], ["cache"]])
def test_without_a_command_the_help_is_printed(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.output == CliRunner().invoke(main, [*words, "--help"]).stdout
    assert result.output.startswith("Usage: ") and result.output.count("\n") > 5


def test_every_command_has_help_and_takes_debug() -> None:
    ctx = click.Context(main)
    for name in main.list_commands(ctx):
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0, result.stderr
        assert "--debug" in result.stdout


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("stn-infer ")


def test_help_and_import_load_no_runtime() -> None:
    code = (
        "import sys, stn_infer\n"
        "from stn_infer.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'rich', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Usage: " in result.stdout


def test_a_closed_pipe_is_not_reported() -> None:
    code = (
        "import click\n"
        "from tests.cli.test_main import OneCommand\n"
        "OneCommand(lambda: [click.echo('x' * 100) for _ in range(10000)])(['do'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
