"""Sampling conventions of known implementations, one named preset each, and the identity error of each.

A grid and a sampler must agree on the positions of -1 and 1. If they differ, even the identity transformation shifts
the image; a checkpoint trained with that shift needs it at inference. This module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from stn_infer.errors import UsageError
from stn_infer.samplers import PADDING_MODES, PaddingMode

Order = Literal["xy", "yx"]


@dataclass(frozen=True)
class Convention:
    """The sampling convention of one implementation.

    Attributes:
        name: as given to ``SpatialTransformer(convention=...)``.
        description: the implementation.
        grid_align_corners: whether -1 and 1 of the grid are the centers of the border pixels (True) or their outer
            edges (False).
        align_corners: the same for the sampler.
        padding_mode: the value of samples outside the input.
        order: the order of coordinates in parameters and theta: ``yx`` has y first.
        short: the number of pixels by which the sampler ends before the last one: it maps [-1, 1] to
            [0, W - 1 - short].
        difference: behavior of the original that these fields do not reproduce; empty if there is none.
    """

    name: str
    description: str
    grid_align_corners: bool
    align_corners: bool
    padding_mode: PaddingMode = "zeros"
    order: Order = "xy"
    short: int = 0
    difference: str = ""

    def identity_error(self, width: int) -> tuple[float, float, float]:
        """The identity's sampling position minus the correct one, in pixels, at the left, middle and right pixel.

        Positive values are to the right. The middle pixel has index ``(width - 1) // 2``.

        Raises:
            UsageError: ``width`` is below 2.
        """
        if width < 2:
            raise UsageError(f"the identity error is defined for widths of at least 2, not {width}")
        left, middle, right = (self._read(pixel, width) - pixel for pixel in (0, (width - 1) // 2, width - 1))
        return left, middle, right

    def _read(self, pixel: int, width: int) -> float:
        """The pixel index that the identity reads for an output pixel, for input and output of the same width."""
        zero_to_two = 2 * pixel / (width - 1) if self.grid_align_corners else (2 * pixel + 1) / width
        if self.align_corners:
            return zero_to_two / 2 * (width - 1 - self.short)
        return (zero_to_two * width - 1) / 2


CONVENTIONS: Mapping[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention("torch>=1.3", "affine_grid and grid_sample with their defaults since torch 1.3", False, False),
        Convention("torch<=1.2", "the same up to torch 1.2; since 1.3, align_corners=True", True, True),
        Convention("dtrb", "TPS of deep-text-recognition-benchmark (RARE)", False, True, "border"),
        Convention("paddleocr", "TPS of PaddleOCR", False, True),
        Convention(
            "aster",
            "TPS of the PyTorch port of ASTER, run on torch 1.3 or later",
            True,
            False,
            difference="clamps coordinates to [-1, 1] before sampling: samples outside the input read the border "
            "pixels at half intensity",
        ),
        Convention("warbean", "TPS of WarBean's tps_stn_pytorch, run on torch 1.3 or later", True, False),
        Convention("stnbhwd", "Torch7's stnbhwd, parameters in the order y, x", True, True, order="yx"),
        Convention("lasagne", "Lasagne's TransformerLayer", True, True, "border"),
        Convention(
            "kevinzakka",
            "kevinzakka's TensorFlow layer, which scales by W - 2",
            True,
            True,
            short=1,
            difference="zero everywhere outside [0, W - 1), where zeros padding fades over one pixel",
        ),
    )
}
"""Conventions by name. ``torch>=1.3`` is the default in this package."""


def find_convention(name: str) -> Convention:
    """The convention called ``name``.

    Raises:
        UsageError: there is no such convention.
    """
    if name not in CONVENTIONS:
        near = difflib.get_close_matches(name, CONVENTIONS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(CONVENTIONS)}"
        raise UsageError(f"no such convention: {name!r}; {hint}")
    return CONVENTIONS[name]


def resolve(
    convention: str | None,
    align_corners: bool | None,
    grid_align_corners: bool | None,
    padding_mode: PaddingMode | None,
    order: Order | None,
) -> Convention:
    """The named convention with its fields replaced by the arguments that are given.

    Without a convention, an absent ``grid_align_corners`` follows ``align_corners`` and the other fields follow
    torch >= 1.3.

    Raises:
        UsageError: an unknown convention, padding mode or order.
    """
    for field, value, choices in (
        ("padding_mode", padding_mode, PADDING_MODES),
        ("order", order, get_args(Order)),
    ):
        if value is not None and value not in choices:
            raise UsageError(f"{field} is one of {', '.join(choices)}, not {value!r}")
    base = find_convention("torch>=1.3" if convention is None else convention)
    sampler = base.align_corners if align_corners is None else align_corners
    if grid_align_corners is None:
        grid_align_corners = sampler if convention is None else base.grid_align_corners
    return Convention(
        base.name,
        base.description,
        grid_align_corners,
        sampler,
        padding_mode or base.padding_mode,
        order or base.order,
        base.short if sampler else 0,
        base.difference,
    )
