"""The warps whose machine code is counted: their arrays, their problem, and their result in float64."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.sass.program import Memory
from stn_infer import plugin

KINDS = ("affine", "basis", "projective", "grid")
"""In the order of ``stn_kind``."""


@dataclass(frozen=True)
class Case:
    """A warp of images [N, C, H, W] with zeros padding: one theta (or grid) per image, near the identity.

    Attributes:
        shape: of the images and of the outputs.
        dtype: of the images.
        kind: of ``KINDS``.
        mode: ``bilinear`` or ``nearest``.
        channels_last: the layout of both images.
        rows: K of a basis.
    """

    shape: tuple[int, int, int, int]
    dtype: str = "float32"
    kind: str = "affine"
    mode: str = "bilinear"
    channels_last: bool = False
    rows: int = 3

    @property
    def name(self) -> str:
        """The shape, the type, and settings that differ from the defaults."""
        kind = {"affine": "", "basis": f"basis of {self.rows} rows"}.get(self.kind, self.kind)
        unusual = (kind, "" if self.mode == "bilinear" else self.mode, "channels last" if self.channels_last else "")
        return ", ".join(filter(None, (f"{'x'.join(map(str, self.shape))} {self.dtype}", *unusual)))

    @property
    def pixels(self) -> int:
        """The number of pixels of all output images, per channel."""
        return self.shape[0] * self.shape[2] * self.shape[3]

    @property
    def image_bytes(self) -> int:
        """The bytes of all input images, and of all output images."""
        return self.pixels * self.shape[1] * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """The minimum number of bytes to read and write."""
        return 2 * self.image_bytes + (8 * self.pixels if self.kind == "grid" else 0)


_PHOTOS, _FEATURES = (256, 3, 224, 224), (256, 64, 28, 28)
CASES = (
    Case(_PHOTOS),
    Case(_PHOTOS, "float16"),
    Case((64, 3, 224, 224)),
    Case((1024, 1, 28, 28)),
    Case(_FEATURES),
    Case(_FEATURES, channels_last=True),
    Case(_FEATURES, "float16", channels_last=True),
    Case(_PHOTOS, channels_last=True),
    Case(_PHOTOS, "float16", channels_last=True),
    Case(_PHOTOS, kind="projective"),
    Case(_PHOTOS, mode="nearest"),
    Case(_PHOTOS, kind="basis", rows=19),
    Case(_PHOTOS, kind="grid"),
    Case(_PHOTOS, "float16", kind="grid"),
    Case((65536, 1, 4, 4)),
    Case((4096, 1, 1, 1000)),
)


class Arrays:
    """A case's arrays in simulated memory, and its problem.

    All samples have the same image, which the problem allows: the counts are the same, and it needs little memory.

    Args:
        case: the warp.
        memory: where the arrays are.
        seed: of the random values.
    """

    def __init__(self, case: Case, memory: Memory, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n, c, height, width = case.shape
        self.case = case
        self.image = rng.random((c, height, width), np.float32).astype(case.dtype)  # [C, H, W]
        self.output = np.full((n, height, width, c) if case.channels_last else case.shape, np.nan, case.dtype)
        ones = np.ones((height, width))
        y, x = np.meshgrid(_centers(height), _centers(width), indexing="ij")
        # smooth, as splines are: neighboring pixels read neighboring pixels
        more = [0.3 * np.cos(np.pi * (k // 4 * x + k % 4 * y)) for k in range(1, case.rows - 2)]
        self.basis = np.stack([x, y, ones, *more]).astype(np.float32)  # [K, H, W]
        rows = 3 if case.kind == "projective" else 2
        self.theta = (np.eye(rows, case.rows) + 0.15 * rng.standard_normal((n, rows, case.rows))).astype(np.float32)
        if case.kind == "projective":
            self.theta[:, 2] = (0.05, -0.05, 1.2)
        self.grid = np.zeros((0, height, width, 2), np.float32)
        if case.kind == "grid":
            self.grid = np.stack([self.points(sample) for sample in range(n)]).astype(np.float32)
        stored = np.ascontiguousarray(np.moveaxis(self.image, 0, 2)) if case.channels_last else self.image
        basis = memory.add(self.basis)
        self.problem = plugin.Problem(
            rank=2, kind=KINDS.index(case.kind), mode=int(case.mode == "nearest"),
            dtype=plugin.DTYPES.index(case.dtype), input_layout=int(case.channels_last),
            output_layout=int(case.channels_last), batch=n, channels=c,
            basis_rows=0 if case.kind == "grid" else case.rows, theta_batch=n, input_batch=1,
            points=height * width if case.kind in ("basis", "grid") else 0,
            input_size=(ctypes.c_int64 * 3)(height, width), output_size=(ctypes.c_int64 * 3)(height, width),
            input=memory.add(stored), theta=memory.add(self.grid if case.kind == "grid" else self.theta),
            basis=basis if case.kind == "basis" else None, output=memory.add(self.output),
        )  # fmt: skip

    def points(self, sample: int) -> NDArray[np.float64]:
        """The sampling points of one sample [H, W, 2], in float64."""
        if len(self.grid):
            return np.asarray(self.grid[sample], np.float64)
        sums = np.tensordot(self.theta[sample].astype(np.float64), self.basis.astype(np.float64), 1)  # [D, H, W]
        points = sums[:2] / sums[2] if self.case.kind == "projective" else sums[:2]
        return np.asarray(np.moveaxis(points, 0, 2))

    def check(self) -> int:
        """Compare the written values with float64; returns their number.

        Raises:
            SystemExit: a value is wrong.
        """
        output = np.moveaxis(self.output, 3, 1) if self.case.channels_last else self.output
        written = ~np.isnan(output)
        tolerance = 2e-4 if output.dtype == np.float32 else 2e-3
        off, values = 0, 0
        for n in np.flatnonzero(written.any(axis=(1, 2, 3))):
            error = np.abs(output[n].astype(np.float64) - self._sampled(self.points(int(n))))[written[n]]
            off += int((~(error <= tolerance)).sum())
            values += error.size
        # rounding may change which pixel is nearest
        if off > (values // 200 if self.case.mode == "nearest" else 0):
            raise SystemExit(f"{self.case.name}: {off} of {values} values of the machine code are wrong")
        return values

    def _sampled(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The image at points [H, W, 2], [C, H, W]."""
        _, height, width = self.image.shape
        padded = np.pad(self.image.astype(np.float64), ((0, 0), (1, 2), (1, 2)))
        at_x = np.clip(((points[..., 0] + 1) * width - 1) / 2, -1, width) + 1
        at_y = np.clip(((points[..., 1] + 1) * height - 1) / 2, -1, height) + 1
        if self.case.mode == "nearest":
            return np.asarray(padded[:, np.rint(at_y).astype(int), np.rint(at_x).astype(int)])
        x0, y0 = np.floor(at_x).astype(int), np.floor(at_y).astype(int)
        wx, wy = at_x - x0, at_y - y0
        rows = [padded[:, y0 + d, x0] * (1 - wx) + padded[:, y0 + d, x0 + 1] * wx for d in (0, 1)]
        return np.asarray(rows[0] * (1 - wy) + rows[1] * wy)


def _centers(size: int) -> NDArray[np.float64]:
    """The normalized pixel centers of an axis."""
    return (2 * np.arange(size) + 1) / size - 1
