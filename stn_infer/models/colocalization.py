"""Co-localization (Jaderberg et al. 2015, appendix): find, unsupervised, the object that images have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.models.localization import SMALLEST
from stn_infer.transforms import Attention

SALIENCE = 100.0  # the factor on the mean feature in the scores that training starts with
WINDOW = 7  # of the scores' convolution: 28 pixels of the input


class Colocalizer(nn.Module):
    """Crops the common object: a localization network and an attention transformer of fixed scale."""

    pixels: Tensor

    def __init__(self, transformer: SpatialTransformer, size: Sequence[int], scale: float) -> None:
        super().__init__()
        self.transformer = transformer
        self.scale = scale
        self.register_buffer("pixels", torch.tensor([float(size[1]), float(size[0])]), persistent=False)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """The crop and its box, from images [N, C, H, W].

        Returns:
            ``crop`` [N, C, h, w], the warped image, and ``box`` [N, 4], its (left, top, right, bottom) in pixels of the
            input, not clipped to it.
        """
        assert self.transformer.localization is not None
        center = self.transformer.localization(input)  # [N, 2]: tx, ty
        corners = torch.cat([center - self.scale, center + self.scale], dim=1)
        return {"crop": self.transformer(input, center), "box": (corners + 1) / 2 * self.pixels.repeat(2)}


class SoftArgmax(nn.Module):
    """The mean position under a softmax of scores: [N, 1, h, w] to (x, y) [N, 2] in [-1, 1].

    It lies inside of the image, wherever the scores are high.
    """

    positions: Tensor

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        rows, columns = ((torch.arange(length) + 0.5) / length * 2 - 1 for length in size)
        positions = torch.stack([columns.repeat(size[0]), rows.repeat_interleave(size[1])], dim=1)
        self.register_buffer("positions", positions, persistent=False)  # [h * w, 2]

    def forward(self, scores: Tensor) -> Tensor:
        """(x, y) [N, 2]."""
        return torch.softmax(scores.flatten(1), dim=1) @ self.positions


def colocalizer(
    input_shape: Sequence[int] = (1, 84, 84), output_size: Sequence[int] = (28, 28), filters: int = 20
) -> Colocalizer:
    """An attention transformer whose place is the soft argmax of a fully convolutional localization network.

    Its crop has the size of ``output_size`` in the image. It starts where the image is bright: with crops that start
    elsewhere, such as in the middle, training ends at crops of the background, which are all alike.

    Args:
        input_shape: (C, H, W); H and W at least 28.
        output_size: (H, W) of the crop.
        filters: of both convolutions of the localization network.

    Raises:
        UsageError: an input size below 28 pixels.
    """
    channels, *size = input_shape
    if min(size) < SMALLEST:
        least = f"{SMALLEST} x {SMALLEST} pixels"
        raise UsageError(f"colocalization takes inputs of at least {least}, not {size[0]} x {size[1]}")
    scores = nn.Conv2d(filters, 1, WINDOW, padding=WINDOW // 2)
    nn.init.constant_(scores.weight, SALIENCE / scores.weight[0].numel())
    nn.init.zeros_(scores.bias)  # type: ignore[arg-type]
    localization = nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(channels, filters, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(filters, filters, 5, padding=2),
        nn.ReLU(),
        scores,
        SoftArgmax([length // 4 for length in size]),
    )
    scale = max(output_size[0] / size[0], output_size[1] / size[1])
    transformer = SpatialTransformer(localization, Attention(scale=scale), output_size, identity_init=False)
    return Colocalizer(transformer, size, scale)
