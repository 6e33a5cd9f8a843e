"""The check on a GPU as a whole: nothing that was measured is lost, whatever happens to a step or to the check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu_check import __main__ as check
from benchmarks.gpu_check.records import Record, read
from benchmarks.gpu_check.steps import Step
from stn_infer import plugin
from tests.support.paths import ROOT

#: Writes a row per case, for those that its run has not begun. Cases named ``hangs``, ``crashes`` or ``breaks`` do so.
_MEASURES = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu_check.records import Records
cases, (output, run, step) = sys.argv[1].split(","), sys.argv[3::2]
records = Records(Path(output), run, step)
for case in cases:
    if case in records.begun():
        continue
    records.append("begin", case)
    if case == "hangs":
        time.sleep(60)
    if case == "crashes":
        os.abort()
    if case == "breaks":
        records.append("failure", case, reason="an illegal address")
        sys.exit(3)
    records.append("row", case, variant="fused", device_ms=1.0)
"""
PYTHON = (sys.executable, "-S", "-u", "-c")
Checked = Callable[..., tuple[int, list[Record]]]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Checked:
    """Run the check with other steps; its exit code and records."""

    def run(*steps: Step, device: str = "cpu", arguments: tuple[str, ...] = ()) -> tuple[int, list[Record]]:
        monkeypatch.setattr(check, "steps", lambda *_, **__: steps)
        monkeypatch.setattr(check, "_commit", lambda: "")
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = check.main(["--device", device, "--results", str(tmp_path), *arguments])
        finally:
            signal.signal(signal.SIGTERM, before)
        (path,) = tmp_path.glob("*.jsonl")
        return code, list(read(path))

    return run


def ends(records: list[Record]) -> dict[str, tuple[str, str]]:
    """The status and the problem of each step."""
    found = [record for record in records if record.kind == "step"]
    return {record.step: (record.values["status"], record.values["problem"]) for record in found}


def shell(name: str, text: str, limit: float = 60, **rest: bool) -> Step:
    return Step(name, ("sh", "-c", text), limit, 1, **rest)


def measuring(*cases: str, quiet: float | None = None) -> Step:
    return Step("measuring", (*PYTHON, _MEASURES, ",".join(cases)), 60, 1, quiet=quiet, restarts=True)


