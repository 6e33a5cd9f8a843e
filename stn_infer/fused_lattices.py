"""The plugin library's kernels for lattices as PyTorch operators: from control points to the warped image, no grid.

Importing this module defines ``torch.ops.stn.tensor_product_transformer`` and ``torch.ops.stn.lattice_transformer``, as
``stn_infer.fused`` does for the other ops. Their gradients are computed by standard operators, which are also the
fallback if the library has no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stn_infer import plugin
from stn_infer.errors import UsageError
from stn_infer.fused import (
    check_kernel,
    check_not_empty,
    check_place,
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
#: mode, padding_mode and align_corners.
Settings = tuple[str, str, bool]
Shape: TypeAlias = Sequence[int]
# The matrix of the axis that images do not have; made outside of inference mode, so that it can be saved for backward.
with torch.inference_mode(False):
    _ONE_PLANE = torch.ones(1, 1)
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
    compiling, kernel = torch.compiler.is_compiling(), usable(input)
    if len(matrices) == 3:
        planes = matrices[0]
    elif not compiling and type(input) is Tensor and input.device.type == "cpu":
        planes = _ONE_PLANE
    else:
        planes = torch.ones(1, 1, device=input.device)
    constants = (planes, matrices[-2], matrices[-1].T)
    if not kernel or compiling:  # otherwise the operator checks
        _check_product(input, theta, *constants, *settings[:2])
    if not kernel:
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
    kernel = usable(input)
    if not kernel or torch.compiler.is_compiling():  # otherwise the operator checks
        _check_lattice(input, theta, index, weight, output_size, *settings[:2])
    if not kernel:
        return sampled(input, lattice_grid(theta, index, weight, output_size), sampler)
    warped: Tensor = torch.ops.stn.lattice_transformer(input, theta, index, weight, list(output_size), *settings)
    return warped


def lattice_grid(theta: Tensor, index: Tensor, weight: Tensor, output_size: Sequence[int]) -> Tensor:
    """The grid [N, *output_size, D]: sums of the points of ``theta`` [N, D, K] at ``index`` times ``weight``.

    An index outside of 0 .. K - 1 reads the first or last point, as in the kernels.
    """
    with full_precision(theta.device):
        within = index.long().clamp(0, theta.shape[2] - 1)
        points = (theta[:, :, within] * cast(weight, theta.dtype)).sum(2)
    return points.transpose(1, 2).reshape(points.shape[0], *output_size, points.shape[1])


def _check_product(
    input: Tensor, theta: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, mode: str, padding_mode: str
) -> None:
    _check_product_shapes(input.shape, theta.shape, (planes.shape, rows.shape, columns.shape), mode, padding_mode)
    check_places(input, ("theta", theta), ("planes", planes), ("rows", rows), ("columns", columns))


def _check_product_shapes(
    input: Shape, theta: Shape, constants: tuple[Shape, Shape, Shape], mode: str, padding_mode: str
) -> None:
    for name, matrix in zip(("planes", "rows", "columns"), constants, strict=True):
        if len(matrix) != 2:
            raise UsageError(f"expected {name} to be a matrix, got the shape {tuple(matrix)}")
    planes, rows, columns = constants
    rank = len(input) - 2
    if not planes[1] * rows[1] * columns[0]:
        raise UsageError(
            "expected matrices for a lattice with at least one point, got the shapes "
            f"{tuple(planes)}, {tuple(rows)} and {tuple(columns)}"
        )
    _check_theta(input, theta, rank, planes[1] * rows[1] * columns[0], mode, padding_mode)
    if rank == 2 and tuple(planes) != (1, 1):
        raise UsageError("expected two matrices for an image, and three for a volume")
    check_not_empty(input, planes[0] * rows[0] * columns[1])


def _check_lattice(
    input: Tensor,
    theta: Tensor,
    index: Tensor,
    weight: Tensor,
    output_size: Sequence[int],
    mode: str,
    padding_mode: str,
) -> None:
    shapes = (input.shape, theta.shape, index.shape, weight.shape)
    _check_lattice_shapes(*shapes, output_size, mode, padding_mode)
    _check_lattice_places(input, theta, index, weight)


def _check_lattice_places(input: Tensor, theta: Tensor, index: Tensor, weight: Tensor) -> None:
    check_places(input, ("theta", theta), ("weight", weight))
    if index.dtype != torch.int32:
        raise UsageError(f"expected index to be int32, got {index.dtype}")
    check_place("index", index, input)


def _check_lattice_shapes(
    input: Shape, theta: Shape, index: Shape, weight: Shape, output_size: Sequence[int], mode: str, padding_mode: str
) -> None:
    rank, points = len(output_size), prod(output_size)
    if len(input) != rank + 2:
        raise UsageError(f"expected an input of {rank + 2} axes for output size {tuple(output_size)}")
    if any(size < 0 for size in output_size):
        raise UsageError(f"expected an output size of at least 0 along each axis, got {tuple(output_size)}")
    count = theta[2] if len(theta) == 3 else 0
    _check_theta(input, theta, rank, count, mode, padding_mode)
    if len(index) != 2 or tuple(index) != tuple(weight) or index[1] != points:
        raise UsageError(
            f"expected index and weight [J, {points}] for output size {tuple(output_size)}, "
            f"got the shapes {tuple(index)} and {tuple(weight)}"
        )
    if not 1 <= index[0] <= MOST_TAPS or count < 1:
        raise UsageError(f"expected 1 to {MOST_TAPS} points per pixel of a lattice with points, got {index[0]}")
    check_not_empty(input, points)


def _check_theta(input: Shape, theta: Shape, rank: int, count: int, mode: str, padding_mode: str) -> None:
    check_words(("mode", mode, MODES), ("padding_mode", padding_mode, PADDING_MODES))
    if rank not in (2, 3):
        raise UsageError(f"expected an input [N, C, H, W] or [N, C, D, H, W], got the shape {tuple(input)}")
    if rank == 3 and mode == "bicubic":
        raise UsageError("bicubic sampling is for images only")
    if tuple(theta) != (input[0], rank, count):
        raise UsageError(f"expected theta [{input[0]}, {rank}, {count}] for the lattice, got the shape {tuple(theta)}")


@torch.library.register_fake(_PRODUCT)  # type: ignore[untyped-decorator]
def _fake_product(
    input: Tensor, theta: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, *settings: Any
) -> Tensor:
    _check_product(input, theta, planes, rows, columns, *settings[:2])
    check_kernel(input)
    return empty_output(input, _product_size(input.shape, planes.shape, rows.shape, columns.shape))


@torch.library.register_fake(_LATTICE)  # type: ignore[untyped-decorator]
def _fake_lattice(
    input: Tensor, theta: Tensor, index: Tensor, weight: Tensor, output_size: Sequence[int], *settings: Any
) -> Tensor:
    _check_lattice(input, theta, index, weight, output_size, *settings[:2])
    check_kernel(input)
    return empty_output(input, output_size)


def _product_size(input: Shape, planes: Shape, rows: Shape, columns: Shape) -> tuple[int, ...]:
    return (planes[0], rows[0], columns[1])[-(len(input) - 2) :]


@torch.library.impl(_PRODUCT, "CompositeExplicitAutograd")
def _run_product(input: Tensor, theta: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, *settings: Any) -> Tensor:
    check_places(input, ("theta", theta), ("planes", planes), ("rows", rows), ("columns", columns))
    check_kernel(input)
    shapes = (input.shape, theta.shape, (planes.shape, rows.shape, columns.shape))
    size, blank = _product_problem(*shapes, settings, input.dtype, is_channels_last(input))
    output = empty_output(input, size)
    if not usable(input):
        return output.copy_(_composed_product(input, theta, planes, rows, columns, SamplerSpec(*settings)))
    arrays = {"planes": _plain(planes), "rows": _plain(rows), "columns": _plain(columns)}
    return launch(blank, input, output, _plain(theta), **arrays)


def _composed_product(
    input: Tensor, theta: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, sampler: SamplerSpec
) -> Tensor:
    matrices = [planes, rows, columns.T][-(input.dim() - 2) :]
    return sampled(input, tensor_product_grid(theta, matrices), sampler)


# Cached, because checking and filling in a problem takes longer than warping a small image.
@lru_cache(maxsize=256)
def _product_problem(
    input: tuple[int, ...],
    theta: tuple[int, ...],
    constants: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    settings: Settings,
    dtype: torch.dtype,
    last: bool,
) -> tuple[tuple[int, ...], plugin.Problem]:
    """The output's size, and a problem without its arrays; raises UsageError if the shapes do not fit."""
    _check_product_shapes(input, theta, constants, *settings[:2])
    planes, rows, columns = constants
    size = _product_size(input, *constants)
    problem = posed("tensor_product", size, settings, dtype, int(last), input, basis_rows=theta[2])
    problem.lattice[:] = (planes[1], rows[1], columns[0])
    return size, problem


