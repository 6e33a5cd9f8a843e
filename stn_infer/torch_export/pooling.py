"""Adaptive pooling in operators that ONNX has.

Output i of an axis pools inputs floor(i S / O) to ceil((i + 1) S / O) - 1, S and O being the sizes of input and output
(``torch.nn.AdaptiveAvgPool3d``). A window is a product of windows along each axis, so that the axes are pooled one
after the other: each output is a slice, and its mean or maximum. A product with a constant matrix would be shorter for
averages, but onnxruntime 1.31 fails on it where there are no samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _windows(size: int, out: int) -> list[tuple[int, int]]:
    """The first index of each output's window, and the index after the last."""
    return [(index * size // out, -(-(index + 1) * size // out)) for index in range(out)]


def adaptive_average(image: Tensor, output_size: Sequence[int]) -> Tensor:
    """Averages [..., *in] to [..., *output_size]; input sizes are fixed."""
    axes = len(output_size)
    for position, out in enumerate(output_size):
        axis = position - axes
        size = int(image.shape[axis])
        if size == out:
            continue
        if out == 1:
            image = image.mean(axis, keepdim=True)
            continue
        windows = _windows(size, out)
        image = torch.cat(
            [image.narrow(axis, first, after - first).mean(axis, keepdim=True) for first, after in windows], axis
        )
    return image


def adaptive_maximum(image: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Maxima [..., *output_size] of [..., *in], and the index of each in the flattened input; input sizes are fixed."""
    axes = len(output_size)
    sizes = [int(size) for size in image.shape[-axes:]]
    places: Tensor | None = None  # of the maxima so far, in the axes that are pooled already
    stride = 1
    for axis in range(-1, -axes - 1, -1):
        values, indices = [], []
        for first, after in _windows(sizes[axis], int(output_size[axis])):
            value, chosen = image.narrow(axis, first, after - first).max(axis, keepdim=True)
            values.append(value)
            index = (chosen + first) * stride
            if places is not None:
                index = index + places.narrow(axis, first, after - first).gather(axis, chosen)
            indices.append(index)
        image, places = torch.cat(values, axis), torch.cat(indices, axis)
        stride *= sizes[axis]
    assert places is not None
    return image, places
