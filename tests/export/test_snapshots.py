"""Snapshots of a training run: which steps, what is in them, and that an interruption changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from export import trainer
from export.snapshots import snapshot_steps
from export.trainer import Run
from stn_infer.data.digits import Digits
from tests.export.test_trainer import RECIPE, weights


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    digits = Digits(rng.integers(0, 256, (120, 28, 28), dtype=np.uint8), rng.integers(0, 10, 120))
    monkeypatch.setattr(trainer, "training_digits", lambda recipe: digits)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_steps_are_denser_at_first() -> None:
    assert sorted(snapshot_steps(100, 5)) == [0, 6, 25, 56, 100]
    assert sorted(snapshot_steps(3, 10)) == [0, 1, 2, 3]
    assert snapshot_steps(7, 1) == {7}
    assert not snapshot_steps(7, 0)


def test_the_first_and_the_last_are_the_runs_own_weights(tmp_path: Path) -> None:
    run = replace(Run(RECIPE, False, 3), snapshots=4)  # of 9 steps
    assert run.settings == Run(RECIPE, False, 3).settings
    trained = weights(run, tmp_path / "a.state")
    folder = tmp_path / "a.snapshots"
    names = [f"step-{step:07}.safetensors" for step in (0, 1, 4, 9)]
    assert sorted(contents(folder)) == names
    for name, expected in ((names[0], run.network().state_dict()), (names[-1], trained)):
        found = load_file(folder / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
    with safe_open(folder / names[2], "np") as file:
        assert file.metadata() == {"step": "4"}

    weights(run, tmp_path / "b.state", stop_after=2)
    weights(run, tmp_path / "b.state")
    assert contents(tmp_path / "b.snapshots") == contents(folder)

    (folder / "step-0000005.safetensors").write_bytes(b"of an earlier run")
    (tmp_path / "a.state").unlink()
    weights(run, tmp_path / "a.state")
    assert sorted(contents(folder)) == names


def test_none_are_kept_unless_asked_for(tmp_path: Path) -> None:
    weights(Run(RECIPE, False, 3), tmp_path / "a.state")
    assert not (tmp_path / "a.snapshots").exists()
