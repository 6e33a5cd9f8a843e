"""Running the plugin library's C interface on numpy arrays, for the tests of its kernels."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from stn_infer import plugin
from stn_infer.samplers import MODES, PADDING_MODES

Array = NDArray[Any]

ISAS = ("plain", "avx2", "avx512")


@contextmanager
def library_limited_to(isa: str, folder: Path) -> Iterator[ctypes.CDLL]:
    """A second instance of the library that uses at most ``isa``; it decides once, when it is first asked."""
    copy = folder / f"libstn_{isa}.so"
    if not copy.exists():
        shutil.copy(plugin.library_path(), copy)
    with patch.dict(os.environ, {"STN_CPU_ISA": isa, plugin.ENVIRONMENT: str(copy)}):
        library = plugin.load()
        library.stn_cpu_isa()
        yield library


def to_bits(values: Array, dtype: str) -> Array:
    """float32 ``values`` as an array of the given type; bfloat16 is held as uint16."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bits(values: Array, dtype: str) -> Array:
    """The inverse of :func:`to_bits`, as float64."""
    if dtype != "bfloat16":
        return values.astype(np.float64)
    return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def address(array: Array | None) -> int | None:
    """Where an array's memory starts."""
    return None if array is None else array.ctypes.data


def warp(
    kind: str,
    image: Array,
    theta: Array,
    basis: Array | None,
    output_size: tuple[int, ...],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    *,
    dtype: str = "float32",
    grid_dtype: str = "float32",
    input_layout: str = "planar",
    output_layout: str = "planar",
    pitch: int = 0,
    batch: int | None = None,
    threads: int = 1,
    matrices: Sequence[Array] = (),
    index: Array | None = None,
    w_min: float | None = None,
    offset: Sequence[float] = (),
) -> Array:
    """The library's answer, in float64 and planar whatever the layout.

    Args:
        kind: affine, basis, projective, grid (theta is the grid [N, *out, D] then), tensor_product or lattice.
        image: [N, C, *in]; it is converted to ``dtype`` and laid out as asked.
        theta: [N, D, K], projective [N, D + 1, K], or the grid.
        basis: [K, P], or None.
        pitch: channels-last only: elements a pixel takes.
        batch: of the output, where theta and the image have different ones.
        matrices: of a tensor product, one [length, lattice length] per axis of the output.
        index: [J, P] of a lattice; ``basis`` holds the weights then.
        w_min: the least denominator of a projective grid.
        offset: added to a projective grid; empty: zeros.
    """
    rank = len(output_size)
    batch = max(len(image), len(theta)) if batch is None else batch
    channels = image.shape[1]
    values = to_bits(image, dtype)
    if input_layout == "channels_last":
        values = np.moveaxis(values, 1, -1)
        if pitch:
            padded = np.full((*values.shape[:-1], pitch), 7, values.dtype)
            padded[..., :channels] = values
            values = padded
    values = np.ascontiguousarray(values)
    theta_values = to_bits(theta, grid_dtype) if kind == "grid" else np.ascontiguousarray(theta, np.float32)
    basis_values = None if basis is None else np.ascontiguousarray(basis, np.float32)
    width = pitch or channels
    shape = (batch, channels, *output_size) if output_layout == "planar" else (batch, *output_size, width)
    output = np.full(shape, 3, values.dtype)
    pad = [0] * (3 - rank)
    axes = [np.ascontiguousarray(matrix, np.float32) for matrix in matrices]
    axes = [np.ones((1, 1), np.float32)] * (3 - len(axes)) + axes
    columns = np.ascontiguousarray(axes[2].T)
    taps = None if index is None else np.ascontiguousarray(index, np.int32)
    problem = plugin.Problem(
        rank=rank,
        kind=plugin.KINDS.index(kind),
        mode=MODES.index(mode),
        padding=PADDING_MODES.index(padding_mode),
        align_corners=int(align_corners),
        dtype=plugin.DTYPES.index(dtype),
        grid_dtype=plugin.DTYPES.index(grid_dtype),
        input_layout=plugin.LAYOUTS.index(input_layout),
        output_layout=plugin.LAYOUTS.index(output_layout),
        batch=batch,
        channels=channels,
        input_size=(ctypes.c_int64 * 3)(*image.shape[2:], *pad),
        output_size=(ctypes.c_int64 * 3)(*output_size, *pad),
        basis_rows=0 if kind == "grid" else theta.shape[-1],
        theta_batch=len(theta),
        input_batch=len(image),
        channel_pitch_in=pitch if input_layout == "channels_last" else 0,
        channel_pitch_out=pitch if output_layout == "channels_last" else 0,
        points=0 if kind == "tensor_product" else int(np.prod(output_size)),
        lattice=(ctypes.c_int64 * 3)(*(matrix.shape[1] for matrix in axes)),
        planes=address(axes[0]),
        rows=address(axes[1]),
        columns=address(columns),
        taps=0 if taps is None else len(taps),
        index=address(taps),
        input=address(values),
        theta=address(theta_values),
        basis=address(basis_values),
        output=address(output),
        clamp_w=int(w_min is not None),
        w_min=0.0 if w_min is None else w_min,
        offset=(ctypes.c_float * 3)(*offset),
    )
    plugin.run_cpu(problem, threads)
    if output_layout == "channels_last":
        output = np.moveaxis(output[..., :channels], -1, 1)
    return from_bits(output, dtype)


def random_grid(shape: tuple[int, ...], size: tuple[int, ...], align_corners: bool) -> Array:
    """Points [..., D] in and around an image, in float32, a hundredth of a pixel away from where nearest changes."""
    grid = np.random.default_rng(len(size)).uniform(-1.5, 1.5, shape)
    for d, length in enumerate(reversed(size)):
        scale = max(length - 1, 1) if align_corners else length
        at = ((grid[..., d] + 1) * scale - (0 if align_corners else 1)) / 2
        tie = np.abs(at - np.floor(at) - 0.5) < 1e-2
        grid[..., d] += np.where(tie, 0.06 / scale, 0)
    return grid.astype(np.float32)
