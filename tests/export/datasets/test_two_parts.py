"""The stand-in for birds: classes that differ in two small parts, and nothing else that tells them apart."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from export.datasets.two_parts import CLASSES, FORMS, TwoParts
from stn_infer.errors import UsageError


def drawn(label: int) -> torch.Tensor:
    task = TwoParts(64)
    image = task._animal(label // FORMS, label % FORMS, Generator().manual_seed(4))
    return torch.from_numpy(image.copy()).int()


def test_all_classes_are_drawn_and_the_seed_decides() -> None:
    first, again = (TwoParts(64).draw("training", 120, Generator().manual_seed(0)) for _ in range(2))
    assert first.inputs.shape == (120, 3, 64, 64) and first.inputs.dtype == torch.uint8
    assert set(first.targets.tolist()) == set(range(CLASSES))
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)


def test_classes_differ_only_within_two_small_parts() -> None:
    images = [drawn(label) for label in range(CLASSES)]
    for one in range(CLASSES):
        for other in range(one):
            changed = (images[one] != images[other]).any(2)
            parts = (one // FORMS != other // FORMS) + (one % FORMS != other % FORMS)
            assert 0 < int(changed.sum()) <= parts * 10 * 10


def test_a_size_that_is_too_small_is_rejected() -> None:
    with pytest.raises(UsageError, match="at least 64 x 64"):
        TwoParts(63)
