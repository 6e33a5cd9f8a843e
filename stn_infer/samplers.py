"""What a sampler does with a grid, as one value, and the words and numbers that runtimes have for it. No torch here."""

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
    """``mode`` in the words of ``opset``: ``bilinear``/``bicubic`` up to 19, ``linear``/``cubic`` from 20.

    What is not a mode is returned as it is.
    """
    old = _BEFORE_20.get(mode, mode)
    return _FROM_20.get(old, old) if opset >= 20 else old


@dataclass(frozen=True)
class SamplerSpec:
    """How a grid is read.

    Attributes:
        mode: bilinear (trilinear in volumes), nearest or bicubic.
        padding_mode: zeros, border or reflection: what a sample outside the image reads.
        align_corners: whether -1 and 1 are the outermost pixels' centers or their outer edges.
        rounding: of nearest; every runtime should round half to even, the others serve to name a mistake.
    """

    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    rounding: Rounding = "half to even"

    @classmethod
    def of(cls, mode: str, padding_mode: str, align_corners: bool) -> SamplerSpec:
        """From attributes, in either spelling of the modes."""
        return cls(spell_mode(mode), padding_mode, bool(align_corners))

    @classmethod
    def numbered(cls, mode: int, padding_mode: int, align_corners: bool) -> SamplerSpec:
        """From the numbers of PyTorch's operators.

        Raises:
            IndexError: there is no such mode.
        """
        return cls(MODES[mode], PADDING_MODES[padding_mode], bool(align_corners))

    def attributes(self, opset: int) -> dict[str, Any]:
        """GridSample's attributes at ``opset``."""
        mode = spell_mode(self.mode, opset)
        return {"mode": mode, "padding_mode": self.padding_mode, "align_corners": int(self.align_corners)}

    def __str__(self) -> str:
        return f"{self.mode}, {self.padding_mode}, align_corners={self.align_corners}"

    def pixels(self, grid: Array, size: Sequence[int]) -> Array:
        """Coordinates [..., D] in [-1, 1] as fractional pixel indices, x first, in their own type."""
        sizes = np.array(tuple(size)[::-1], grid.dtype)
        return np.asarray((grid + 1) / 2 * (sizes - 1) if self.align_corners else ((grid + 1) * sizes - 1) / 2)

    def normalized(self, pixels: Array, size: Sequence[int]) -> NDArray[np.float64]:
        """The grid whose points lie at pixel indices [..., D]: :meth:`pixels` backwards, in float64."""
        sizes = np.array(tuple(size)[::-1], np.float64)
        if self.align_corners:
            return np.asarray(2 * pixels / np.maximum(sizes - 1, 1) - 1)
        return np.asarray((2 * pixels + 1) / sizes - 1)


DEFAULT_SPEC = SamplerSpec()
"""Bilinear, zeros, pixel edges: as PyTorch's ``grid_sample`` and ONNX's GridSample without attributes."""