@torch.library.impl(_LATTICE, "CompositeExplicitAutograd")
def _run_lattice(
    input: Tensor, theta: Tensor, index: Tensor, weight: Tensor, output_size: Sequence[int], *settings: Any
) -> Tensor:
    _check_lattice_places(input, theta, index, weight)
    check_kernel(input)
    shapes = (input.shape, theta.shape, index.shape, weight.shape)
    blank = _lattice_problem(*shapes, tuple(output_size), settings, input.dtype, is_channels_last(input))
    output = empty_output(input, output_size)
    if not usable(input):
        return output.copy_(sampled(input, lattice_grid(theta, index, weight, output_size), SamplerSpec(*settings)))
    arrays = {"index": index.contiguous(), "basis": _plain(weight)}
    return launch(blank, input, output, _plain(theta), **arrays)


@lru_cache(maxsize=256)
def _lattice_problem(
    input: tuple[int, ...],
    theta: tuple[int, ...],
    index: tuple[int, ...],
    weight: tuple[int, ...],
    size: tuple[int, ...],
    settings: Settings,
    dtype: torch.dtype,
    last: bool,
) -> plugin.Problem:
    """A problem without its arrays; raises UsageError if the shapes do not fit."""
    _check_lattice_shapes(input, theta, index, weight, size, *settings[:2])
    fields = {"basis_rows": theta[2], "taps": index[0], "points": index[1]}
    return posed("lattice", size, settings, dtype, int(last), input, **fields)


def _plain(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
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
    compose = partial(_composed_product, sampler=ctx.sampler)
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
