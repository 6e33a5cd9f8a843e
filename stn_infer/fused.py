"""The plugin library's kernels as PyTorch operators: spatial transformers without a sampling grid, and ``grid_sample``.

Importing this module defines ``torch.ops.stn.spatial_transformer`` and ``torch.ops.stn.grid_sample``, which call the
library's C interface. They work in eager mode, under ``torch.compile`` and ``torch.export``, and in CUDA graphs. Their
gradients are computed by standard operators, which are also the fallback if the library has no kernel.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from functools import lru_cache
from math import isfinite, isnan, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_infer import plugin
from stn_infer.errors import UsageError
from stn_infer.samplers import DEFAULT_SPEC, MODES, PADDING_MODES, SamplerSpec
from stn_infer.transforms.grid import cast, sampled, sampling_grid

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FLOATS = (*_DTYPES, torch.float64)
_DEVICES = ("cpu", "cuda", "meta")  # the last: shapes only, when a model is traced
_OP = "stn::spatial_transformer"
_GRID_OP = "stn::grid_sample"
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

#: mode, padding_mode, align_corners, w_min and offset.
Settings = tuple[str, str, bool, float | None, tuple[float, ...] | None]

torch.library.define(
    _OP,
    "(Tensor input, Tensor theta, Tensor basis, str kind, SymInt[] output_size, str mode, str padding_mode, "
    "bool align_corners, float? w_min=None, float[]? offset=None) -> Tensor",
)
torch.library.define(_GRID_OP, "(Tensor input, Tensor grid, str mode, str padding_mode, bool align_corners) -> Tensor")


def spatial_transformer(
    input: Tensor,
    theta: Tensor,
    basis: Tensor,
    kind: str,
    output_size: Sequence[int],
    sampler: SamplerSpec = DEFAULT_SPEC,
    w_min: float | None = None,
    offset: Sequence[float] | None = None,
) -> Tensor:
    """Sample ``input`` at the grid ``theta · basis``, with the fused kernel if there is one.

    Args:
        input: [N, C, H, W] or [N, C, D, H, W].
        theta: [N, D, K]; projective: [N, D + 1, K], whose last row times ``basis`` is the denominator w.
        basis: [K, P], P = prod(output_size). Kind ``affine`` stands for the rows x, y(, z), 1 at pixel centers.
        kind: ``affine``, ``basis`` or ``projective``.
        output_size: (H, W) or (D, H, W).
        sampler: the settings of ``torch.nn.functional.grid_sample``; bicubic for images only.
        w_min: projective only: the grid is divided by max(w, w_min), where NaN stays NaN; None: by w.
        offset: projective only: D numbers that are added to (x, y(, z)) after the division; None: zeros.

    Returns:
        [N, C, *output_size], in the input's dtype and memory format.

    Raises:
        UsageError: an unknown kind, mode or padding mode, or tensors whose shapes, dtypes or devices do not fit.
    """
    kernel = usable(input)
    if not kernel or torch.compiler.is_compiling():  # otherwise the operator checks
        _check(input, theta, basis, kind, output_size, sampler, w_min, offset)
    if not kernel:
        return composed(input, theta, basis, kind, output_size, sampler, w_min, offset)
    settings = (sampler.mode, sampler.padding_mode, sampler.align_corners, w_min, offset)
    warped: Tensor = torch.ops.stn.spatial_transformer(input, theta, basis, kind, list(output_size), *settings)
    return warped


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """A drop-in for ``torch.nn.functional.grid_sample`` that uses the plugin library's kernel if there is one.

    There is one for float32, float16 and bfloat16 on the devices that the library was built for. While a model is
    exported, the standard operator is used.

    Args:
        input: [N, C, H, W] or [N, C, D, H, W].
        grid: [N, Ho, Wo, 2] or [N, Do, Ho, Wo, 3], normalized coordinates, x first; may be float32 for an input in half
            precision, which the standard operator does not accept.
        mode: ``bilinear``, ``nearest`` or ``bicubic`` (images only).
        padding_mode: ``zeros``, ``border`` or ``reflection``.
        align_corners: whether -1 and 1 are the centers of the border pixels; None: False, with PyTorch's warning.

    Returns:
        [N, C, Ho, Wo] or [N, C, Do, Ho, Wo], in the input's dtype. Unlike in PyTorch, NaN and infinite coordinates
        sample outside of the image.

    Raises:
        ValueError, RuntimeError: as ``torch.nn.functional.grid_sample``.
    """
    if align_corners is None:
        if not torch.compiler.is_compiling():  # which cannot trace a warning
            warnings.warn(
                "grid_sample: align_corners is False by default (in PyTorch since 1.3.0); specify it to silence this",
                stacklevel=2,
            )
        align_corners = False
    device = input.device.type
    if torch.is_autocast_enabled(device):  # as autocast treats the standard operator
        dtype = torch.float32 if device == "cpu" else torch.promote_types(input.dtype, grid.dtype)
        input, grid = cast(input, dtype), cast(grid, dtype)
    known = mode in MODES and padding_mode in PADDING_MODES
    served = known and usable(input) and not torch.compiler.is_exporting() and not _grid_problem(input, grid, mode)
    if not served:
        if input.dtype == grid.dtype or not known or not (input.is_floating_point() and grid.is_floating_point()):
            return F.grid_sample(input, grid, mode, padding_mode, align_corners)
        return sampled(input, grid, SamplerSpec(mode, padding_mode, align_corners))
    warped: Tensor = torch.ops.stn.grid_sample(input, grid, mode, padding_mode, align_corners)
    return warped


def usable(input: Tensor) -> bool:
    """Whether there is a kernel for ``input``: the library loads, supports its dtype, and runs on its device.

    A GPU that the library's CUDA kernels cannot run on is reported once, as a RuntimeWarning.
    """
    return input.dtype in _DTYPES and _library_serves(input.device.type, input.device.index)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _library_serves(kind: str, index: int | None) -> bool:
    """Whether the library has kernels for a device; constant during a process."""
    if kind == "cpu":
        return plugin.available()
    if kind != "cuda" or not plugin.available() or not plugin.load().stn_has_cuda():
        return False
    problem = plugin.cuda_problem(torch.cuda.current_device() if index is None else index)
    if problem is not None:
        plugin.warn_of(problem, "PyTorch's operators")
    return problem is None


def composed(
    input: Tensor,
    theta: Tensor,
    basis: Tensor,
    kind: str,
    output_size: Sequence[int],
    sampler: SamplerSpec = DEFAULT_SPEC,
    w_min: float | None = None,
    offset: Sequence[float] | None = None,
) -> Tensor:
    """:func:`spatial_transformer` composed of standard operators, with coordinates in float32 at least."""
    return sampled(input, sampling_grid(theta, basis, kind, output_size, w_min, offset), sampler)


def _check(
    input: Tensor,
    theta: Tensor,
    basis: Tensor,
    kind: str,
    output_size: Sequence[int],
    sampler: SamplerSpec,
    w_min: float | None,
    offset: Sequence[float] | None,
) -> None:
    """Raises UsageError unless the arguments of ``spatial_transformer`` fit together."""
    words = (sampler.mode, sampler.padding_mode)
    _check_shapes(input.shape, theta.shape, basis.shape, kind, output_size, *words, w_min, offset)
    check_places(input, ("theta", theta), ("basis", basis))


def _check_shapes(
    input: Sequence[int],
    theta: Sequence[int],
    basis: Sequence[int],
    kind: str,
    output_size: Sequence[int],
    mode: str,
    padding_mode: str,
    w_min: float | None,
    offset: Sequence[float] | None,
) -> None:
    rank = len(output_size)
    check_words(("kind", kind, plugin.KINDS[:3]), ("mode", mode, MODES), ("padding_mode", padding_mode, PADDING_MODES))
    if rank not in (2, 3) or len(input) != rank + 2:
        raise UsageError(f"expected an input of {rank + 2} axes for output size {tuple(output_size)}")
    if min(output_size) < 0:
        raise UsageError(f"expected an output size of at least 0 along each axis, got {tuple(output_size)}")
    if rank == 3 and mode == "bicubic":
        raise UsageError("bicubic sampling is for images only")
    if w_min is not None and (kind != "projective" or isnan(w_min)):
        raise UsageError(f"expected w_min to be a number, for kind projective only; got {w_min} for kind {kind}")
    fits = offset is None or (kind == "projective" and len(offset) == rank and all(map(isfinite, offset)))
    if not fits:
        raise UsageError(
            f"expected an offset of {rank} numbers, for kind projective only; got {offset} for kind {kind}"
        )
    rows = rank + (kind == "projective")
    if len(theta) != 3 or theta[0] != input[0] or theta[1] != rows:
        raise UsageError(f"expected theta with {rows} rows and batch size {input[0]}, got the shape {tuple(theta)}")
    if len(basis) != 2 or basis[0] != theta[2]:
        raise UsageError(f"expected a basis with {theta[2]} rows, the columns of theta, got the shape {tuple(basis)}")
    if kind == "affine" and basis[0] != rank + 1:
        raise UsageError(f"expected an affine theta with {rank + 1} columns, got the shape {tuple(theta)}")
    if basis[0] < 1:
        raise UsageError(f"expected a basis with at least one row, got the shape {tuple(basis)}")
    points = prod(output_size)
    if basis[1] != points:
        raise UsageError(
            f"expected a basis with {points} columns, the points of output size {tuple(output_size)}, "
            f"got the shape {tuple(basis)}"
        )
    check_not_empty(input, points)


def check_words(*words: tuple[str, str, Sequence[str]]) -> None:
    for name, value, choices in words:
        if value not in choices:
            raise UsageError(f"{name} is one of {', '.join(choices)}, not {value!r}")


def check_not_empty(input: Sequence[int], points: int) -> None:
    if points and prod(input[:2]) and not prod(input[2:]):
        raise UsageError(f"expected an input with at least one pixel, got the shape {tuple(input)}")


def check_places(input: Tensor, *others: tuple[str, Tensor]) -> None:
    """Raises UsageError unless all tensors are dense floating-point numbers on one device."""
    for name, tensor in (("input", input), *others):
        if tensor.dtype not in _FLOATS:
            floats = "float32, float16, bfloat16 or float64"
            raise UsageError(f"expected {name} to be floating-point ({floats}), got {tensor.dtype}")
        check_place(name, tensor, input)


def check_place(name: str, tensor: Tensor, input: Tensor) -> None:
    """Raises UsageError unless a tensor is dense and on the device of ``input``."""
    if tensor.layout != torch.strided:
        raise UsageError(f"expected {name} to be a dense tensor, got one of the layout {tensor.layout}")
    if tensor.device != input.device:
        raise UsageError(f"expected {name} on {input.device}, the device of input, got {tensor.device}")


def check_kernel(input: Tensor) -> None:
    """Raises UsageError unless ``input`` has a dtype and a device that the library can have kernels for."""
    if input.dtype not in _DTYPES:
        raise UsageError(f"expected input to be float32, float16 or bfloat16, got {input.dtype}")
    if input.device.type not in _DEVICES:
        raise UsageError(f"expected input on the CPU or on a CUDA GPU, got {input.device}")


def _grid_problem(input: Tensor, grid: Tensor, mode: str) -> str:
    """What is wrong with the arguments of ``grid_sample``; "" if nothing is."""
    rank = input.dim() - 2
    if rank not in (2, 3):
        return f"expected an input [N, C, H, W] or [N, C, D, H, W], got the shape {tuple(input.shape)}"
    if grid.dim() != rank + 2 or grid.shape[0] != input.shape[0] or grid.shape[-1] != rank:
        sizes = "H, W, 2" if rank == 2 else "D, H, W, 3"
        return f"expected a grid [{input.shape[0]}, {sizes}] for the input, got the shape {tuple(grid.shape)}"
    if rank == 3 and mode == "bicubic":
        return "bicubic sampling is for images only"
    if not prod(input.shape[2:]):
        return f"expected an input with at least one pixel, got the shape {tuple(input.shape)}"
    for name, tensor in (("input", input), ("grid", grid)):
        if tensor.dtype not in _DTYPES:
            return f"expected {name} to be float32, float16 or bfloat16, got {tensor.dtype}"
    if grid.device != input.device:
        return f"expected the grid on {input.device}, the device of input, got {grid.device}"
    return ""


def is_channels_last(input: Tensor) -> bool:
    return not input.is_contiguous() and input.is_contiguous(memory_format=_LAST[input.dim()])


def empty_output(input: Tensor, output_size: Sequence[int]) -> Tensor:
    shape = (*input.shape[:2], *output_size)
    if not is_channels_last(input):
        return input.new_empty(shape)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=_LAST[input.dim()])


def _complete(settings: Sequence[Any]) -> Settings:
    """All settings: PyTorch omits the last ones if they are the defaults."""
    mode, padding_mode, align_corners, *others = settings
    w_min, offset = (*others, None, None)[:2]
    return mode, padding_mode, align_corners, w_min, None if offset is None else tuple(offset)


@torch.library.register_fake(_OP)  # type: ignore[untyped-decorator]
def _fake(input: Tensor, theta: Tensor, basis: Tensor, kind: str, output_size: Sequence[int], *settings: Any) -> Tensor:
    mode, padding_mode, align_corners, w_min, offset = _complete(settings)
    _check(input, theta, basis, kind, output_size, SamplerSpec(mode, padding_mode, align_corners), w_min, offset)
    check_kernel(input)
    return empty_output(input, output_size)


@torch.library.register_fake(_GRID_OP)  # type: ignore[untyped-decorator]
def _fake_grid_sample(input: Tensor, grid: Tensor, *settings: Any) -> Tensor:
    _check_grid_sample(input, grid, *settings[:2])
    return empty_output(input, grid.shape[1:-1])


def _check_grid_sample(input: Tensor, grid: Tensor, mode: str, padding_mode: str) -> None:
    check_words(("mode", mode, MODES), ("padding_mode", padding_mode, PADDING_MODES))
    check_places(input, ("grid", grid))
    check_kernel(input)
    problem = _grid_problem(input, grid, mode)
    if problem:
        raise UsageError(problem)


@lru_cache(maxsize=256)
def _problem(
    kind: str,
    output_size: tuple[int, ...],
    settings: Settings,
    dtype: torch.dtype,
    layout: int,
    input: tuple[int, ...],
    theta: tuple[int, ...],
    basis: tuple[int, ...],
) -> plugin.Problem:
    """A problem without its arrays. Cached, because checking and filling it in takes longer than warping a small image.

    Raises:
        UsageError: the shapes do not fit, or a word is unknown.
    """
    mode, padding_mode, align_corners, w_min, offset = settings
    _check_shapes(input, theta, basis, kind, output_size, mode, padding_mode, w_min, offset)
    sampler = (mode, padding_mode, align_corners)
    problem = posed(kind, output_size, sampler, dtype, layout, input, basis_rows=theta[2], points=basis[1])
    if w_min is not None:
        problem.clamp_w, problem.w_min = 1, w_min
    if offset is not None:
        problem.offset[: len(offset)] = offset
    return problem


@lru_cache(maxsize=256)
def _grid_sample_problem(
    output_size: tuple[int, ...],
    settings: tuple[str, str, bool],
    dtypes: tuple[torch.dtype, torch.dtype],
    layout: int,
    input: tuple[int, ...],
) -> plugin.Problem:
    """The same for :func:`grid_sample`; ``dtypes``: of input and grid."""
    dtype, grid_dtype = dtypes
    points = prod(output_size)
    return posed("grid", output_size, settings, dtype, layout, input, grid_dtype=_DTYPES[grid_dtype], points=points)


def posed(
    kind: str,
    output_size: tuple[int, ...],
    settings: tuple[str, str, bool],
    dtype: torch.dtype,
    layout: int,
    input: tuple[int, ...],
    **fields: int,
) -> plugin.Problem:
    mode, padding_mode, align_corners = settings
    return plugin.Problem(
        rank=len(output_size),
        kind=plugin.KINDS.index(kind),
        mode=MODES.index(mode),
        padding=PADDING_MODES.index(padding_mode),
        align_corners=int(align_corners),
        dtype=_DTYPES[dtype],
        input_layout=layout,
        output_layout=layout,
        batch=input[0],
        channels=input[1],
        input_size=(ctypes.c_int64 * 3)(*input[2:]),
        output_size=(ctypes.c_int64 * 3)(*output_size),
        theta_batch=input[0],
        input_batch=input[0],
        **fields,
    )


# Registered for every backend, so that tensors of one without kernels are refused in the same words.
@torch.library.impl(_OP, "CompositeExplicitAutograd")
def _run(input: Tensor, theta: Tensor, basis: Tensor, kind: str, output_size: Sequence[int], *settings: Any) -> Tensor:
    check_places(input, ("theta", theta), ("basis", basis))
    check_kernel(input)
    layout = 1 if is_channels_last(input) else 0
    sizes = (input.shape, theta.shape, basis.shape)
    complete = _complete(settings)
    blank = _problem(kind, tuple(output_size), complete, input.dtype, layout, *sizes)
    output = empty_output(input, output_size)
    if not usable(input):
        sampler = SamplerSpec(*complete[:3])
        return output.copy_(composed(input, theta, basis, kind, output_size, sampler, *complete[3:]))
    if theta.dtype != torch.float32 or not theta.is_contiguous():
        theta = theta.to(torch.float32).contiguous()
    if basis.dtype != torch.float32 or not basis.is_contiguous():
        basis = basis.to(torch.float32).contiguous()
    return launch(blank, input, output, theta, basis=basis)


@torch.library.impl(_GRID_OP, "CompositeExplicitAutograd")
def _run_grid_sample(input: Tensor, grid: Tensor, *settings: Any) -> Tensor:
    _check_grid_sample(input, grid, *settings[:2])
    layout = 1 if is_channels_last(input) else 0
    output_size = tuple(grid.shape[1:-1])
    output = empty_output(input, output_size)
    if not usable(input):
        return output.copy_(sampled(input, grid, SamplerSpec(*settings)))
    blank = _grid_sample_problem(output_size, settings, (input.dtype, grid.dtype), layout, input.shape)
    return launch(blank, input, output, grid.contiguous())


def launch(blank: plugin.Problem, input: Tensor, output: Tensor, theta: Tensor, **arrays: Tensor) -> Tensor:
    """Runs a problem on its arrays, theta and those named by their fields contiguous; returns ``output``."""
    input = input if blank.input_layout else input.contiguous()
    problem = plugin.Problem.from_buffer_copy(blank)
    problem.input, problem.theta, problem.output = input.data_ptr(), theta.data_ptr(), output.data_ptr()
    for name, array in arrays.items():
        setattr(problem, name, array.data_ptr())
    if input.device.type == "cpu":
        plugin.run_cpu(problem, torch.get_num_threads())
    else:
        with torch.cuda.device(input.device):
            plugin.run_cuda(problem, torch.cuda.current_stream(input.device).cuda_stream)
    return output


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, theta, basis, ctx.kind, ctx.output_size, *settings = inputs
    mode, padding_mode, align_corners, ctx.w_min, ctx.offset = _complete(settings)
    ctx.sampler = SamplerSpec(mode, padding_mode, align_corners)
    ctx.others = len(inputs) - 3
    ctx.save_for_backward(input, theta, basis)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        tensors = [
            tensor.detach().requires_grad_(ctx.needs_input_grad[i]) for i, tensor in enumerate(ctx.saved_tensors)
        ]
        input, theta, basis = tensors
        warped = composed(input, theta, basis, ctx.kind, ctx.output_size, ctx.sampler, ctx.w_min, ctx.offset)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(torch.autograd.grad(warped, wanted, gradient))
    return (*(next(found) if tensor.requires_grad else None for tensor in tensors), *[None] * ctx.others)


torch.library.register_autograd(_OP, _backward, setup_context=_setup_context)


def _setup_grid_sample(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, grid, *settings = inputs
    ctx.settings = settings
    ctx.save_for_backward(input, grid)


def _grid_sample_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """PyTorch's own, in the wider of the two dtypes; on the CPU, which has none for half precision, in float32."""
    input, grid = ctx.saved_tensors
    dtype = torch.promote_types(input.dtype, grid.dtype)
    if input.device.type == "cpu":
        dtype = torch.promote_types(dtype, torch.float32)
    mode, padding_mode, align_corners = ctx.settings
    aten = torch.ops.aten
    backward = aten.grid_sampler_2d_backward if input.dim() == 4 else aten.grid_sampler_3d_backward
    numbers = (MODES.index(mode), PADDING_MODES.index(padding_mode), align_corners)
    tensors = (cast(tensor, dtype) for tensor in (gradient, input, grid))
    found = backward(*tensors, *numbers, list(ctx.needs_input_grad[:2]))
    pairs = zip(found, (input, grid), ctx.needs_input_grad, strict=False)
    return (*(cast(value, like.dtype) if needed else None for value, like, needed in pairs), None, None, None)


torch.library.register_autograd(_GRID_OP, _grid_sample_backward, setup_context=_setup_grid_sample)
