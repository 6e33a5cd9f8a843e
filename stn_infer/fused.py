"""The fused spatial transformer as a PyTorch operator: from theta to the warped image without a sampling grid.

Importing this module defines ``torch.ops.stn.spatial_transformer``, which calls the plugin library's C interface. It
works in eager mode, under ``torch.compile`` and ``torch.export``, and in CUDA graphs. Its gradient is computed by a
composition of standard operators, which is also the fallback if the library has no kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from stn_infer import plugin
from stn_infer.errors import UsageError
from stn_infer.samplers import DEFAULT_SPEC, MODES, PADDING_MODES, SamplerSpec
from stn_infer.transforms.grid import sampled, sampling_grid

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_OP = "stn::spatial_transformer"
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

torch.library.define(
    _OP,
    "(Tensor input, Tensor theta, Tensor basis, str kind, SymInt[] output_size, str mode, str padding_mode, "
    "bool align_corners) -> Tensor",
)


def spatial_transformer(
    input: Tensor,
    theta: Tensor,
    basis: Tensor,
    kind: str,
    output_size: Sequence[int],
    sampler: SamplerSpec = DEFAULT_SPEC,
) -> Tensor:
    """Sample ``input`` at the grid ``theta · basis``, with the fused kernel if there is one.

    Args:
        input: [N, C, H, W] or [N, C, D, H, W].
        theta: [N, D, K]; projective: [N, 3, 3].
        basis: [K, P], P = prod(output_size). Kind ``affine`` stands for the rows x, y(, z), 1 at pixel centers.
        kind: ``affine``, ``basis`` or ``projective``.
        output_size: (H, W) or (D, H, W).
        sampler: the settings of ``torch.nn.functional.grid_sample``; bicubic for images only.

    Returns:
        [N, C, *output_size], in the input's dtype and memory format.

    Raises:
        UsageError: an unknown kind, mode or padding mode, or inconsistent shapes.
    """
    _check(input, theta, basis, kind, output_size, sampler)
    if not usable(input):
        return composed(input, theta, basis, kind, output_size, sampler)
    settings = (sampler.mode, sampler.padding_mode, sampler.align_corners)
    warped: Tensor = torch.ops.stn.spatial_transformer(input, theta, basis, kind, list(output_size), *settings)
    return warped


def usable(input: Tensor) -> bool:
    """Whether there is a kernel for ``input``: the library loads and supports its dtype and device."""
    return input.dtype in _DTYPES and _library_serves(input.device.type)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _library_serves(device: str) -> bool:
    """Whether the library has kernels for a device; constant during a process."""
    if device not in ("cpu", "cuda") or not plugin.available():
        return False
    return device == "cpu" or bool(plugin.load().stn_has_cuda())


def composed(
    input: Tensor,
    theta: Tensor,
    basis: Tensor,
    kind: str,
    output_size: Sequence[int],
    sampler: SamplerSpec = DEFAULT_SPEC,
) -> Tensor:
    """:func:`spatial_transformer` composed of standard operators, with coordinates in float32 at least."""
    return sampled(input, sampling_grid(theta, basis, kind, output_size), sampler)


def _check(
    input: Tensor, theta: Tensor, basis: Tensor, kind: str, output_size: Sequence[int], sampler: SamplerSpec
) -> None:
    rank = len(output_size)
    for name, value, choices in (
        ("kind", kind, plugin.KINDS[:3]),
        ("mode", sampler.mode, MODES),
        ("padding_mode", sampler.padding_mode, PADDING_MODES),
    ):
        if value not in choices:
            raise UsageError(f"{name} is one of {', '.join(choices)}, not {value!r}")
    if rank not in (2, 3) or input.dim() != rank + 2:
        raise UsageError(f"expected an input of {rank + 2} axes for output size {tuple(output_size)}")
    if rank == 3 and (sampler.mode == "bicubic" or kind == "projective"):
        raise UsageError("bicubic sampling and projective transformations are for images only")
    rows = 3 if kind == "projective" else rank
    if theta.dim() != 3 or theta.shape[0] != input.shape[0] or theta.shape[1] != rows:
        raise UsageError(
            f"expected theta with {rows} rows and batch size {input.shape[0]}, got the shape {tuple(theta.shape)}"
        )
    if basis.dim() != 2 or basis.shape[0] != theta.shape[2]:
        raise UsageError(
            f"expected a basis with {theta.shape[2]} rows, the columns of theta, got the shape {tuple(basis.shape)}"
        )


def _is_channels_last(input: Tensor) -> bool:
    return not input.is_contiguous() and input.is_contiguous(memory_format=_LAST[input.dim()])


def _empty_output(input: Tensor, output_size: Sequence[int]) -> Tensor:
    shape = (*input.shape[:2], *output_size)
    if not _is_channels_last(input):
        return input.new_empty(shape)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=_LAST[input.dim()])


@torch.library.register_fake(_OP)  # type: ignore[untyped-decorator]
def _fake(input: Tensor, theta: Tensor, basis: Tensor, kind: str, output_size: Sequence[int], *settings: Any) -> Tensor:
    return _empty_output(input, output_size)


@lru_cache(maxsize=256)
def _problem(
    kind: str,
    output_size: tuple[int, ...],
    settings: tuple[str, str, bool],
    dtype: torch.dtype,
    layout: int,
    shape: tuple[int, ...],
    rows: int,
) -> plugin.Problem:
    """A problem without its arrays. Cached, because filling it in takes longer than warping a small image."""
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
        batch=shape[0],
        channels=shape[1],
        input_size=(ctypes.c_int64 * 3)(*shape[2:]),
        output_size=(ctypes.c_int64 * 3)(*output_size),
        basis_rows=rows,
        theta_batch=shape[0],
        input_batch=shape[0],
    )


@torch.library.impl(_OP, ("CPU", "CUDA"))
def _run(input: Tensor, theta: Tensor, basis: Tensor, kind: str, output_size: Sequence[int], *settings: Any) -> Tensor:
    layout = 1 if _is_channels_last(input) else 0
    if not layout:
        input = input.contiguous()
    if theta.dtype != torch.float32 or not theta.is_contiguous():
        theta = theta.to(torch.float32).contiguous()
    if basis.dtype != torch.float32 or not basis.is_contiguous():
        basis = basis.to(torch.float32).contiguous()
    output = _empty_output(input, output_size)
    blank = _problem(kind, tuple(output_size), settings, input.dtype, layout, input.shape, theta.shape[2])
    problem = plugin.Problem.from_buffer_copy(blank)
    problem.input, problem.theta = input.data_ptr(), theta.data_ptr()
    problem.basis, problem.output = basis.data_ptr(), output.data_ptr()
    if input.device.type == "cpu":
        plugin.run_cpu(problem, torch.get_num_threads())
    else:
        with torch.cuda.device(input.device):
            plugin.run_cuda(problem, torch.cuda.current_stream(input.device).cuda_stream)
    return output


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, theta, basis, ctx.kind, ctx.output_size, *settings = inputs
    ctx.sampler = SamplerSpec(*settings)
    ctx.save_for_backward(input, theta, basis)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        tensors = [
            tensor.detach().requires_grad_(ctx.needs_input_grad[i]) for i, tensor in enumerate(ctx.saved_tensors)
        ]
        input, theta, basis = tensors
        warped = composed(input, theta, basis, ctx.kind, ctx.output_size, ctx.sampler)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(torch.autograd.grad(warped, wanted, gradient))
    return (*(next(found) if tensor.requires_grad else None for tensor in tensors), *[None] * 5)


torch.library.register_autograd(_OP, _backward, setup_context=_setup_context)
