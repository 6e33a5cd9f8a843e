"""The fine-grained networks (Jaderberg et al. 2015, section 4.3): parallel transformers that find parts of a bird."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.models.inception import inception
from stn_infer.transforms import Attention

LOCALIZATION_SIZE = 224  # what the localization network sees at most, in the paper's networks


class PartNet(nn.Module):
    """Logits [N, classes] from images [N, C, H, W]: crops of one image, described separately, classified together.

    Attributes:
        localization: one network for all transformers, [N, C, h, w] to their parameters [N, T * Q].
        transformers: T transformers of the same image.
        describers: one network per crop.
        classifier: one linear layer on the concatenated descriptions.
    """

    def __init__(
        self,
        reduction: nn.Module,
        localization: nn.Module,
        transformers: Sequence[SpatialTransformer],
        describers: Sequence[nn.Module],
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.localization = localization
        self.transformers = nn.ModuleList(transformers)
        self.describers = nn.ModuleList(describers)
        self.classifier = classifier

    def forward(self, input: Tensor) -> Tensor:
        """Logits [N, classes]."""
        parameters = self.localization(self.reduction(input)).chunk(len(self.transformers), dim=1)
        crops = [warp(input, values) for warp, values in zip(self.transformers, parameters, strict=True)]
        parts = [describe(crop) for describe, crop in zip(self.describers, crops, strict=True)]
        return self.classifier(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


def birds_cnn(input_shape: Sequence[int] = (3, 224, 224), classes: int = 200, width: float = 1.0) -> nn.Sequential:
    """The baseline without a transformer: one Inception of the whole image, [N, C, H, W] to logits [N, classes].

    Args:
        input_shape: (C, H, W). Features are averaged, so that H and W are open.
        classes: the number of logits.
        width: factor on the numbers of filters.
    """
    trunk, features = inception(input_shape[0], width)
    return nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def birds_2st(
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 200,
    output_size: Sequence[int] = (224, 224),
    width: float = 1.0,
    scale: float = 0.5,
) -> PartNet:
    """Two parallel transformers, which start side by side. See :func:`birds_4st`."""
    return _part_net([(-0.5, 0.0), (0.5, 0.0)], input_shape, classes, output_size, width, scale)


def birds_4st(
    input_shape: Sequence[int] = (3, 448, 448),
    classes: int = 200,
    output_size: Sequence[int] = (224, 224),
    width: float = 1.0,
    scale: float = 0.5,
) -> PartNet:
    """Four parallel transformers, which start in the image's quarters.

    The transformers share a localization network, an Inception whose last features go through a 1 x 1 convolution
    (128), a fully connected layer (128) and one that predicts their translations. It sees inputs above 224 pixels at
    half resolution. Each crop has its own Inception; the averaged features are concatenated.

    Args:
        input_shape: (C, H, W), multiples of 32 (above 224: of 64). The paper uses 224 and 448 pixels.
        classes: the number of logits.
        output_size: (H, W) of the crops.
        width: factor on the numbers of filters.
        scale: the fixed scale of the attention, the crop's size over the image's.

    Raises:
        UsageError: an input size that is not such a multiple.
    """
    starts = [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]
    return _part_net(starts, input_shape, classes, output_size, width, scale)


def _part_net(
    starts: Sequence[tuple[float, float]],
    input_shape: Sequence[int],
    classes: int,
    output_size: Sequence[int],
    width: float,
    scale: float,
) -> PartNet:
    channels, height, cols = input_shape
    halved = max(height, cols) > LOCALIZATION_SIZE
    multiple = 64 if halved else 32
    if height % multiple or cols % multiple:
        raise UsageError(
            f"bird networks take sizes that are multiples of 32 (above {LOCALIZATION_SIZE}: of 64), not "
            f"{height} x {cols}"
        )
    hidden = max(1, round(128 * width))
    trunk, features = inception(channels, width)
    cells = (height // multiple) * (cols // multiple)
    head = nn.Linear(hidden, 2 * len(starts))
    localization = nn.Sequential(
        trunk,
        nn.Conv2d(features, hidden, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(hidden * cells, hidden),
        nn.ReLU(),
        head,
    )
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(starts).flatten())
    transformers = [SpatialTransformer(None, Attention(scale=scale), output_size) for _ in starts]
    describers = []
    for _ in starts:
        trunk, features = inception(channels, width)
        describers.append(nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    reduction: nn.Module = nn.AvgPool2d(2) if halved else nn.Identity()
    classifier = nn.Linear(features * len(starts), classes)
    return PartNet(reduction, localization, transformers, describers, classifier)
