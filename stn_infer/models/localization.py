"""The convolutional localization network of the paper's experiments, for images and volumes.

The fully connected one is :func:`stn_infer.models.baselines.fcn` with the parameters as its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from stn_infer.errors import UsageError

SMALLEST = 28  # pixels along an axis; less leaves no features after the second convolution


def cnn_localization(
    network: str, input_shape: Sequence[int], parameters: int, filters: int, hidden: int, rank: int = 2
) -> nn.Sequential:
    """Half resolution, conv 5, max 2, conv 5, one hidden layer: [N, C, H, W] or [N, C, D, H, W] to [N, parameters].

    Args:
        network: the name in the message of an error.
        input_shape: (C, H, W) or (C, D, H, W).
        parameters: the number of outputs.
        filters: of both convolutions.
        hidden: width of the fully connected layer.
        rank: 2 for images, 3 for volumes.

    Raises:
        UsageError: an axis below 28 pixels.
        ValueError: ``input_shape`` is not that of an image or volume.
    """
    channels, *size = input_shape
    if len(size) != rank:
        raise ValueError(f"expected {rank + 1} lengths, got {len(size) + 1}")
    if min(size) < SMALLEST:
        least, given = (" x ".join(map(str, lengths)) for lengths in ([SMALLEST] * len(size), size))
        what, unit = ("volumes", "") if rank == 3 else ("inputs", " pixels")
        raise UsageError(f"{network} takes {what} of at least {least}{unit}, not {given}")
    average, maximum, convolution = (
        (nn.AvgPool3d, nn.MaxPool3d, nn.Conv3d) if rank == 3 else (nn.AvgPool2d, nn.MaxPool2d, nn.Conv2d)
    )
    return nn.Sequential(
        average(2),
        convolution(channels, filters, 5),
        maximum(2),
        nn.ReLU(),
        convolution(filters, filters, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(filters * prod((length // 2 - 4) // 2 - 4 for length in size), hidden),
        nn.ReLU(),
        nn.Linear(hidden, parameters),
    )
