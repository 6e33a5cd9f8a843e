"""Processes of their own: what they import, and that none is left, however this one ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from stn_infer.api.bench import bench
from stn_infer.benchmarking.request import Method
from stn_infer.cli.main import main
from stn_infer.isolation import program_child, python_child, run_tool
from tests.support.onnx_files import affine_model
from tests.support.paths import ROOT

#: A module of the name of one that everything needs; it leaves a mark, and ends the process.
IMPOSTOR = "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\nraise SystemExit('an impostor ran')\n"
NETWORK = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 6)
    def forward(self, x):
        theta = self.fc(x.flatten(1)).unflatten(1, (2, 3))
        grid = torch.nn.functional.affine_grid(theta, x.shape, align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)
"""
QUICK = Method(rounds=1, seconds=0.01, samples=3, turns=1, warmup_seconds=0.0, warmup_limit=0.1, row_limit=1.0)
HOLDS_THE_LOCK = "import os\nprint(os.getpid(), flush=True)\nsum(range(10**12))\n"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a module that this process, and so its children, can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def write(name: str, text: str) -> str:
        (folder / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture
def hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder has modules of the names that libraries have; none may be imported."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("numpy", "onnx", "onnxruntime", "torch", "json", "runpy", "tempfile", "stn_infer"):
        (folder / f"{name}.py").write_text(IMPOSTOR)
    monkeypatch.chdir(folder)
    yield folder
    assert not (folder / "imported").exists()


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


@pytest.mark.parametrize("current", ["", ".", None])
def test_a_child_imports_nothing_from_the_current_folder(
    current: str | None, hostile_folder: Path, modules: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = str(hostile_folder) if current is None else current
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    others = str(hostile_folder.parent / "others")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([entry, others, ""]))
    text = "import sys, os, json, numpy, onnx\nprint(json.dumps([sys.argv[1:], sys.path, os.environ['PYTHONPATH']]))\n"
    with python_child(modules("child", text), ["a b", "--c"], stdout=subprocess.PIPE, text=True) as child:
        said, _ = child.communicate()
    assert child.returncode == 0
    arguments, path, variable = json.loads(said)
    assert arguments == ["a b", "--c"] and variable == others
    assert path[-2:] == ["", str(ROOT)]  # what a user's own code may import comes last
    assert path[:-2] == [os.path.abspath(it) for it in sys.path if it and Path(it) not in (Path(), hostile_folder)]


def test_without_the_current_folder_a_child_has_none(
    hostile_folder: Path, modules: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    text = "import sys, os\nprint(sys.path, 'PYTHONPATH' in os.environ)\n"
    with python_child(modules("child", text), stdout=subprocess.PIPE, text=True) as child:
        said, _ = child.communicate()
    assert "''" not in said and str(hostile_folder) not in said and said.endswith("False\n")


def test_commands_import_nothing_from_the_current_folder(hostile_folder: Path) -> None:
    onnx.save(affine_model(), "m.onnx")
    for arguments in (["lint", "m.onnx"], ["optimize", "m.onnx", "-o", "o.onnx"], ["verify", "m.onnx"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    assert (
        bench("m.onnx", batch_sizes=(2,), variants=("ort-plain",), method=QUICK).get("ort-plain", 2).status == "timed"
    )


def test_bench_finds_a_factory_in_the_current_folder_and_nothing_else(
    hostile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (hostile_folder / "net_of_mine.py").write_text(NETWORK)
    shapes = [(1, 8, 8)]
    try:
        done = bench("net_of_mine:Net", batch_sizes=(2,), variants=("eager",), input_shapes=shapes, method=QUICK)
    finally:
        sys.modules.pop("net_of_mine", None)
    assert done.get("eager", 2).status == "timed", done.get("eager", 2).reason


PARENT = """
import subprocess, sys
from stn_infer.isolation import python_child, run_tool
with python_child("child", stdout=subprocess.PIPE, text=True) as child:
    print(child.stdout.readline().strip(), flush=True)
    child.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_child_ends_with_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    """Even one that holds Python's lock, and whatever ended the parent."""
    (tmp_path / "child.py").write_text(HOLDS_THE_LOCK)
    places = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": places, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PARENT]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **streams, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(number)
        parent.wait(60)
    wait_until(lambda: not alive(child))


def test_a_child_outlives_the_thread_that_started_it(modules: Callable[[str, str], str]) -> None:
    name = modules("child", "import sys\nprint(sys.stdin.readline(), end='')\n")
    with contextlib.ExitStack() as stack:
        started = []

        def start() -> None:
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            started.append(stack.enter_context(python_child(name, **streams)))

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        assert started[0].communicate("still here\n")[0] == "still here\n"
    assert started[0].returncode == 0


def test_an_exception_ends_it_and_its_temporary_files_go(modules: Callable[[str, str], str]) -> None:
    name = modules("child", "import tempfile, time\nprint(tempfile.mkdtemp(), flush=True)\ntime.sleep(1000)\n")
    with pytest.raises(ZeroDivisionError), python_child(name, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        assert folder.is_dir()
        raise ZeroDivisionError
    assert not alive(child.pid) and not folder.parent.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_somebody_who_ends_a_child_ends_the_command(number: signal.Signals, modules: Callable[[str, str], str]) -> None:
    name = modules("child", "import time\nprint(flush=True)\ntime.sleep(1000)\n")
    with pytest.raises(KeyboardInterrupt), python_child(name, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(number)
        child.wait()


def test_a_command_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "stn_infer.cli.main", "bench", "cnn", "--variant", "eager", "--batch-sizes", "1"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        wait_until(lambda: bool(children(process.pid)) and len(list(temporary.iterdir())) >= 2)
        workers = children(process.pid)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and said.endswith("error: interrupted\n")
    wait_until(lambda: not any(map(alive, workers)))  # the kernel kills them once the command has ended
    # PyTorch creates its compiler's cache, which stays for the next command
    assert not [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


def test_a_tool_is_ended_with_the_programs_that_it_runs(tmp_path: Path) -> None:
    started = tmp_path / "processes"

    def interrupt(number: int, frame: object) -> None:
        if started.exists() and started.read_text().endswith("\n"):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.02)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            # a shell with job control gives each its own group, as ninja does
            run_tool(["sh", "-c", f"set -m; sleep 1000 & touch $TMPDIR/x; echo $! $$ > {started}; wait"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    processes = [int(text) for text in started.read_text().split()]
    assert len(processes) == 2
    wait_until(lambda: not any(map(alive, processes)))


def test_what_a_tool_says() -> None:
    done = run_tool(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


SERVER = "trap 'echo ended > said; exit 0' TERM; sleep 1000 & echo $! $$; wait"
DEAF = "trap '' TERM; sh -c 'trap \"\" TERM; sleep 1000' & echo $! $$; while true; do wait; done"


@pytest.mark.parametrize(("script", "ends"), [(SERVER, True), (DEAF, False)])
def test_a_program_is_asked_to_end_and_then_killed(script: str, ends: bool, tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", f"cd {tmp_path}; {script}"]
    with program_child(command, dict(os.environ), grace=0.3, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        processes = [int(text) for text in process.stdout.readline().split()]
        assert processes[1] == process.pid and all(map(alive, processes))
    assert not any(map(alive, processes)) and (tmp_path / "said").exists() == ends


def test_processes_of_any_name_are_no_obstacle(tmp_path: Path) -> None:
    named = tmp_path / os.fsdecode(b"caf\xc3")  # the kernel cuts names, in the middle of a character too
    shutil.copy(shutil.which("sleep") or "", named)
    with subprocess.Popen([named, "1000"]) as other:
        try:
            assert b"(caf\xc3)" in Path(f"/proc/{other.pid}/stat").read_bytes()
            with program_child(["/bin/sleep", "1000"], dict(os.environ)) as process:
                pass
            assert not alive(process.pid) and alive(other.pid)
        finally:
            other.kill()


def test_an_exception_kills_a_program(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", f"cd {tmp_path}; {SERVER}"]
    with (
        pytest.raises(ZeroDivisionError),
        program_child(command, dict(os.environ), stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        processes = [int(text) for text in process.stdout.readline().split()]
        raise ZeroDivisionError
    assert not any(map(alive, processes)) and not (tmp_path / "said").exists()


def test_a_program_ends_with_a_killed_parent() -> None:
    code = (
        "import os, time\nfrom stn_infer.isolation import program_child\n"
        "with program_child(['/bin/sh', '-c', 'echo $$; sleep 1000'], dict(os.environ)):\n    time.sleep(1000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        program = int(parent.stdout.readline())
        assert alive(program)
        parent.kill()
        parent.wait(60)
        wait_until(lambda: not alive(program))
        parent.stdout.close()
