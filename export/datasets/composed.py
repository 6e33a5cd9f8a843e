"""Sets composed from MNIST digits: addition, house numbers, volumes. Their samples are new in every epoch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from math import pi

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from export.datasets.photographs import piece
from export.datasets.svhn import sequences
from export.datasets.task import Batch, Part, Task, full
from stn_infer.data.digits import Digits
from stn_infer.data.distort import distort
from stn_infer.data.mnist import load_mnist
from stn_infer.errors import UsageError


def chosen(part: Part, count: int, generator: Generator) -> Digits:
    """``count`` random digits of a part of MNIST."""
    digits = load_mnist(part)
    index = torch.randint(len(digits.labels), (count,), generator=generator).numpy()
    return Digits(digits.images[index], digits.labels[index])


class Ramped(Task):
    """A set whose samples can be easier at the beginning of a training."""

    ramps = True

    @abstractmethod
    def draw(self, part: Part, count: int, generator: Generator, strength: float = 1.0) -> Batch:
        """``count`` new samples; a strength of 0 is the easiest."""

    def epoch(self, batch_size: int, generator: Generator, strength: Callable[[int], float] = full) -> Iterator[Batch]:
        """The batches of an epoch, each with its strength."""
        for index, start in enumerate(range(0, self.samples, batch_size)):
            yield self.draw("training", min(batch_size, self.samples - start), generator, strength(index))


class Addition(Ramped):
    """Two digits in a channel each, both distorted by RTS on 42 x 42 pixels; the class is their sum, 0 to 18.

    Inputs [N, 2, 42, 42], targets [N].
    """

    samples, tests = 55_000, 10_000
    canvas = (42, 42)

    def draw(self, part: Part, count: int, generator: Generator, strength: float = 1.0) -> Batch:
        """Samples from 2 ``count`` random digits."""
        digits = chosen(part, 2 * count, generator)
        images = distort(torch.from_numpy(digits.images), "RTS", generator, self.canvas, strength)
        labels = torch.from_numpy(digits.labels)
        return Batch(images.reshape(count, 2, *self.canvas), labels.reshape(count, 2).sum(1))


class HouseNumbers(Ramped):
    """A stand-in for SVHN: numbers of 1 to 5 MNIST digits, in one color, on a piece of a photograph.

    The digits stand in a row that is rotated by up to 15 degrees and has a random size and place. Inputs
    [N, 3, S, S], targets [N, 5], 10 for "no digit". At less than full strength, the numbers are shorter, so that their
    digits are larger, and turned less.
    """

    samples, tests = 20_000, 4_000
    longest = 5

    def __init__(self, size: int = 64) -> None:
        if size < 32:
            raise UsageError(f"house numbers need at least 32 x 32 pixels, not {size} x {size}")
        self.size = size

    def draw(self, part: Part, count: int, generator: Generator, strength: float = 1.0) -> Batch:
        """``count`` photographs."""
        longest = 1 + round((self.longest - 1) * strength)
        lengths = torch.randint(1, longest + 1, (count,), generator=generator)
        digits = chosen(part, count * self.longest, generator)
        glyphs = torch.from_numpy(digits.images).reshape(count, self.longest, 28, 28)[..., 3:25]  # narrower: margins
        shown = torch.arange(self.longest) < lengths[:, None]
        row = (glyphs * shown[:, :, None, None]).permute(0, 2, 1, 3).reshape(count, 1, 28, -1).float() / 255
        mask = F.grid_sample(row, self._grid(lengths, generator, strength), align_corners=False)
        backgrounds = torch.stack([piece(self.size, generator) for _ in range(count)])
        colors = self._colors(backgrounds, generator)
        painted = backgrounds * (1 - mask) + colors[:, :, None, None] * mask
        noise = 4 * torch.randn(painted.shape, generator=generator)
        labels = digits.labels.reshape(count, self.longest)
        numbers = [values[:length].tolist() for values, length in zip(labels, lengths.tolist(), strict=True)]
        return Batch((painted + noise).round().clamp(0, 255).to(torch.uint8), torch.from_numpy(sequences(numbers)))

    def _grid(self, lengths: Tensor, generator: Generator, strength: float) -> Tensor:
        """The sampling grid [N, S, S, 2] into a row of five glyphs, of which the first ``lengths`` are shown."""
        count = len(lengths)
        angle = (torch.rand(count, generator=generator) * 2 - 1) * pi / 12 * strength
        widest = 1.7 / (lengths * (22 / 28))  # the digit's height for which the number fills 85 % of the width
        height = torch.minimum(widest, torch.tensor(1.2)) * (0.75 + 0.25 * torch.rand(count, generator=generator))
        width = lengths * height * 22 / 28  # in canvas units, which span 2
        half_x = (width * angle.cos() + height * angle.sin().abs()) / 2
        half_y = (width * angle.sin().abs() + height * angle.cos()) / 2
        place = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - torch.stack([half_x, half_y], 1)).clamp(
            min=0
        )
        cosine, sine = angle.cos(), angle.sin()
        along = torch.stack([cosine, sine], 1) / (width / 2)[:, None]  # from the number's center, -1 to 1 over it
        across = torch.stack([-sine, cosine], 1) / (height / 2)[:, None]
        share = (lengths / self.longest)[:, None]
        along = along * share
        linear = torch.stack([along, across], 1)  # [N, 2, 2]
        shift = -(linear @ place[:, :, None])
        shift[:, 0, 0] += share[:, 0] - 1
        return F.affine_grid(torch.cat([linear, shift], 2), [count, 1, self.size, self.size], align_corners=False)

    @staticmethod
    def _colors(backgrounds: Tensor, generator: Generator) -> Tensor:
        """Colors [N, 3] that differ from each background's mean by 70 to 180 levels, lighter or darker as it fits."""
        mean = backgrounds.mean(dim=(2, 3))
        distance = 70 + 110 * torch.rand(mean.shape, generator=generator)
        sign = torch.where(mean.mean(1, keepdim=True) > 127, -1.0, 1.0)
        return (mean + sign * distance).clamp(0, 255)


