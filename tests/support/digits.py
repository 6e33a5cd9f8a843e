"""Digits that tell what they are: digit d is a square of brightness 20 d + 50, from row and column 4 to 23."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer.data.digits import Digits


def plain_digits(count: int = 40) -> Digits:
    """``count`` digits, their classes in turn."""
    labels = np.arange(count) % 10
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = (20 * labels + 50)[:, None, None]
    return Digits(images, labels)


def use(patch: pytest.MonkeyPatch, digits: Digits) -> None:
    """Compose sets from these digits."""
    for module in ("composed", "colocalize"):
        patch.setattr(f"export.datasets.{module}.load_mnist", lambda part: digits)
