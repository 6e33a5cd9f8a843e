"""OpenVINO's messages on one line, and what to install where it is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stn_infer.backends.openvino.runtime import load_openvino, reason
from stn_infer.errors import MissingDependencyError
from stn_infer.extras import install
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "Exception from src/inference/src/cpp/core.cpp:105:\nCheck 'false' failed at src/report.cpp:151:\n"
            "FrontEnd API failed with OpConversionFailure:\nModel wasn't fully converted. Failed operations detailed "
            "log:\n-- Conv-18 with a message:\nthe rank has to be known\n\nSummary:\n"
            "-- No conversion rule found for operations: stn.SpatialTransformer",
            "No conversion rule found for operations: stn.SpatialTransformer",
        ),
        (
            "Exception from src/core.cpp:1:\nException from src/plugin.cpp:2:\nthe shapes do not fit",
            "the shapes do not fit",
        ),
        (
            "Exception from src/core.cpp:1:\n[cpu]: Check 'a == b' failed at src/shape.cpp:77: [cpu]reshape: wrong",
            "[cpu]: [cpu]reshape: wrong",
        ),
        ("Exception from src/core.cpp:1:", "Exception from src/core.cpp:1:"),
        ("", "RuntimeError"),
    ],
)
def test_a_reason_is_one_line_without_places(message: str, told: str) -> None:
    assert reason(RuntimeError(message)) == told


def test_a_missing_openvino_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install("openvino"))):
        load_openvino()


SIGNALED = """
import gc, os, signal
from stn_infer.backends.openvino.backend import OpenVinoBackend
from tests.support.wrong_files import one_transformer

content = one_transformer().SerializeToString()
opened = [OpenVinoBackend(content, plugin=False) for _ in range(3)]
while opened:
    opened.pop(0).close()  # in the order in which they came
    gc.collect()
signal.signal(signal.SIGALRM, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGALRM)
"""


def test_a_signal_after_backends_were_closed_is_handled() -> None:
    """OpenVINO leaves the process with a freed signal stack once several of its cores have gone."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    done = subprocess.run([sys.executable, "-c", SIGNALED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


IMPORT = """
import sys
from pathlib import Path
from stn_infer.backends.openvino.runtime import load_openvino
load_openvino()
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry  # what else uses it finds it
"""


def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    """It would send an event over the network from a forked process, which can wait for ever for the parent's locks."""
    pytest.importorskip("openvino")
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text(
        "import sys\nprint('telemetry', 'openvino' in sys.modules and hasattr(sys.modules['openvino'], 'Core'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "telemetry True\n"), done.stderr
