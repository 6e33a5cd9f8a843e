"""The status line and the colors, on a terminal, on one that can do nothing, and in a pipe."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest

from stn_infer.cli.output import echo, progress_bar, tell
from stn_infer.errors import InputError
from stn_infer.progress import detail, step
from tests.cli.terminal.test_verbosity import WithOptions, invoke


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Run an action as a command on a terminal; returns what was written to stdout and stderr."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def run(action: Callable[[], object], *options: str) -> tuple[str, str]:
        streams = Terminal(), Terminal()
        monkeypatch.setattr("sys.stdout", streams[0])
        monkeypatch.setattr("sys.stderr", streams[1])
        with pytest.raises(SystemExit):
            WithOptions(action).main(["do", *options])
        return streams[0].getvalue(), streams[1].getvalue()

    return run


def work() -> None:
    step("loading \x1b[2Jcnn")
    step("verifying " + "a long name " * 20)
    detail("onnxruntime 1.27")
    echo("passed everything")
    step("writing")


def test_one_line_that_is_updated_and_disappears(on_terminal: Callable[..., tuple[str, str]]) -> None:
    out, err = on_terminal(work)
    assert "loading \\x1b[2Jcnn" in err and "verifying a long name" in err and "writing" in err
    assert "onnxruntime" not in err
    lines = [re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]", err)]
    assert max(map(len, lines)) <= 80  # no step takes a second line
    assert err.endswith("\x1b[2K") and err.count("\x1b[?25l") == err.count("\x1b[?25h") == 2
    assert re.sub(r"\x1b\[\d*m", "", out) == "passed everything\n"


def test_verbose_lines_in_any_stream(on_terminal: Callable[..., tuple[str, str]]) -> None:
    pattern = r" +\d+\.\d s  loading \\x1b\[2Jcnn\n .* s  verifying .*\n .* s  onnxruntime 1.27\n .* s  writing\n"
    assert re.fullmatch(pattern, on_terminal(work, "-v")[1])
    assert re.fullmatch(pattern, invoke(work, "--verbose").stderr)


def test_nothing_in_a_pipe_or_with_quiet(
    on_terminal: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(work).stderr == ""
    assert on_terminal(work, "-q")[1] == ""
    monkeypatch.setenv("TERM", "dumb")
    assert on_terminal(work)[1] == ""


def count() -> None:
    update = progress_bar("predict")
    assert update is not None
    step("opening the model")
    update(1, 3)
    step("a step of what is counted")
    update(3, 3)


def test_what_is_counted_has_a_bar(on_terminal: Callable[..., tuple[str, str]]) -> None:
    err = on_terminal(count)[1]
    assert "opening the model" in err and "predict" in err and "3/3" in err and "a step of" not in err
    assert invoke(count).stderr == ""
    assert "3/3" not in on_terminal(count, "-q")[1]


def complain() -> None:
    tell("warning: gray was assumed", "note: warning: is data here")
    echo("ok    torch", "broken onnx", "okay then")
    raise InputError("no file")


def test_colors(on_terminal: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = on_terminal(complain)
    red, green, yellow, cyan, plain = (
        "\x1b[31m\x1b[1m",
        "\x1b[32m\x1b[1m",
        "\x1b[33m\x1b[1m",
        "\x1b[36m\x1b[1m",
        "\x1b[0m",
    )
    assert out == f"{green}ok{plain}    torch\n{red}broken{plain} onnx\nokay then\n"
    assert err == (
        f"{yellow}warning:{plain} gray was assumed\n{cyan}note:{plain} warning: is data here\n"
        f"{red}error:{plain} no file\n"
    )
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert "\x1b" not in "".join(on_terminal(complain))
    piped = invoke(complain)
    assert "\x1b" not in piped.stdout + piped.stderr
