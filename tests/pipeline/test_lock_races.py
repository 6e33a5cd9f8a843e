"""Several processes at once on one folder, result, engine or verdict: one wins, the others end with one line.

``STN_FAULTS=30 pytest -m slow tests/pipeline/test_lock_races.py`` multiplies the number of races.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

TIMES = int(os.environ.get("STN_FAULTS", "1"))


@pytest.mark.slow
@pytest.mark.parametrize(("campaign", "count"), [("folder", 8), ("engine", 10), ("verdict", 1), ("bench", 1)])
def test_races_leave_nothing_mixed_or_unusable(campaign: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.support.races", campaign, "--count", str(count * TIMES)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    counts = json.loads(ended.stdout)
    assert counts["races"] == count * TIMES and counts["lost"] == [] and counts["processes: won"] >= count // 2
