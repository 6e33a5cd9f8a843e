"""Co-localization: find, without boxes, the object that images have in common (Jaderberg et al. 2015, appendix).

All images show the same digit class. Training sees neither boxes nor which class it is: it makes the crops of two
images more alike than a crop and a random patch of its image, in the features of a network that was trained on the nine
other classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from export.datasets.task import Batch, Part, Task
from stn_infer.data.digits import Digits
from stn_infer.data.distort import DISTRACTOR_SIZE, paste
from stn_infer.data.distort import window as window_at
from stn_infer.data.mnist import load_mnist
from stn_infer.errors import UsageError

SIDE = 28  # of the digit, the crop and the random patch, in pixels
MARGIN = 1.0
ENCODER_STEPS, ENCODER_BATCH = 600, 64
ENCODED = 64  # features
PAIRS = 256  # of digits, on which the scale of the features is measured
CLUTTER = 16  # pieces of 6 x 6 pixels of other digits


class Colocalization(Task):
    """Digits of one class at a random place on 84 x 84 pixels, with or without clutter.

    Inputs [N, 1, 84, 84]; targets [N, 4] are the boxes (left, top, right, bottom) in pixels, for the measurement only.

    Args:
        digit: the class.
        cluttered: with 16 pieces of 6 x 6 pixels of other digits.
    """

    samples, tests = 4_000, 800
    canvas = 84

    def __init__(self, digit: int = 5, cluttered: bool = False) -> None:
        if not 0 <= digit <= 9:
            raise UsageError(f"a digit class is 0 to 9, not {digit}")
        self.digit, self.cluttered = digit, cluttered

    def draw(self, part: Part, count: int, generator: Generator) -> Batch:
        """``count`` canvases."""
        digits = load_mnist(part)
        own = _where(digits, self.digit)
        images = torch.from_numpy(digits.images[own[torch.randint(len(own), (count,), generator=generator)].numpy()])
        canvas = torch.zeros(count, self.canvas, self.canvas, dtype=torch.uint8)
        if self.cluttered:
            for _ in range(CLUTTER):
                others = torch.randint(len(digits.labels), (count,), generator=generator).numpy()
                pieces = torch.from_numpy(digits.images[others])
                cut = window(pieces, _places(count, SIDE - DISTRACTOR_SIZE, generator), DISTRACTOR_SIZE)
                paste(canvas, cut, _places(count, self.canvas - DISTRACTOR_SIZE, generator).flip(1))
        place = _places(count, self.canvas - SIDE, generator)  # x, y
        paste(canvas, images, place.flip(1))
        return Batch(canvas[:, None], torch.cat([place, place + SIDE], 1).float())

    def loss(self, network: nn.Module, inputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """max(0, |e(crop) - e(crop of another image)|^2 - |e(crop) - e(random patch)|^2 + 1), averaged.

        The encoder e is scaled so that two random digits are at a mean squared distance of 1. ``targets`` is not read.
        """
        encoder = self.encoder.to(inputs.device)
        crops = encoder(network(inputs)["crop"])
        place = _places(len(inputs), self.canvas - SIDE, generator).to(inputs.device)
        random = encoder(window(inputs[:, 0], place, SIDE)[:, None])
        alike = (crops - crops.roll(1, 0)).square().sum(1)
        apart = (crops - random).square().sum(1)
        return F.relu(alike - apart + MARGIN).mean()

    def judge(self, output: Any, targets: Tensor) -> Mapping[str, Tensor]:
        """``iou`` of the box and the digit's, and ``error``: an IoU of at most 0.5."""
        iou = intersection_over_union(output["box"], targets)
        return {"error": iou <= 0.5, "iou": iou}

    @cached_property
    def encoder(self) -> nn.Module:
        """Trained in seconds to classify undistorted digits of the nine other classes; the same in every run."""
        state = torch.get_rng_state()
        torch.manual_seed(self.digit)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, ENCODED),
        )
        head = nn.Sequential(nn.ReLU(), nn.Linear(ENCODED, 10))
        digits = load_mnist("training")
        others = torch.from_numpy(digits.labels != self.digit).nonzero()[:, 0]
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 1e-3)
        for _ in range(ENCODER_STEPS):
            index = others[torch.randint(len(others), (ENCODER_BATCH,))].numpy()
            images = torch.from_numpy(digits.images[index])[:, None].float() / 255
            loss = F.cross_entropy(head(network(images)), torch.from_numpy(digits.labels[index]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.requires_grad_(False).eval()
        some = others[torch.randperm(len(others))[: 2 * PAIRS]].numpy()
        first, second = network(torch.from_numpy(digits.images[some])[:, None].float() / 255).tensor_split(2)
        last = network[-1]
        assert isinstance(last, nn.Linear)
        factor = 1 / (first[: len(second)] - second).square().sum(1).mean().sqrt()
        last.weight.mul_(factor)
        last.bias.mul_(factor)
        torch.set_rng_state(state)
        return network


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """IoU [N] of boxes [N, 4] (left, top, right, bottom); 0 for a box without an area."""
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (first, second)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-9)


def window(images: Tensor, place: Tensor, side: int) -> Tensor:
    """[N, side, side]: of each image [N, H, W] the square whose first pixel is at its place (x, y) [N, 2]."""
    return window_at(images, place.flip(1), (side, side))


def _where(digits: Digits, digit: int) -> Tensor:
    return torch.from_numpy(digits.labels == digit).nonzero()[:, 0]


def _places(count: int, room: int, generator: Generator) -> Tensor:
    """Random (x, y) [count, 2], each from 0 to ``room`` inclusive."""
    return torch.randint(0, room + 1, (count, 2), generator=generator)
