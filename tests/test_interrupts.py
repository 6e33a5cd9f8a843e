"""Ctrl-C, ``kill`` and a closed terminal end a command within two seconds, with one line, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from stn_infer.interrupts import SIGNALS
from tests.support.onnx_files import affine_model
from tests.support.paths import ROOT

#: The place at which each command is interrupted, and the command.
COMMANDS = {
    "models": ("stn_infer.models:shipped", "models"),
    "doctor": ("stn_infer.benchmarking.machine.monitor:this_machine", "doctor"),
    "cache": ("stn_infer.backends.tensorrt.engine_cache:EngineCache.entries", "cache list"),
    "lint": ("stn_infer.lint_rules.context:examine", "lint model.onnx"),
    "optimize": ("stn_infer.repairs.equivalence:compare", "optimize model.onnx -o out/model.onnx"),
    "show": ("stn_infer.pictures.drawing:draw", "show model.onnx inputs.npy -o out/picture.png"),
    "export": ("stn_infer.torch_export.portable:build_portable", "export st-cnn-affine-rts -o out/model.onnx"),
    "verify": ("stn_infer.verification.tolerance:expect", "verify model.onnx"),
    "run": ("stn_infer.data.loader:Loader.read", "run model.onnx inputs.npy -o out/job --format npz"),
    "run-writes": ("stn_infer.pipeline.job:Folder.write_ledger", "run model.onnx inputs.npy -o out/job --format npz"),
    "bench": ("stn_infer.benchmarking.prepare.case:prepare", "bench model.onnx --quick --output out/result.json"),
    "build": (
        "stn_infer.backends.tensorrt.builder:build_plan",
        "build model.onnx -o out/engine --runtime tensorrt-rtx --target sm89",
    ),
    "best": ("stn_infer.benchmarking.prepare.case:prepare", "best model.onnx -o out/model.onnx"),
    "triton": ("stn_infer.serving.repository:_copy_model", "triton model.onnx -o out/models"),
    "plugin": ("stn_infer.plugin:_find_nvcc", "plugin build"),
}
NEEDED = {"build": "tensorrt_rtx", "show": "matplotlib"}
CHILDREN = {
    "lint": ("stn_infer.isolation:python_child", "lint model.onnx"),
    "bench": ("stn_infer.isolation:python_child", "bench model.onnx --quick --output out/result.json"),
}


def interrupted(
    folder: Path, place: str, kind: str, command: str, number: signal.Signals, **environment: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command in ``folder``, interrupted at ``place``: its result, and the seconds that it took to end."""
    onnx.save(affine_model(), str(folder / "model.onnx"))
    np.save(folder / "inputs.npy", np.zeros((8, 1, 8, 8), np.float32))
    for name in ("scratch", "out", "cache"):
        (folder / name).mkdir()
    reached, told = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.support.interrupted", place, kind, str(told), *command.split()],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder / "scratch"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(told,),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            os.close(told)
            assert os.read(reached, 1) == b"!", process.communicate()[1]
            since = time.monotonic()
            process.send_signal(number)
            output, errors = process.communicate(timeout=60)
            seconds = time.monotonic() - since
        finally:
            process.kill()
            os.close(reached)
    wait_until_gone(process.pid)
    return subprocess.CompletedProcess(command, process.returncode, output, errors), seconds


def wait_until_gone(session: int) -> None:
    """Wait until no process of a session is left; the kernel ends children after their parent."""
    deadline = time.monotonic() + 5
    while left := [process for process in os.listdir("/proc") if process.isdigit() and _session(process) == session]:
        assert time.monotonic() < deadline, f"processes {left} are left"
        time.sleep(0.02)


def _session(process: str) -> int:
    try:
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[3])


def check(folder: Path, done: subprocess.CompletedProcess[str], seconds: float, number: signal.Signals) -> None:
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (128 + number, ["error: interrupted"]), done.stderr
    assert "Traceback" not in done.stderr
    # torch keeps what it compiles
    assert [name for name in os.listdir(folder / "scratch") if not name.startswith("torchinductor")] == []
    assert [name for name in os.listdir(folder / "out") if name != "job"] == []
    assert not list(folder.glob("out/job/.*.part")) and not (folder / "out" / "job" / "run.lock").exists()
    assert seconds < 2 * (1 if os.getloadavg()[0] < (os.cpu_count() or 1) else 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["python", "native"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_a_command(tmp_path: Path, name: str, kind: str) -> None:
    place, command = COMMANDS[name]
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    number = SIGNALS[(list(COMMANDS).index(name) + (kind == "native")) % len(SIGNALS)]
    check(tmp_path, *interrupted(tmp_path, place, kind, command, number), number)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHILDREN)
def test_a_signal_ends_the_processes_that_a_command_started(tmp_path: Path, name: str) -> None:
    place, command = CHILDREN[name]
    done = interrupted(tmp_path, place, "child", command, signal.SIGTERM, STN_TRIAL_SECONDS="60")
    check(tmp_path, *done, signal.SIGTERM)


def test_a_signal_ends_a_native_call(tmp_path: Path) -> None:
    place, command, number = "stn_infer.conventions:Convention.identity_error", "models --conventions", signal.SIGHUP
    check(tmp_path, *interrupted(tmp_path, place, "native", command, number), number)
