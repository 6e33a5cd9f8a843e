"""The plugin library's kernels for lattices as PyTorch operators: from control points to the warped image, no grid.

Importing this module defines ``torch.ops.stn.tensor_product_transformer`` and ``torch.ops.stn.lattice_transformer``, as
``stn_infer.fused`` does for the other ops. Their gradients are computed by standard operators, which are also the
fallback if the library has no kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.fused import (
    check_not_empty,
    check_places,
    check_words,
    empty_output,
    is_channels_last,
    launch,
    posed,
    usable,
)
from stn_infer.fusion.basis import MOST_TAPS
from stn_infer.samplers import DEFAULT_SPEC, MODES, PADDING_MODES, SamplerSpec
from stn_infer.transforms.grid import cast, full_precision, sampled, tensor_product_grid

_PRODUCT = "stn::tensor_product_transformer"
_LATTICE = "stn::lattice_transformer"
_SETTINGS = "str mode, str padding_mode, bool align_corners) -> Tensor"

torch.library.define(_PRODUCT, f"(Tensor input, Tensor theta, Tensor planes, Tensor rows, Tensor columns, {_SETTINGS}")
torch.library.define(
    _LATTICE, f"(Tensor input, Tensor theta, Tensor index, Tensor weight, SymInt[] output_size, {_SETTINGS}"
)


def tensor_product_transformer(
    input: Tensor, theta: Tensor, matrices: Sequence[Tensor], sampler: SamplerSpec = DEFAULT_SPEC
) -> Tensor:
    """Sample ``input`` at a lattice contracted with one matrix per axis, with the fused kernel if there is one.

    Args:
        input: [N, C, H, W] or [N, C, D, H, W].
        theta: [N, D, K], K the product of the lattice's lengths, row-major.
        matrices: one per axis of the output, [length, lattice length]; rows and columns, or planes, rows and columns.
        sampler: the settings of ``torch.nn.functional.grid_sample``; bicubic for images only.

    Returns:
        [N, C, *lengths], in the input's dtype and memory format.

    Raises:
        UsageError: an unknown mode or padding mode, or tensors whose shapes, dtypes or devices do not fit.
    """
    if len(matrices) not in (2, 3) or any(matrix.dim() != 2 for matrix in matrices):
        raise UsageError("expected two or three matrices [length, lattice length], one per axis of the output")
    settings = (sampler.mode, sampler.padding_mode, sampler.align_corners)
    planes = matrices[0] if len(matrices) == 3 else matrices[0].new_ones(1, 1)
    constants = (planes, matrices[-2], matrices[-1].T)
    if not usable(input) or torch.compiler.is_compiling():
        _check_product(input, theta, *constants, *settings[:2])
    if not usable(input):
        return sampled(input, tensor_product_grid(theta, matrices), sampler)
    warped: Tensor = torch.ops.stn.tensor_product_transformer(input, theta, *constants, *settings)
    return warped


def lattice_transformer(
    input: Tensor,
    theta: Tensor,
    index: Tensor,
    weight: Tensor,
    output_size: Sequence[int],
    sampler: SamplerSpec = DEFAULT_SPEC,
) -> Tensor:
    """Sample ``input`` at sums of a few weighted lattice points per pixel, with the fused kernel if there is one.

    Args:
        input: [N, C, H, W] or [N, C, D, H, W].
        theta: [N, D, K].
        index: [J, P] int32, from 0 to K - 1, P = prod(output_size); J from 1 to 64.
        weight: [J, P].
        output_size: (H, W) or (D, H, W).
        sampler: the settings of ``torch.nn.functional.grid_sample``; bicubic for images only.

    Returns:
        [N, C, *output_size], in the input's dtype and memory format.

    Raises:
        UsageError: an unknown mode or padding mode, or tensors whose shapes, dtypes or devices do not fit.
    """
    settings = (sampler.mode, sampler.padding_mode, sampler.align_corners)
    if not usable(input) or torch.compiler.is_compiling():
        _check_lattice(input, theta, index, weight, output_size, *settings[:2])
    if not usable(input):
        return sampled(input, lattice_grid(theta, index, weight, output_size), sampler)
    warped: Tensor = torch.ops.stn.lattice_transformer(input, theta, index, weight, list(output_size), *settings)
    return warped


def lattice_grid(theta: Tensor, index: Tensor, weight: Tensor, output_size: Sequence[int]) -> Tensor:
    """The grid [N, *output_size, D]: sums of the points of ``theta`` [N, D, K] at ``index`` times ``weight``."""
    with full_precision(theta.device):
        points = (theta[:, :, index.long()] * cast(weight, theta.dtype)).sum(2)
    return points.transpose(1, 2).reshape(points.shape[0], *output_size, points.shape[1])


def _check_product(
    input: Tensor, theta: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, mode: str, padding_mode: str
) -> None:
    rank = input.dim() - 2
    count = planes.shape[1] * rows.shape[1] * columns.shape[0]
    _check_theta(input, theta, rank, count, mode, padding_mode)
    if rank == 2 and tuple(planes.shape) != (1, 1):
        raise UsageError("expected two matrices for an image, and three for a volume")
    check_not_empty(input.shape, len(planes) * len(rows) * columns.shape[1])
    check_places(input, ("theta", theta), ("planes", planes), ("rows", rows), ("columns", columns))


def _check_lattice(
    input: Tensor,
    theta: Tensor,
    index: Tensor,
    weight: Tensor,
    output_size: Sequence[int],
    mode: str,
    padding_mode: str,
) -> None:
    rank, points = len(output_size), prod(output_size)
    if input.dim() != rank + 2:
        raise UsageError(f"expected an input of {rank + 2} axes for output size {tuple(output_size)}")
    if any(size < 0 for size in output_size):
        raise UsageError(f"expected an output size of at least 0 along each axis, got {tuple(output_size)}")
    count = theta.shape[2] if theta.dim() == 3 else 0
    _check_theta(input, theta, rank, count, mode, padding_mode)
    if index.dim() != 2 or index.shape != weight.shape or index.shape[1] != points or index.dtype != torch.int32:
        raise UsageError(
            f"expected index and weight [J, {points}] for output size {tuple(output_size)}, int32 and floating-point, "
            f"got {index.dtype} {tuple(index.shape)} and {tuple(weight.shape)}"
        )
    if not 1 <= index.shape[0] <= MOST_TAPS or count < 1:
        raise UsageError(f"expected 1 to {MOST_TAPS} points per pixel of a lattice with points, got {index.shape[0]}")
    check_not_empty(input.shape, points)
    check_places(input, ("theta", theta), ("weight", weight))
    if index.device != input.device:
        raise UsageError(f"expected index on {input.device}, the device of input, got {index.device}")


def _check_theta(input: Tensor, theta: Tensor, rank: int, count: int, mode: str, padding_mode: str) -> None:
    check_words(("mode", mode, MODES), ("padding_mode", padding_mode, PADDING_MODES))
    if rank not in (2, 3):
        raise UsageError(f"expected an input [N, C, H, W] or [N, C, D, H, W], got the shape {tuple(input.shape)}")
    if rank == 3 and mode == "bicubic":
        raise UsageError("bicubic sampling is for images only")
    if tuple(theta.shape) != (input.shape[0], rank, count):
        raise UsageError(
            f"expected theta [{input.shape[0]}, {rank}, {count}] for the lattice, got the shape {tuple(theta.shape)}"
        )


@torch.library.register_fake(_PRODUCT)  # type: ignore[untyped-decorator]
def _fake_product(
    input: Tensor, theta: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, *settings: Any
) -> Tensor:
    _check_product(input, theta, planes, rows, columns, *settings[:2])
    return empty_output(input, _product_size(input, planes, rows, columns))


@torch.library.register_fake(_LATTICE)  # type: ignore[untyped-decorator]
def _fake_lattice(
    input: Tensor, theta: Tensor, index: Tensor, weight: Tensor, output_size: Sequence[int], *settings: Any
) -> Tensor:
    _check_lattice(input, theta, index, weight, output_size, *settings[:2])
    return empty_output(input, output_size)


def _product_size(input: Tensor, planes: Tensor, rows: Tensor, columns: Tensor) -> tuple[int, ...]:
    return (len(planes), len(rows), columns.shape[1])[-(input.dim() - 2) :]


@torch.library.impl(_PRODUCT, ("CPU", "CUDA"))
def _run_product(input: Tensor, theta: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, *settings: Any) -> Tensor:
    _check_product(input, theta, planes, rows, columns, *settings[:2])
    size = _product_size(input, planes, rows, columns)
    arrays = {"planes": _plain(planes), "rows": _plain(rows), "columns": _plain(columns)}
    lattice = (planes.shape[1], rows.shape[1], columns.shape[0])
    return _run("tensor_product", input, theta, size, settings, arrays, lattice=(ctypes.c_int64 * 3)(*lattice))


@torch.library.impl(_LATTICE, ("CPU", "CUDA"))
def _run_lattice(
    input: Tensor, theta: Tensor, index: Tensor, weight: Tensor, output_size: Sequence[int], *settings: Any
) -> Tensor:
    _check_lattice(input, theta, index, weight, output_size, *settings[:2])
    arrays = {"index": index.contiguous(), "basis": _plain(weight)}
    fields = {"taps": index.shape[0], "points": index.shape[1]}
    return _run("lattice", input, theta, tuple(output_size), settings, arrays, **fields)


def _run(
    kind: str,
    input: Tensor,
    theta: Tensor,
    size: tuple[int, ...],
    settings: tuple[str, str, bool],
    arrays: dict[str, Tensor],
    **fields: Any,
) -> Tensor:
    layout = 1 if is_channels_last(input) else 0
    if input.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(f"expected input to be float32, float16 or bfloat16, got {input.dtype}")
    blank = posed(kind, size, settings, input.dtype, layout, input.shape, basis_rows=theta.shape[2], **fields)
    for name, array in arrays.items():
        setattr(blank, name, array.data_ptr())
    return launch(blank, input, empty_output(input, size), _plain(theta), arrays.get("basis"))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()


def _gradients(ctx: Any, gradient: Tensor, compose: Callable[..., Tensor], count: int) -> tuple[Tensor | None, ...]:
    """Gradients of the first ``count`` inputs through ``compose`` of the saved tensors."""
    with torch.enable_grad():
        tensors = [
            tensor.detach().requires_grad_(ctx.needs_input_grad[i] and tensor.is_floating_point())
            for i, tensor in enumerate(ctx.saved_tensors)
        ]
        warped = compose(*tensors)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(torch.autograd.grad(warped, wanted, gradient))
    return tuple(next(found) if tensor.requires_grad else None for tensor in tensors[:count])


def _setup_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, mode, padding_mode, align_corners = inputs
    ctx.sampler = SamplerSpec(mode, padding_mode, align_corners)
    ctx.save_for_backward(*tensors)


def _product_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    def compose(input: Tensor, theta: Tensor, planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        matrices = [planes, rows, columns.T][-(input.dim() - 2) :]
        return sampled(input, tensor_product_grid(theta, matrices), ctx.sampler)

    return (*_gradients(ctx, gradient, compose, 5), None, None, None)


def _setup_lattice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.output_size, mode, padding_mode, align_corners = inputs
    ctx.sampler = SamplerSpec(mode, padding_mode, align_corners)
    ctx.save_for_backward(*tensors)


def _lattice_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    def compose(input: Tensor, theta: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return sampled(input, lattice_grid(theta, index, weight, ctx.output_size), ctx.sampler)

    return (*_gradients(ctx, gradient, compose, 4), None, None, None, None)


torch.library.register_autograd(_PRODUCT, _product_backward, setup_context=_setup_product)
torch.library.register_autograd(_LATTICE, _lattice_backward, setup_context=_setup_lattice)