def test_a_step_that_fails_costs_no_other(checked: Checked, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, records = checked(
        shell("fails", "echo some output; exit 3"),
        shell("too slow", "echo begun; sleep 60", 0.5),
        Step("not there", ("/nowhere/ncu",), 60),
        shell("needs a GPU", "true", gpu_only=True),
        shell("passes", "echo the last line"),
    )
    assert code == 1
    assert ends(records) == {
        "fails": ("failed", "exit code 3"),
        "too slow": ("killed", "killed after 0 s, its limit"),
        "not there": ("not run", "there is no ncu"),
        "needs a GPU": ("not run", "it needs a GPU"),
        "passes": ("passed", ""),
    }
    assert records[0].kind == "head" and records[0].values["gpu"] == {"name": "cpu"}
    assert records[0].values["versions"].keys() >= {"python", "torch", "numpy"}
    last = records[-1]
    assert last.kind == "end" and last.values["seconds"] > 0 and set(last.values["steps"]) == set(ends(records))
    printed = capsys.readouterr().out
    assert "passes: passed in" in printed and "| the last line" in printed
    assert "s in all" in printed.splitlines()[-1] and "not run  needs a GPU" in printed
    (log,) = tmp_path.glob("*.log")
    lines = log.read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("====")] == [
        "some output",
        "begun",
        "the last line",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {log.name, f"{log.stem}.jsonl"}


def test_everything_passed(checked: Checked) -> None:
    assert checked(shell("passes", "true"), shell("needs a GPU", "true", gpu_only=True))[0] == 0


def test_on_a_gpu_every_step_has_to_be_run(checked: Checked) -> None:
    code, records = checked(shell("passes", "true"), Step("not there", ("/nowhere/ncu",), 60), device="cuda:0")
    assert code == 1 and ends(records)["passes"] == ("passed", "")


def test_a_case_that_crashes_or_hangs_costs_no_other(checked: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    code, records = checked(measuring("a", "crashes", "b", "hangs", "c", quiet=2.0))
    assert code == 1
    assert [record.case for record in records if record.kind == "row"] == ["a", "b", "c"]
    failures = {record.case: record.values["reason"] for record in records if record.kind == "failure"}
    assert failures == {"crashes": "ended by SIGABRT", "hangs": "killed after 2 s without output"}
    assert ends(records) == {"measuring": ("failed", "ended by SIGABRT")}
    assert "measuring: crashes: FAILED: ended by SIGABRT" in capsys.readouterr().out


def test_a_case_that_breaks_the_context_costs_no_other(checked: Checked) -> None:
    code, records = checked(measuring("breaks", "a", "b"))
    assert code == 1 and ends(records) == {"measuring": ("failed", "exit code 3")}
    assert [record.case for record in records if record.kind == "row"] == ["a", "b"]
    assert [record.case for record in records if record.kind == "failure"] == ["breaks"]


def test_the_whole_run_keeps_its_time(checked: Checked) -> None:
    slow = shell("slow", "sleep 60")
    code, records = checked(slow, shell("later", "true"), arguments=("--limit", "4"))
    assert code == 1
    status, problem = ends(records)["slow"]
    assert status == "killed" and "its limit" in problem
    assert ends(records)["later"] == ("not run", "0 s are left")
    assert records[-1].values["seconds"] < 30  # a loaded machine


def test_chosen_steps(checked: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    three = [shell(name, "true") for name in ("a", "b", "c")]
    assert set(ends(checked(*three, arguments=("--step", "b"))[1])) == {"b"}
    _, records = checked(*three, arguments=("--after", "a"))
    assert len([record for record in records if record.kind == "head"]) == 2  # an earlier run's lines stay
    assert [record.step for record in records if record.kind == "step"] == ["b", "b", "c"]
    with pytest.raises(SystemExit):
        checked(*three, arguments=("--step", "d"))
    assert "there is no step 'd'; the steps are a, b, c" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_measured_stays_when_the_check_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys; from benchmarks.gpu_check import __main__ as check, steps\n"
        f"step = steps.Step('measuring', {(*PYTHON, _MEASURES, 'a,b,hangs,c')!r}, 60, 1, restarts=True)\n"
        "later = steps.Step('later', ('true',), 60, 1)\n"
        "check.steps = lambda *_, **__: (step, later)\n"
        "check.main(['--device', 'cpu', '--results', sys.argv[1]])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-S", "-c", code, str(tmp_path)], cwd=ROOT, env=environment)
    end = time.monotonic() + 60

    def lines() -> list[Record]:
        return [record for path in tmp_path.glob("*.jsonl") for record in read(path)]

    while not any(record.case == "hangs" for record in lines()):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    found = lines()
    assert [record.case for record in found if record.kind == "row"] == ["a", "b"]
    if number == signal.SIGTERM:
        assert found[-1].kind == "end"
        assert found[-1].values["steps"] == {"measuring": "not run", "later": "not run"}


def test_the_driver_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """Whatever the machine lacks, its steps are started; -S: there is no other package."""
    command = [sys.executable, "-S", "-m", "benchmarks.gpu_check", "--device", "cpu", "--results", str(tmp_path)]
    done = subprocess.run([*command, "--step", "memcheck"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "memcheck: not run: it needs a GPU" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "gpu-cpu-torch-none.jsonl").exists()


@pytest.mark.slow
@pytest.mark.skipif(not plugin.available(), reason="the plugin library is not built: stn-infer plugin build")
def test_every_step_on_the_cpu(tmp_path: Path) -> None:
    """Those that need no GPU; torch.compile of one warp takes a minute of compilation, another library's many."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--tiny", "--results", str(tmp_path)]
    passing = ("library", "kernels", "tensorrt-host", "headline", "tests", "feed", "profiles", "decode", "counters")
    for name in (*passing, "memcheck"):
        command += ["--step", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (path,) = tmp_path.glob("*.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr + path.with_suffix(".log").read_text()
    assert ends(list(read(path))) == {
        **dict.fromkeys(passing, ("passed", "")),
        "memcheck": ("not run", "it needs a GPU"),
    }
