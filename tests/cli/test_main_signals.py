"""Ctrl-C, ``kill`` and a closed terminal end a command soon, with one line, and leave no files."""

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

from tests.support.onnx_files import affine_model

COMMANDS = {
    "models": (0.3, "models --conventions"),
    "export": (4, "export st-cnn-affine-rts -o out/model.onnx"),
    "optimize": (1, "optimize model.onnx -o out/model.onnx"),
    "verify": (4, "verify model.onnx"),
    "run": (3, "run model.onnx inputs.npy -o out/job"),
    "doctor": (1, "doctor"),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What onnxruntime and torch keep in the folder for temporary files, also after an undisturbed command.
THEIRS = (".ses", "torchinductor")


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(("delay", "command"), COMMANDS.values(), ids=COMMANDS)
def test_a_signal_ends_a_command(tmp_path: Path, number: signal.Signals, delay: float, command: str) -> None:
    onnx.save(affine_model(), str(tmp_path / "model.onnx"))
    np.save(tmp_path / "inputs.npy", np.zeros((300_000, 1, 8, 8), np.float32))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "out").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "stn_infer.cli.main", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        since = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        if process.returncode in (0, -number):
            pytest.skip("it had just ended")
        assert time.monotonic() - since < 2 * (1 if os.getloadavg()[0] < (os.cpu_count() or 1) else 5)
        assert process.returncode == 128 + number and said.strip() == "error: interrupted"
        assert [name for name in os.listdir(scratch) if not name.startswith(THEIRS)] == []
        assert [name for name in os.listdir(tmp_path / "out") if name != "job"] == []
    else:
        process.communicate()
        pytest.skip("it had ended before")
