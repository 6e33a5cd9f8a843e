"""SVHN and CUB-200-2011 as tasks, from a folder that the user has unpacked. Pictures are read when they are needed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from export.datasets.cub import read_birds, resized
from export.datasets.svhn import crop, read_house_numbers, targets
from export.datasets.task import TEST_BATCH, Batch, Part, Task, full
from stn_infer.errors import InputError

VALIDATION = 20  # every 20th training picture is left out for validation


class FolderTask(Task):
    """Pictures of a data set: inputs [N, 3, S, S], each training picture once per epoch in random order."""

    samples: int
    tests: int
    _parts: dict[Part, Sequence[int]]

    def _split(self, training: Sequence[int], test: Sequence[int], folder: Path) -> None:
        """Set the parts from the numbers of the pictures for training and test."""
        validation = training[::VALIDATION]
        held = set(validation)
        self._parts = {
            "training": [number for number in training if number not in held],
            "validation": validation,
            "test": test,
        }
        if empty := [part for part, numbers in self._parts.items() if not numbers]:
            raise InputError(f"{folder} has no pictures for {empty[0]}")
        self.samples, self.tests = len(self._parts["training"]), len(test)

    @abstractmethod
    def picture(self, number: int) -> NDArray[np.uint8]:
        """Pixels [S, S, 3]."""

    @abstractmethod
    def target(self, numbers: Sequence[int]) -> Tensor:
        """Targets [N, ...]."""

    def draw(self, part: Part, count: int, generator: Generator) -> Batch:
        """``count`` random pictures of a part."""
        numbers = self._parts[part]
        return self._batch([numbers[i] for i in torch.randint(len(numbers), (count,), generator=generator).tolist()])

    def epoch(self, batch_size: int, generator: Generator, strength: Callable[[int], float] = full) -> Iterator[Batch]:
        """All training pictures."""
        numbers = self._parts["training"]
        order = torch.randperm(len(numbers), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            yield self._batch([numbers[i] for i in order[start : start + batch_size]])

    def test(self, part: Part, seed: int) -> Iterator[Batch]:
        """All pictures of the part, in order."""
        numbers = self._parts[part]
        for start in range(0, len(numbers), TEST_BATCH):
            yield self._batch(numbers[start : start + TEST_BATCH])

    def _batch(self, numbers: Sequence[int]) -> Batch:
        pixels = np.stack([self.picture(number) for number in numbers])
        return Batch(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), self.target(numbers))


class SvhnNumbers(FolderTask):
    """SVHN's full numbers: targets [N, 5], 10 for "no digit".

    Args:
        folder: with ``train`` and ``test``, and ``extra`` if it is there, whose pictures are also for training.
        size: of the crops in pixels, 64 or 128.

    Raises:
        InputError, MissingDependencyError: as for :func:`~export.datasets.svhn.read_house_numbers`.
    """

    def __init__(self, folder: Path, size: int = 64) -> None:
        training = read_house_numbers(folder / "train")
        if (folder / "extra").is_dir():
            training += read_house_numbers(folder / "extra")
        self.numbers = [*training, *read_house_numbers(folder / "test")]
        self.size = size
        self._split(range(len(training)), range(len(training), len(self.numbers)), folder)

    def picture(self, number: int) -> NDArray[np.uint8]:
        """The crop of a number."""
        return crop(self.numbers[number], self.size)

    def target(self, numbers: Sequence[int]) -> Tensor:
        """Classes [N, 5]."""
        return torch.from_numpy(targets([self.numbers[number] for number in numbers]))


class CubBirds(FolderTask):
    """CUB-200-2011: targets [N], the classes from 0.

    Args:
        folder: the unpacked ``CUB_200_2011``.
        size: of the images in pixels, 224 or 448.

    Raises:
        InputError: as for :func:`~export.datasets.cub.read_birds`.
    """

    def __init__(self, folder: Path, size: int = 224) -> None:
        self.birds = read_birds(folder)
        self.size = size
        training = [number for number, bird in enumerate(self.birds) if bird.training]
        self._split(training, [number for number, bird in enumerate(self.birds) if not bird.training], folder)

    def picture(self, number: int) -> NDArray[np.uint8]:
        """The image."""
        return resized(self.birds[number], self.size)

    def target(self, numbers: Sequence[int]) -> Tensor:
        """Classes [N]."""
        return torch.tensor([self.birds[number].label for number in numbers])
