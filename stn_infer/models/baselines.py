"""The baseline classifiers (no STN) of the paper's distorted-digit experiments."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from stn_infer.errors import UsageError


def fcn(input_shape: Sequence[int] = (1, 28, 28), classes: int = 10, hidden: int = 128) -> nn.Sequential:
    """Two fully connected hidden layers: [N, C, H, W] to logits [N, classes]."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(input_shape), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def cnn(input_shape: Sequence[int] = (1, 28, 28), classes: int = 10, filters: int = 32) -> nn.Sequential:
    """conv 9x9, max 2, conv 7x7, max 2, one fully connected layer: [N, C, H, W] to logits [N, classes].

    Raises:
        UsageError: the input's height or width is below 24, which leaves no features after the second pooling.
    """
    channels, height, width = input_shape
    rows, cols = (((length - 8) // 2 - 6) // 2 for length in (height, width))
    if min(rows, cols) < 1:
        raise UsageError(f"cnn takes inputs of at least 24 x 24 pixels, not {height} x {width}")
    return nn.Sequential(
        nn.Conv2d(channels, filters, 9),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(filters, 2 * filters, 7),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * filters * rows * cols, classes),
    )
