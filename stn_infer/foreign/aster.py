"""The thin plate spline rectifier of ASTER, as published in its PyTorch port.

The image is resized for a small convolutional head, which predicts control points in 0..1. The grid is a thin plate
spline through points inside the output's margins; its constants are stored in the checkpoint.
Source: Shi et al. 2018, "ASTER: An Attentional Scene Text Recognizer with Flexible Rectification", section 3.1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.errors import UsageError, WeightsError
from stn_infer.foreign.state import Part, find_part, image_size, pair_of_sizes
from stn_infer.layers import SpatialTransformer
from stn_infer.samplers import SamplerSpec
from stn_infer.transforms import FixedBasis

_WHAT = "ASTER rectifier"
_CONVOLUTIONS = tuple(f"stn_convnet.{index}.0" for index in (0, 2, 4, 6, 8, 10))
_FEATURE_SCALE = 0.1  # factor on the features before the last layer of the published head

Activation = Literal["none", "sigmoid"]


class ClampedSpatialTransformer(SpatialTransformer):
    """A transformer that clamps its grid to [-1, 1] before sampling.

    With ``align_corners=True`` this equals border padding. With ``align_corners=False`` samples outside the input are
    interpolated with the padding, which no padding mode does, so the clamp remains an operator and is not fused.
    """

    def grid(self, theta: Tensor) -> Tensor:
        """The clamped sampling grid [N, *output_size, D] of theta [N, D, K]."""
        return super().grid(theta).clamp(-1, 1)

    def _fused(self, input: Tensor, theta: Tensor, sampler: SamplerSpec) -> Tensor:
        return self._sampled(input, theta, sampler)  # the fused kernel has no grid to clamp


class _Resize(nn.Module):
    """Bilinear resizing with ``align_corners=True``."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(input, self.size, mode="bilinear", align_corners=True)


class _Scale(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input * _FEATURE_SCALE


def import_aster(
    state_dict: Mapping[str, Tensor],
    *,
    input_size: Sequence[int] = (32, 64),
    activation: Activation = "none",
    align_corners: bool = False,
    prefix: str | None = None,
) -> SpatialTransformer:
    """The rectifier of an ASTER checkpoint: images [N, C, H, W] of any size to [N, C, *output_size].

    The output size, the number of points and the margins come from the checkpoint's buffers.

    Args:
        state_dict: contains the head (``stn_head.…``) and the transformer (``tps.…``), usually of a whole recognizer.
        input_size: (H, W) to which the image is resized for the head.
        activation: the last layer of the head, which is not stored in a checkpoint.
        align_corners: the sampler's. The published code uses False on torch 1.3 and later; before, it used True, which
            checkpoints trained on torch <= 1.2 expect.
        prefix: the key prefix of the recognizer, for a model that contains several.

    Raises:
        WeightsError: the state dict contains no such rectifier, or its tensors do not match each other.
        UsageError: an unknown activation, or a malformed ``input_size``.
    """
    if activation not in ("none", "sigmoid"):
        raise UsageError(f"activation is one of none, sigmoid, not {activation!r}")
    head = find_part(state_dict, "stn_fc2.weight", _WHAT, prefix)
    spline = find_part(state_dict, "target_coordinate_repr", _WHAT, prefix)
    localization = _localization(head, pair_of_sizes(input_size, "input_size"), activation)
    points = head.take("stn_fc2.bias", 1).numel() // 2
    features, inverse = spline.take("target_coordinate_repr", 2), spline.take("inverse_kernel", 2)
    if inverse.shape != (points + 3, points + 3) or features.shape[1] != points + 3:
        raise WeightsError(
            f"{spline.prefix}inverse_kernel is {list(inverse.shape)} and target_coordinate_repr "
            f"{list(features.shape)}, expected {points + 3} columns for the {points} points of stn_fc2"
        )
    transformation = _transformation(features, inverse[:, :points], points)
    kind = SpatialTransformer if align_corners else ClampedSpatialTransformer
    return kind(
        localization,
        transformation,
        transformation.size,
        padding_mode="border" if align_corners else "zeros",
        align_corners=align_corners,
        grid_align_corners=True,
        identity_init=False,
    ).eval()


def _transformation(features: Tensor, inverse: Tensor, points: int) -> FixedBasis:
    """Maps points in 0..1 to the grid in -1..1; the shift uses a last basis row of ones."""
    size = image_size(features[:, -2], features[:, -1], "target_coordinate_repr")
    spline = (features.double() @ inverse.double()).T  # [points, P]
    basis = torch.cat([spline, torch.ones_like(spline[:1])])
    matrix = torch.zeros(2, points + 1, points, 2, dtype=torch.float64)  # theta[d, k] from the network's (k, d)
    for axis in range(2):
        matrix[axis, :points, :, axis] = 2 * torch.eye(points, dtype=torch.float64)
    offset = torch.zeros(2, points + 1, dtype=torch.float64)
    offset[:, points] = -1
    return FixedBasis(basis, size, matrix.reshape(-1, 2 * points), offset.reshape(-1))


def _localization(part: Part, size: tuple[int, int], activation: Activation) -> nn.Sequential:
    """The resize and the head with the checkpoint's widths, weights and names."""
    blocks: list[nn.Module] = []
    for name in _CONVOLUTIONS:
        width, channels, *kernel = part.take(f"{name}.weight", 4).shape
        convolution = nn.Conv2d(channels, width, (kernel[0], kernel[1]), padding=1)
        blocks += [nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()), nn.MaxPool2d(2)]
    hidden, features = part.take("stn_fc1.0.weight", 2).shape
    pooled = width * (size[0] // 32) * (size[1] // 32)
    if pooled != features:
        raise WeightsError(
            f"{part.prefix}stn_fc1 takes {features} features, a head on {size[0]}x{size[1]} gives {pooled}; "
            "set input_size to the size to which the images are resized"
        )
    outputs, inner = part.take("stn_fc2.weight", 2).shape
    network = nn.Sequential(
        OrderedDict[str, nn.Module](
            resize=_Resize(size),
            stn_convnet=nn.Sequential(*blocks[:-1]),
            flatten=nn.Flatten(),
            stn_fc1=nn.Sequential(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            scale=_Scale(),
            stn_fc2=nn.Linear(inner, outputs),
            activation=nn.Sigmoid() if activation == "sigmoid" else nn.Identity(),
        )
    )
    part.load(network)
    return network
