"""`run` and `bench` lose nothing: killed, interrupted or out of disk at random moments, then resumed.

``STN_FAULTS=20 pytest -m slow tests/cli/test_run_faults.py`` multiplies the number of trials.
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
@pytest.mark.parametrize(("campaign", "count"), [("run", 12), ("bench", 3)])
def test_a_job_that_is_disturbed_and_resumed_is_the_same(campaign: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.support.faults", campaign, "--count", str(count * TIMES)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    counts = json.loads(ended.stdout)
    assert counts["trials"] == count * TIMES and counts["lost"] == []
    assert sum(number for name, number in counts.items() if name.endswith(": ended")) >= count * TIMES // 2
