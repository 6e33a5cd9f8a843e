"""MNIST addition (Jaderberg et al. 2015, appendix): the sum of two digits, each in its own channel, distorted alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stn_infer.layers import SpatialTransformer
from stn_infer.models.baselines import fcn
from stn_infer.transforms import Transformation


class ParallelClassifier(nn.Module):
    """Logits [N, classes]: the warped inputs of parallel transformers, concatenated along the channels, classified."""

    def __init__(self, transformers: Sequence[SpatialTransformer], classifier: nn.Module) -> None:
        super().__init__()
        self.transformers = nn.ModuleList(transformers)
        self.classifier = classifier

    def forward(self, input: Tensor) -> Tensor:
        """Logits [N, classes]."""
        warped = [transformer(input) for transformer in self.transformers]
        return self.classifier(torch.cat(warped, dim=1))  # type: ignore[no-any-return]


def mnist_addition(
    transformation: Transformation,
    input_shape: Sequence[int] = (2, 42, 42),
    output_size: Sequence[int] | None = None,
    classes: int = 19,
    transformers: int = 2,
    hidden: int = 256,
    localization_hidden: int = 32,
) -> ParallelClassifier:
    """Parallel transformers of the same two-channel image, before a fully connected classifier.

    Args:
        transformation: the family of grids.
        input_shape: (C, H, W), one channel per digit.
        output_size: (H, W) of each warped image; None: the input's size.
        classes: of the sum, 0 to 18.
        transformers: how many.
        hidden: width of the classifier's two hidden layers.
        localization_hidden: width of the localization networks' two hidden layers.
    """
    channels, *size = input_shape
    output_size = tuple(output_size or size)
    warps = [
        SpatialTransformer(
            fcn(input_shape, transformation.num_parameters, localization_hidden),
            transformation,
            output_size,
        )
        for _ in range(transformers)
    ]
    return ParallelClassifier(warps, fcn((channels * transformers, *output_size), classes, hidden))
