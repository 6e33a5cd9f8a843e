"""The settings of a sampler as one value, and their names and numbers in runtimes. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array

Mode = Literal["bilinear", "nearest", "bicubic"]
PaddingMode = Literal["zeros", "border", "reflection"]
Rounding = Literal["half to even", "half up", "down"]

#: In the order of PyTorch's enumerations, mmdeploy's and the plugin library's (``stn.h``).
MODES: tuple[Mode, ...] = get_args(Mode)
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)
_FROM_20 = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}
_BEFORE_20 = {new: old for old, new in _FROM_20.items()}


def spell_mode(mode: str, opset: int = 16) -> str:
    """The name of ``mode`` in ``opset``: ``bilinear``/``bicubic`` up to 19, ``linear``/``cubic`` from 20.

    An unknown mode is returned unchanged.
    """
    old = _BEFORE_20.get(mode, mode)
    return _FROM_20.get(old, old) if opset >= 20 else old


@dataclass(frozen=True)
class SamplerSpec:
    """The settings of a sampler.

    Attributes:
        mode: bilinear (trilinear in volumes), nearest or bicubic.
        padding_mode: the value of samples outside the image: zeros, border or reflection.
        align_corners: whether -1 and 1 are the centers of the border pixels (True) or their outer edges (False).
        rounding: of nearest; runtimes should round half to even, the other values identify a runtime's bug.
    """

    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    rounding: Rounding = "half to even"

    @classmethod
    def of(cls, mode: str, padding_mode: str, align_corners: bool) -> SamplerSpec:
        """From ONNX attributes, with the mode's name in any opset."""
        return cls(spell_mode(mode), padding_mode, bool(align_corners))

    @classmethod
    def numbered(cls, mode: int, padding_mode: int, align_corners: bool) -> SamplerSpec:
        """From the enumeration values of PyTorch's operators.

        Raises:
            IndexError: an unknown mode or padding mode.
        """
        return cls(MODES[mode], PADDING_MODES[padding_mode], bool(align_corners))

    def attributes(self, opset: int) -> dict[str, Any]:
        """GridSample's attributes in ``opset``."""
        mode = spell_mode(self.mode, opset)
        return {"mode": mode, "padding_mode": self.padding_mode, "align_corners": int(self.align_corners)}

    def __str__(self) -> str:
        return f"{self.mode}, {self.padding_mode}, align_corners={self.align_corners}"

    def pixels(self, grid: Array, size: Sequence[int]) -> Array:
        """Converts coordinates [..., D] in [-1, 1] to fractional pixel indices, x first, in the grid's dtype."""
        sizes = np.array(tuple(size)[::-1], grid.dtype)
        return np.asarray((grid + 1) / 2 * (sizes - 1) if self.align_corners else ((grid + 1) * sizes - 1) / 2)

    def normalized(self, pixels: Array, size: Sequence[int]) -> NDArray[np.float64]:
        """Converts pixel indices [..., D] to grid coordinates in float64: the inverse of :meth:`pixels`."""
        sizes = np.array(tuple(size)[::-1], np.float64)
        if self.align_corners:
            return np.asarray(2 * pixels / np.maximum(sizes - 1, 1) - 1)
        return np.asarray((2 * pixels + 1) / sizes - 1)


DEFAULT_SPEC = SamplerSpec()
"""Bilinear, zeros, align_corners=False: the defaults of PyTorch's ``grid_sample`` and ONNX's GridSample."""
