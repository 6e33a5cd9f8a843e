"""One command in a process forked from this one, with limits on time and memory, and what became of it.

The modules that commands import are loaded once, here; each command gets a fresh copy of this process, so that neither
a crash nor anything that it leaves behind reaches the next.
"""

from __future__ import annotations

import gc
import hashlib
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 60.0  # of CPU time that a command may take
_SUSPECT = 20  # of a case in this process; it is then tried as a process, with the trial and up to SECONDS
_TRIAL = 20  # STN_TRIAL_SECONDS of the cases: loops that never end shall not take the time of a thousand others
GIB = 4.0
_DEADLINE = 240.0  # of wall time: the machine may be busy


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: the exit code; -N: ended by signal N.
        seconds: of CPU time, children included.
        gib: the most memory, above that of this process before.
        output: stdout and stderr.
        errors: stderr.
        trace: of an exception that became an "internal error".
        written: files below ``out/`` and of the folder that are new or changed.
        left: files in the temporary folder.
        changed: files that were inputs and are not the same any more.
        timed_out: whether it had to be killed.
    """

    code: int
    seconds: float
    gib: float
    output: str
    errors: str
    trace: str = ""
    written: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    timed_out: bool = False


@dataclass(frozen=True)
class Finding:
    """A broken promise: ``what`` is one of a few words, ``where`` tells two findings apart, ``outcome`` shows it."""

    what: str
    where: str
    outcome: Outcome = field(compare=False)

    def __str__(self) -> str:
        return f"{self.what}: {self.where}"


def hashes(folder: Path) -> dict[str, str]:
    """The files below a folder, by path relative to it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(command: Sequence[str], folder: Path, *, trial: bool, process: bool = False) -> Outcome:
    """Run a command line in ``folder``.

    Args:
        command: arguments of ``stn-infer``.
        folder: as :meth:`tests.fuzz.seeds.Seed.write` leaves it.
        trial: whether an ONNX file is tried in a process of its own first, as it is for users.
        process: start ``stn-infer`` as users do, without limits, instead of a copy of this process.
    """
    before = hashes(folder)
    resident = 0 if process else _resident()
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            (_start if process else _call)(list(command), folder, trial)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    timed_out = False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - started > _DEADLINE:
            timed_out = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.002 if time.monotonic() - started < 1 else 0.05)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    trace_file = folder / "trace"
    trace = trace_file.read_text(errors="replace") if trace_file.exists() else ""
    trace_file.unlink(missing_ok=True)
    output, errors = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    for name in ("stdout", "stderr"):
        (folder / name).unlink()
    after = hashes(folder)
    written, left, changed = changes(before, after)
    return Outcome(
        code=os.waitstatus_to_exitcode(status),
        seconds=usage.ru_utime + usage.ru_stime,
        gib=max(0, usage.ru_maxrss * 1024 - resident) / 2**30,
        output=output + errors,
        errors=errors,
        trace=trace,
        written=written,
        left=left,
        changed=changed,
        timed_out=timed_out,
    )


def run_batch(cases: Sequence[Callable[[], str]], progress: Path) -> None:
    """Call ``cases`` one after another in one copy of this process, with limits for each.

    Args:
        cases: each returns a line for ``progress``; one that does not return ends the copy.
        progress: a file that gets a line after each case.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            _limit(resource.RLIMIT_CORE, 0)
            _limit_memory()
            with progress.open("a") as file:
                for case in cases:
                    used = resource.getrusage(resource.RUSAGE_SELF)
                    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + _SUSPECT)
                    signal.alarm(int(_DEADLINE))
                    print(case(), file=file, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def changes(before: dict[str, str], after: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Files that were written, that were left in the temporary folder, and inputs that changed."""
    left = tuple(name for name in after if name.startswith("tmp/") and name != "tmp/.ses")  # of onnxruntime
    cached = ("cache/", "tmp/", "home/")
    written = tuple(name for name in after if name not in before and not name.startswith(cached))
    changed = tuple(name for name in before if before[name] != after.get(name) and name.startswith("in/"))
    return written, left, changed


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _redirect(folder: Path) -> None:
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.environ.update(TMPDIR=str(folder / "tmp"), XDG_CACHE_HOME=str(folder / "home"), HOME=str(folder / "home"))
    os.environ.update(STN_TRIAL_SECONDS=str(_TRIAL), COLUMNS="200", NO_COLOR="1")


