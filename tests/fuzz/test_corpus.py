"""What the fuzzer found once, again: each case ends as it should, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import inside
from tests.fuzz.corpus import Stored, read_corpus
from tests.fuzz.worker import judge


@pytest.mark.parametrize("case", read_corpus(), ids=lambda case: case.name)
def test_what_was_found_stays_fixed(case: Stored, tmp_path: Path) -> None:
    outcome = inside.run(case.command, case.seed, tmp_path / "case", trial=case.trial)
    finding = judge(case.command, outcome)
    assert finding is None, f"{' '.join(case.command)}: {finding}\n{outcome.output}{outcome.trace}"
