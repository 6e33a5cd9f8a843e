"""What the trainer needs to know of an experiment: its samples, its loss, and how a prediction is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch.nn.functional as F
from torch import Generator, Tensor, nn

Part = Literal["training", "validation", "test"]
TEST_BATCH = 200


class Batch(NamedTuple):
    """Inputs [N, ...] uint8 and their targets [N, ...]."""

    inputs: Tensor
    targets: Tensor


def full(index: int) -> float:
    """The full strength of distortions."""
    return 1.0


class Task(ABC):
    """An experiment whose samples are composed when they are needed.

    Attributes:
        samples: new training samples per epoch.
        tests: validation and test samples, the same for every run.
    """

    samples: int
    tests: int
    #: Whether training samples can be distorted less.
    ramps: ClassVar[bool] = False

    @abstractmethod
    def draw(self, part: Part, count: int, generator: Generator) -> Batch:
        """``count`` new samples from the digits of a part."""

    def epoch(self, batch_size: int, generator: Generator, strength: Callable[[int], float] = full) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            batch_size: samples per batch, fewer in the last one.
            generator: the source of random numbers.
            strength: of the distortions, 0 to 1, by the batch's index; read only if the task ``ramps``.
        """
        for start in range(0, self.samples, batch_size):
            yield self.draw("training", min(batch_size, self.samples - start), generator)

    def test(self, part: Part, seed: int) -> Iterator[Batch]:
        """The test samples; the same for the same seed."""
        generator = Generator().manual_seed(seed)
        for start in range(0, self.tests, TEST_BATCH):
            yield self.draw(part, min(TEST_BATCH, self.tests - start), generator)

    def loss(self, network: nn.Module, inputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """What training minimizes; cross-entropy, averaged over the places of a sequence.

        Args:
            network: in training mode.
            inputs: float32, pre-processed.
            targets: as drawn.
            generator: for a loss that samples.
        """
        return F.cross_entropy(network(inputs).flatten(0, -2), targets.flatten())

    def judge(self, output: Any, targets: Tensor) -> Mapping[str, Tensor]:
        """By name, one value [N] per sample, whose means are reported. ``error`` [N] bool says which are wrong.

        A class, or every class of a sequence, must be right; then ``digit_error`` is the fraction of wrong places.
        """
        wrong = output.argmax(-1) != targets
        if wrong.ndim == 1:
            return {"error": wrong}
        return {"error": wrong.any(1), "digit_error": wrong.float().mean(1)}
