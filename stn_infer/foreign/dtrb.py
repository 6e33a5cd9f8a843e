"""The thin plate spline rectifier of RARE, as in deep-text-recognition-benchmark ("DTRB") and projects based on it.

Four convolutions with pooling and two linear layers predict F fiducial points in the input. The grid is a thin plate
spline through F points on the upper and lower edge of the output; its constants are stored in the checkpoint.
Source: Shi et al. 2016, "Robust Scene Text Recognition with Automatic Rectification", section 3.1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stn_infer.errors import WeightsError
from stn_infer.foreign.state import Part, find_part, image_size, pair_of_sizes, part_below
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import FixedBasis
from stn_infer.transforms.base import target_coordinates

_WHAT = "DTRB rectifier"
_CONVOLUTIONS = ("conv.0", "conv.4", "conv.8", "conv.12")


def import_dtrb(
    state_dict: Mapping[str, Tensor],
    *,
    output_size: Sequence[int] | None = None,
    align_corners: bool = True,
    padding_mode: str = "border",
    prefix: str | None = None,
) -> SpatialTransformer:
    """The rectifier of a DTRB checkpoint: images [N, C, H, W] of any size to [N, C, *output_size].

    The grid comes from the checkpoint's buffers ``inv_delta_C`` and ``P_hat``, whose kernel is r² log(r + 1e-6). If the
    checkpoint does not contain them, they are computed by the same formula.

    Args:
        state_dict: of the rectifier, or of a whole recognizer (``module.Transformation.…``).
        output_size: (H, W); None: from the buffers, else (32, 100).
        align_corners: the sampler's; the published code uses True, on every version of torch.
        padding_mode: the sampler's; the published code uses border.
        prefix: the key prefix of the rectifier, for a model that contains several.

    Raises:
        WeightsError: the state dict contains no such rectifier, or its tensors do not match each other.
        UsageError: a malformed ``output_size``, or an unknown padding mode.
    """
    wanted = None if output_size is None else pair_of_sizes(output_size, "output_size")
    points = find_part(state_dict, "localization_fc2.weight", _WHAT, prefix)
    localization = _localization(points)
    fiducials = points.take("localization_fc2.bias", 1).numel() // 2
    home = points.prefix.removesuffix("LocalizationNetwork.")
    grid = part_below(state_dict, home, _WHAT)
    if "GridGenerator.P_hat" in grid.tensors:
        features, inverse = grid.take("GridGenerator.P_hat", 2), grid.take("GridGenerator.inv_delta_C", 2)
        size = _size(features, wanted)
    else:
        size = wanted or (32, 100)
        features, inverse = _buffers(fiducials, size)
    if inverse.shape != (fiducials + 3, fiducials + 3) or features.shape[1] != fiducials + 3:
        raise WeightsError(
            f"{home}GridGenerator has inv_delta_C of {list(inverse.shape)} and P_hat of {list(features.shape)}, "
            f"expected {fiducials + 3} columns for the {fiducials} points of localization_fc2"
        )
    basis = (features.double() @ inverse.double()[:, :fiducials]).T  # [F, P]
    # theta value d * F + k comes from the network's 2 k + d
    order = torch.arange(2 * fiducials).reshape(fiducials, 2).T.reshape(-1)
    transformation = FixedBasis(basis, size, torch.eye(2 * fiducials, dtype=torch.float64)[order])
    return SpatialTransformer(
        localization,
        transformation,
        size,
        padding_mode=padding_mode,  # type: ignore[arg-type]
        align_corners=align_corners,
        grid_align_corners=False,
        identity_init=False,
    ).eval()


def _localization(part: Part) -> nn.Sequential:
    """The localization network with the checkpoint's widths, weights and names."""
    layers: list[nn.Module] = []
    for name in _CONVOLUTIONS:
        width, channels, *kernel = part.take(f"{name}.weight", 4).shape
        convolution = nn.Conv2d(channels, width, (kernel[0], kernel[1]), padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    layers[-1] = nn.AdaptiveAvgPool2d(1)
    hidden, features = part.take("localization_fc1.0.weight", 2).shape
    outputs, inner = part.take("localization_fc2.weight", 2).shape
    network = nn.Sequential(
        OrderedDict[str, nn.Module](
            conv=nn.Sequential(*layers),
            flatten=nn.Flatten(),
            localization_fc1=nn.Sequential(nn.Linear(features, hidden), nn.ReLU()),
            localization_fc2=nn.Linear(inner, outputs),
        )
    )
    part.load(network)
    return network


def _size(features: Tensor, given: Sequence[int] | None) -> tuple[int, int]:
    """(H, W) of the pixels whose x and y are columns 1 and 2."""
    height, width = image_size(features[:, 1], features[:, 2], "P_hat")
    if given is not None and tuple(given) != (height, width):
        raise WeightsError(f"the checkpoint's P_hat is for {height}x{width}, not for {'x'.join(map(str, given))}")
    return height, width


def _buffers(fiducials: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """P_hat [P, F + 3] and inv_delta_C [F + 3, F + 3] in float64, by the published formula."""
    x = torch.linspace(-1, 1, fiducials // 2, dtype=torch.float64)
    edges = [torch.stack([x, torch.full_like(x, y)], dim=1) for y in (-1.0, 1.0)]
    points = torch.cat(edges)  # [F, 2]
    pixels = target_coordinates(size, align_corners=False).T  # [P, 2]
    far = torch.cdist(pixels, points, compute_mode="donot_use_mm_for_euclid_dist")
    features = torch.cat(
        [torch.ones(len(pixels), 1, dtype=torch.float64), pixels, far**2 * torch.log(far + 1e-6)], dim=1
    )
    between = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(1)
    system = torch.zeros(fiducials + 3, fiducials + 3, dtype=torch.float64)
    system[:fiducials, 0] = 1
    system[:fiducials, 1:3] = points
    system[:fiducials, 3:] = between**2 * torch.log(between)
    system[fiducials : fiducials + 2, 3:] = points.T
    system[fiducials + 2, 3:] = 1
    return features, torch.linalg.inv(system)
