"""Distorted digits as a task: every digit once per epoch, in a new order."""

from __future__ import annotations

import torch
from torch import Generator

from export.datasets.distorted import DistortedDigits
from stn_infer.models.recipes import Data
from tests.support.digits import plain_digits


def test_an_epoch_has_every_digit_once() -> None:
    task = DistortedDigits(plain_digits(30), Data("T", (40, 40)))
    generator = Generator().manual_seed(0)
    first, second = (list(task.epoch(8, generator)) for _ in range(2))
    assert [len(batch.targets) for batch in first] == [8, 8, 8, 6]
    labels = [torch.cat([batch.targets for batch in epoch]) for epoch in (first, second)]
    assert all(torch.bincount(found).tolist() == [3] * 10 for found in labels)
    assert not torch.equal(*labels)
    for batch in first:
        assert ((batch.inputs.flatten(1).amax(1).long() - 50) / 20).tolist() == batch.targets.tolist()


def test_drawn_digits_are_distorted_training_digits() -> None:
    batch = DistortedDigits(plain_digits(30), Data("T", (40, 40))).draw("training", 7, Generator().manual_seed(0))
    assert batch.inputs.shape == (7, 40, 40)
    assert ((batch.inputs.flatten(1).amax(1).long() - 50) / 20).tolist() == batch.targets.tolist()
