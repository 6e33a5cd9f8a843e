from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from stn_infer.interrupts import SIGNALS
from tests.support.paths import ROOT

#: Nothing larger than the entry point is imported when the signal comes.
EARLY = """
import signal, sys
from stn_infer.__main__ import main
class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "stn_infer.cli.main":
            assert not {"click", "stn_infer.errors"} & set(sys.modules)
            signal.raise_signal(int(sys.argv[1]))
sys.meta_path.insert(0, Interrupts())
main()
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_before_the_command_line_is_imported_is_one_line(number: signal.Signals) -> None:
    command = [sys.executable, "-c", EARLY, str(int(number))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "error: interrupted\n")


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As ``nohup`` and a shell's background jobs have it."""
    ignored = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    late = EARLY.replace("int(sys.argv[1])", "signal.SIGHUP")
    command = [sys.executable, "-c", ignored + late, "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("stn-infer") and done.stderr == ""
