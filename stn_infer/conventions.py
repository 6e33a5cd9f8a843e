"""How known implementations place pixels: one named preset each, and how far its identity is off.

A grid and a sampler must agree on where -1 and 1 lie. Where they don't, even the identity transformation moves the
image; a checkpoint was trained with that shift and needs it at inference. No torch in here.
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
    """One implementation's choice.

    Attributes:
        name: as given to ``SpatialTransformer(convention=...)``.
        description: whose it is.
        grid_align_corners: whether -1 and 1 of the grid are the centers of the border pixels (True) or their outer
            edges (False).
        align_corners: the same for the sampler.
        padding_mode: what a sample outside the input reads.
        order: the order of coordinates in parameters and theta: ``yx`` has y first.
        short: by how many pixels the sampler stops short of the last one: it maps [-1, 1] to [0, W - 1 - short].
        difference: what the original does that a sampler with these fields does not; empty where there is nothing.
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
        """Where the identity samples, minus where it should, in pixels at the left, middle and right one.

        Positive is to the right. The middle pixel is number ``(width - 1) // 2``.

        Raises:
            UsageError: a width below 2.
        """
        if width < 2:
            raise UsageError(f"the identity's error is defined from 2 pixels on, not for {width}")
        left, middle, right = (self._read(pixel, width) - pixel for pixel in (0, (width - 1) // 2, width - 1))
        return left, middle, right

    def _read(self, pixel: int, width: int) -> float:
        """The pixel index that the identity reads for an output pixel, input and output being equally wide."""
        zero_to_two = 2 * pixel / (width - 1) if self.grid_align_corners else (2 * pixel + 1) / width
        if self.align_corners:
            return zero_to_two / 2 * (width - 1 - self.short)
        return (zero_to_two * width - 1) / 2


CONVENTIONS: Mapping[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention("torch>=1.3", "affine_grid and grid_sample with their defaults since torch 1.3", False, False),
        Convention("torch<=1.2", "the same up to torch 1.2, and with align_corners=True since", True, True),
        Convention("dtrb", "TPS of deep-text-recognition-benchmark (RARE)", False, True, "border"),
        Convention("paddleocr", "TPS of PaddleOCR", False, True),
        Convention(
            "aster",
            "TPS of the PyTorch port of ASTER, run on torch 1.3 or later",
            True,
            False,
            difference="clamps coordinates to [-1, 1] before sampling: a sample outside reads the half-bright rim",
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
            difference="zero at once outside [0, W - 1), where zeros padding fades over one pixel",
        ),
    )
}
"""By name. ``torch>=1.3`` is the default everywhere else in this package."""


def find_convention(name: str) -> Convention:
    """The convention called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in CONVENTIONS:
        near = difflib.get_close_matches(name, CONVENTIONS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(CONVENTIONS)}"
        raise UsageError(f"there is no convention called {name!r}; {hint}")
    return CONVENTIONS[name]


def resolve(
    convention: str | None,
    align_corners: bool | None,
    grid_align_corners: bool | None,
    padding_mode: PaddingMode | None,
    order: Order | None,
) -> Convention:
    """A convention with the fields that are given in place of its own.

    Without a convention an absent ``grid_align_corners`` follows ``align_corners``, the rest follows torch >= 1.3.

    Raises:
        UsageError: no such convention, padding mode or order.
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
