"""Records of sampler calls in a run of a model, independent of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.fusion.basis import AnyBasis, Basis, map_points
from stn_infer.fusion.samplers import SamplerNode
from stn_infer.reference.sampling import UNIT, coordinate_bound
from stn_infer.samplers import SamplerSpec
from stn_infer.sampling import Doubles


@dataclass(frozen=True)
class SamplerCall:
    """One call of a sampler.

    Attributes:
        node: the sampler.
        image: [N, C, *in], the sampled image.
        grid: [N, *out, D] float64, the exact grid for the theta or the grid that it was given.
        bound: [N, *out, D], the bound on float32's error of a point, in pixels of the image.
        warped: [N, C, *out], the result.
    """

    node: SamplerNode
    image: Array
    grid: Doubles
    bound: Doubles
    warped: Array

    @classmethod
    def of(cls, node: SamplerNode, image: Array, given: Array, warped: Array, *, at_grid: bool = False) -> SamplerCall:
        """Make a call from its inputs and result.

        Args:
            node: the sampler.
            image: [N, C, *in].
            given: theta [N, D, K], or the grid [N, *out, D] for a plain sampler or with ``at_grid``.
            warped: [N, C, *out].
            at_grid: whether ``given`` is the grid of a spatial transformer.
        """
        size = image.shape[2:]
        if node.basis is None or at_grid:
            grid = given.astype(np.float64)
            return cls(node, image, grid, coordinate_bound(grid, size), warped)
        return cls(node, image, *grid_and_bound(node.basis, given, size), warped)

    @property
    def spec(self) -> SamplerSpec:
        """How the grid is read."""
        return self.node.spec

    @property
    def size(self) -> tuple[int, ...]:
        """The sampled image's spatial size."""
        return tuple(self.image.shape[2:])

    @property
    def pixels(self) -> Array:
        """The grid as fractional pixel indices of the image, (x, y[, z])."""
        return self.spec.pixels(self.grid, self.size)


@dataclass(frozen=True)
class TracedRun:
    """One run of a model: outputs by name, in the model's order, and the sampler calls in execution order."""

    outputs: dict[str, Array]
    calls: tuple[SamplerCall, ...]


def grid_and_bound(basis: AnyBasis, theta: Array, size: Sequence[int]) -> tuple[Doubles, Doubles]:
    """The grid of ``theta`` [N, D, K] in float64, and float32's error bound in pixels of an image of ``size``."""
    exact, values = basis.exact(), theta.astype(np.float64)
    grid = exact.grid(values)
    terms = exact.terms(values)
    if not isinstance(exact, Basis) or exact.kind != "projective":
        return grid, coordinate_bound(grid, size, terms, exact.count)
    w = map_points(values[:, -1:], exact.rows, basis.output_size)
    w_terms = terms[..., -1:]
    if exact.w_min is not None:
        # Where w is below the bound by more than its rounding, the denominator is the bound itself.
        w_terms = np.where(w + (exact.count + 5) * UNIT * w_terms < exact.w_min, 0.0, w_terms)
        w = np.maximum(w, exact.w_min)
    denominator = np.concatenate([w, w_terms], axis=-1)
    offset = np.array(exact.offset or 0.0)
    divided = np.abs(grid - offset) + np.abs(offset)
    return grid, coordinate_bound(divided, size, terms[..., :-1], len(exact.rows), denominator)


def recorder(warps: Sequence[Array | None] = ()) -> Any:
    """A context manager that records every sampler call in PyTorch.

    Its ``calls`` are the :class:`SamplerCall` objects. Its ``again`` has a function of image and theta (or grid) for
    each, which runs that sampler again.

    Args:
        warps: the warped images [N, C, *out] that replace the samplers' results, in the order in which the samplers
            run; None keeps a sampler's own.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    samplers = (aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Records the inputs and results of samplers."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.calls: list[SamplerCall] = []
            self.again: list[Callable[..., Any]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            dtype = str(getattr(args[0], "dtype", "")).removeprefix("torch.") if args else ""
            if func in samplers:
                image, given, *settings = args[:5]
                node = SamplerNode(SamplerSpec.numbered(*settings), dtype=dtype)
                again = lambda image, grid: func(image, grid, *settings)  # noqa: E731
            elif str(func) == "stn.grid_sample.default":
                image, given, *settings = args
                node = SamplerNode(SamplerSpec(*settings), dtype=dtype)
                again = lambda image, grid: func(image, grid, *settings)  # noqa: E731
            elif str(func) == "stn.spatial_transformer.default":
                image, given, rows, kind, size, *settings = args
                w_min, offset = (*settings[3:], None, None)[:2]
                basis = Basis(kind, _array(rows), tuple(map(int, size)), w_min, tuple(offset or ()))
                node = SamplerNode(SamplerSpec(*settings[:3]), basis, dtype=dtype)
                again = lambda image, theta: func(image, theta, rows, kind, size, *settings)  # noqa: E731
            else:
                return result
            index = len(self.calls)
            self.calls.append(SamplerCall.of(node, _array(image), _array(given), _array(result)))
            self.again.append(again)
            warp = warps[index] if index < len(warps) else None
            if warp is not None and warp.shape == tuple(result.shape):
                return torch.from_numpy(np.ascontiguousarray(warp)).to(result)
            return result

    return Recorder()


def _array(tensor: Any) -> Array:
    """Copy a tensor, because a later operator may write in place; half-precision types become float32."""
    import torch

    tensor = tensor.detach().cpu()
    return np.array((tensor if tensor.dtype == torch.float64 else tensor.float()).numpy())