class Volumes(Task):
    """Digits extruded to half of the depth of a volume, rotated in 3-D by up to 45 degrees about each axis and moved.

    Inputs [N, 1, S, S, S], targets [N].
    """

    samples, tests = 8_000, 2_000

    def __init__(self, size: int = 60) -> None:
        if size < 28:
            raise UsageError(f"volumes need at least 28 voxels along each axis, not {size}")
        self.size = size

    def draw(self, part: Part, count: int, generator: Generator) -> Batch:
        """``count`` volumes."""
        digits = chosen(part, count, generator)
        angles = (torch.rand(count, 3, generator=generator) * 2 - 1) * pi / 4
        share = 0.55 + 0.2 * torch.rand(count, 1, generator=generator)  # of the side, for the digit's cube
        place = 0.8 * (1 - share) * (torch.rand(count, 3, generator=generator) * 2 - 1)
        linear = _rotation(angles) / share[:, :, None]
        theta = torch.cat([linear, -(linear @ place[:, :, None])], 2)
        images = torch.from_numpy(digits.images).float()
        volumes = [_extruded(image, matrix, self.size) for image, matrix in zip(images, theta, strict=True)]
        return Batch(torch.stack(volumes)[:, None], torch.from_numpy(digits.labels))


def _extruded(image: Tensor, theta: Tensor, size: int) -> Tensor:
    """Volume [S, S, S] uint8 of an image [28, 28] that fills voxels 7 to 20 of a cube's depth, sampled by [3, 4].

    A trilinear sample of the cube is a bilinear one of the image times a linear one of the depth, in a sixth of the
    time.
    """
    axis = (2 * torch.arange(size) + 1) / size - 1
    x, y, z = (
        (row[3] + row[2] * axis)[:, None, None] + (row[1] * axis)[:, None] + row[0] * axis for row in theta.unbind()
    )
    grid = torch.stack([x, y], 3).reshape(1, size * size, size, 2)
    flat = F.grid_sample(image[None, None], grid, align_corners=False).reshape(size, size, size)
    filled = (7.5 - 14 * z.abs()).clamp(0, 1)
    return (flat * filled).round().clamp(0, 255).to(torch.uint8)


def _rotation(angles: Tensor) -> Tensor:
    """Rotations [N, 3, 3] about x, y and z, from angles [N, 3]."""
    result = torch.eye(3).expand(len(angles), 3, 3)
    for axis in range(3):
        first, second = ((1, 2), (0, 2), (0, 1))[axis]
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, first, first], turn[:, second, second] = cosine, cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        result = turn @ result
    return result