def _start(command: list[str], folder: Path, trial: bool) -> NoReturn:
    _redirect(folder)
    program = str(Path(sys.executable).with_name("stn-infer"))
    os.execv(program, [program, *command])


def _call(command: list[str], folder: Path, trial: bool) -> NoReturn:
    import tempfile

    from stn_infer.cli import main as cli

    _redirect(folder)
    tempfile.tempdir = None
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    _limit(resource.RLIMIT_CPU, int(SECONDS) + 5 if trial else _SUSPECT)
    _limit_memory()
    _limit(resource.RLIMIT_CORE, 0)
    if not trial:
        import stn_infer.repairs.trial

        stn_infer.repairs.trial.try_model = lambda *arguments, **options: stn_infer.repairs.trial.Verdict()
    explain = cli._explain

    def explained(error: Exception, *rest: Any) -> tuple[str, int]:
        message, code = explain(error, *rest)
        if message.startswith("internal error"):
            Path(folder / "trace").write_text("".join(traceback.format_exception(error)))
        return message, code

    cli._explain = explained
    code: object = 0
    try:
        cli.main(args=command)
    except SystemExit as left:
        code = left.code
    except BaseException:
        (folder / "trace").write_text(traceback.format_exc())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, used + int((GIB + 0.5) * 2**30))


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def prepare(commands: Sequence[tuple[Sequence[str], Path]]) -> None:
    """Import what ``commands`` import, by running each here once, so that forked processes share it."""
    import contextlib
    import io

    from stn_infer.cli.main import main

    before = Path.cwd()
    os.environ["STN_TRIAL_SECONDS"] = "0"
    for command, folder in commands:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                main(args=list(command))
        except SystemExit:
            pass
        finally:
            os.chdir(before)
    gc.collect()
    gc.freeze()


def judge(command: Sequence[str], outcome: Outcome) -> Finding | None:
    """What an outcome breaks; None: nothing."""
    if outcome.timed_out or outcome.code == -signal.SIGXCPU or outcome.seconds > SECONDS:
        return Finding("slow", command[0], outcome)
    if outcome.code < 0:
        return Finding("signal", f"{signal.Signals(-outcome.code).name} in {command[0]}", outcome)
    if outcome.trace:
        return Finding("internal error", _place(outcome.trace), outcome)
    if "internal error" in outcome.output:
        return Finding("internal error", " ".join(outcome.output.split())[-160:], outcome)
    if "Traceback (most recent call last)" in outcome.output:
        return Finding("traceback", _place(outcome.output), outcome)
    if outcome.gib > GIB or "not enough memory" in outcome.output:
        return Finding("memory", command[0], outcome)
    if outcome.code not in (0, 1, 2, 3, 4):
        return Finding("exit code", str(outcome.code), outcome)
    if outcome.changed:
        return Finding("input changed", ", ".join(outcome.changed), outcome)
    if outcome.left:
        return Finding("left in tmp", ", ".join(re.sub(r"\w{8}(?=/|$)", "*", name) for name in outcome.left), outcome)
    failed = outcome.code != 0 and not (outcome.code == 4 and command[0] == "run")
    written = tuple(name for name in outcome.written if not _resumable(command, name))
    if failed and written:
        return Finding("written on failure", f"{command[0]}: {', '.join(written)}", outcome)
    last = outcome.errors.strip().rpartition("\n")[2]
    quiet = command[0] in ("lint", "verify", "bench") and outcome.code in (1, 3)
    if failed and not quiet and not last.startswith("error: "):
        return Finding("no error line", f"{command[0]}: {last[:120]}", outcome)
    return None


def _resumable(command: Sequence[str], name: str) -> bool:
    """Whether ``run --resume`` or ``bench --resume`` would go on from this file."""
    if command[0] == "bench":
        return name.endswith("result.json")
    return command[0] == "run" and bool(re.fullmatch(r"out/p/(run\.(json|lock)|(predictions|ledger)-\d+\.\w+)", name))


def _place(trace: str) -> str:
    """The innermost function of ours in a traceback, and the exception."""
    ours = re.findall(r'File "[^"]*/(stn_infer/[\w/]+\.py)", line \d+, in (\w+)', trace)
    kinds = re.findall(r"^(\w[\w.]*(?:Error|Exception|Warning|Interrupt|Exit))\b", trace, re.MULTILINE)
    file, function = ours[-1] if ours else ("?", "?")
    return f"{kinds[-1] if kinds else '?'} in {function} ({file})"
