"""Co-localization (Jaderberg et al. 2015, appendix): find, unsupervised, the object that images have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stn_infer.layers import SpatialTransformer
from stn_infer.models.localization import cnn_localization
from stn_infer.transforms import Attention


class Colocalizer(nn.Module):
    """Crops the common object: a localization network and an attention transformer."""

    pixels: Tensor

    def __init__(self, transformer: SpatialTransformer, size: Sequence[int]) -> None:
        super().__init__()
        self.transformer = transformer
        self.register_buffer("pixels", torch.tensor([float(size[1]), float(size[0])]), persistent=False)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """The crop and its box, from images [N, C, H, W].

        Returns:
            ``crop`` [N, C, h, w], the warped image, and ``box`` [N, 4], its (left, top, right, bottom) in pixels of the
            input, not clipped to it.
        """
        assert self.transformer.localization is not None
        parameters = self.transformer.localization(input)  # [N, 3]: s, tx, ty
        half, center = parameters[:, :1].abs(), parameters[:, 1:]
        corners = torch.cat([center - half, center + half], dim=1)
        return {"crop": self.transformer(input, parameters), "box": (corners + 1) / 2 * self.pixels.repeat(2)}


def colocalizer(
    input_shape: Sequence[int] = (1, 84, 84),
    output_size: Sequence[int] = (28, 28),
    filters: int = 20,
    hidden: int = 20,
) -> Colocalizer:
    """An attention transformer with a convolutional localization network at half resolution.

    It starts with a crop of the middle in the size of ``output_size``.

    Args:
        input_shape: (C, H, W); H and W at least 28.
        output_size: (H, W) of the crop.
        filters: of both convolutions of the localization network.
        hidden: width of its fully connected layer.

    Raises:
        UsageError: an input size too small for the convolutions.
    """
    size = input_shape[1:]
    localization = cnn_localization("colocalization", input_shape, 3, filters, hidden)
    head = localization[-1]
    assert isinstance(head, nn.Linear)
    transformer = SpatialTransformer(localization, Attention(), output_size)
    with torch.no_grad():
        head.bias[0] = max(output_size[0] / size[0], output_size[1] / size[1])
    return Colocalizer(transformer, size)
