"""``SpatialTransformer``: localization network, transformation and sampler as one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.conventions import Order, resolve
from stn_infer.errors import UsageError
from stn_infer.fused import spatial_transformer
from stn_infer.fused_lattices import tensor_product_transformer
from stn_infer.samplers import MODES, Mode, PaddingMode, Rounding, SamplerSpec
from stn_infer.transforms import TensorProduct, Transformation
from stn_infer.transforms.base import reorder_axes, shrink
from stn_infer.transforms.grid import cast, full_precision, sampled, sampling_grid, tensor_product_grid
from stn_infer.transforms.quotient import GeneralQuotient
from stn_infer.version import respelled


class SpatialTransformer(nn.Module):
    """Warps its input at a grid predicted by a localization network (Jaderberg et al. 2015, section 3).

    Args:
        localization: maps the input to parameters [N, Q]; None if the caller passes them to :meth:`forward`.
        transformation: the family of grids.
        output_size: (H, W), or (D, H, W) for volumes; may differ from the input's.
        mode: the sampler's interpolation; ``bilinear`` is trilinear for volumes, which do not support ``bicubic``.
        padding_mode: the value of samples outside the input; None: from the convention, else zeros.
        align_corners: the sampler's convention, as in ``torch.nn.functional.grid_sample``; None: from the convention,
            else False.
        grid_align_corners: the grid's convention; None: from the convention, else the sampler's. They differ in some
            known checkpoints.
        identity_init: zero the weights of the last linear layer and set its bias to the identity parameters.
        fused: use the plugin library's fused kernel, which does not materialize a grid, if the library is built and
            supports the input's dtype and device. Otherwise, and always during export, use standard operators.
        convention: a name in :data:`stn_infer.conventions.CONVENTIONS` for the fields that are not given.
        order: whether parameters have x or y first; None: from the convention, else ``xy``. Control points, points of
            space and monomials always have x first in ``transformation``.
        input_size: (H, W) or (D, H, W) of the input; required by conventions whose sampler ends before the last pixel
            (``kevinzakka``), because their scale depends on it.
        rounding: of ``nearest``: ``half to even`` as PyTorch and ONNX, or ``half up`` as the paper's eq. 4, which
            rounds the grid with standard operators.

    The constants are buffers that are not stored in checkpoints. They remain in float32 when the module is cast to half
    precision (a grid in half precision is wrong by pixels), and are recomputed in float64 for ``.double()``.

    Raises:
        UsageError: an unknown mode, padding mode, order, rounding or convention, a rounding of another mode than
            ``nearest``, an output size of the wrong rank, a missing
            ``input_size``, or ``identity_init`` with a localization network that does not end in a linear layer with
            Q outputs.
    """

    basis: Tensor  # [K, P]
    parameter_matrix: Tensor  # [D * K, F]
    parameter_offset: Tensor  # [D * K]; lattices: [D, K]
    parameter_scale: Tensor  # [D, 1]; lattices have it and axis_matrix_* instead of basis and parameter_matrix

    def __init__(
        self,
        localization: nn.Module | None,
        transformation: Transformation,
        output_size: Sequence[int],
        mode: Mode = "bilinear",
        padding_mode: PaddingMode | None = None,
        align_corners: bool | None = None,
        grid_align_corners: bool | None = None,
        identity_init: bool = True,
        fused: bool = False,
        convention: str | None = None,
        order: Order | None = None,
        input_size: Sequence[int] | None = None,
        rounding: Rounding = "half to even",
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise UsageError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
        if mode == "bicubic" and transformation.rank == 3:
            raise UsageError("bicubic sampling is defined for images only; use bilinear or nearest for volumes")
        if rounding not in ("half to even", "half up"):
            raise UsageError(f"rounding is 'half to even' or 'half up', not {rounding!r}")
        if rounding == "half up" and mode != "nearest":
            raise UsageError(f"rounding is a setting of mode='nearest', not of {mode!r}")
        chosen = resolve(convention, align_corners, grid_align_corners, padding_mode, order)
        self.localization = localization
        self.register_load_state_dict_pre_hook(_respell_keys)  # type: ignore[no-untyped-call]
        self.transformation = transformation
        self.output_size = transformation.check_output_size(output_size)
        self.mode = mode
        self.padding_mode: PaddingMode = chosen.padding_mode
        self.align_corners = chosen.align_corners
        self.grid_align_corners = chosen.grid_align_corners
        self.order: Order = chosen.order
        self.fused = fused
        self.rounding: Rounding = rounding
        self.short = chosen.short
        self.input_size = self._checked(input_size, chosen.name)
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        for name, constant in self._constants().items():
            self.register_buffer(name, constant.to(dtype), persistent=False)
        if identity_init and localization is not None:
            self.reset_to_identity()

    def forward(self, input: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Warp ``input`` [N, C, H, W] (or [N, C, D, H, W]) to [N, C, *output_size], in its own dtype.

        Args:
            input: the images or volumes to sample, also the localization network's input.
            parameters: [N, Q], instead of the localization network's output.

        Raises:
            UsageError: there is no localization network and no parameters, or the input has the wrong rank or size.
        """
        theta = self.theta(self._predicted(input, parameters))
        fused = self.fused and self.rounding == "half to even" and not torch.compiler.is_exporting()
        sampler = SamplerSpec(self.mode, self.padding_mode, self.align_corners, self.rounding)
        return self._fused(input, theta, sampler) if fused else self._sampled(input, theta, sampler)

    def predicted_grid(self, input: Tensor, parameters: Tensor | None = None) -> Tensor:
        """The sampling grid [N, *output_size, D] for ``input``; arguments and errors as for :meth:`forward`."""
        return self.grid(self.theta(self._predicted(input, parameters)))

    def _predicted(self, input: Tensor, parameters: Tensor | None) -> Tensor:
        if input.dim() != self.transformation.rank + 2:
            raise UsageError(
                f"SpatialTransformer with {type(self.transformation).__name__} takes an input of "
                f"{self.transformation.rank + 2} axes, not {input.dim()} (shape {tuple(input.shape)})"
            )
        if self.short and self.input_size != tuple(input.shape[2:]):
            raise UsageError(
                f"this SpatialTransformer was built for inputs of size {self.input_size}, not "
                f"{tuple(input.shape[2:])}; its convention depends on the input's size: build it with that input_size"
            )
        if parameters is None:
            if self.localization is None:
                raise UsageError("this SpatialTransformer has no localization network; pass parameters [N, Q]")
            predicted: Tensor = self.localization(input)
            return predicted
        return parameters

    def _sampled(self, input: Tensor, theta: Tensor, sampler: SamplerSpec) -> Tensor:
        return sampled(input, self.grid(theta), sampler)

    def _fused(self, input: Tensor, theta: Tensor, sampler: SamplerSpec) -> Tensor:
        if isinstance(self.transformation, TensorProduct):
            return tensor_product_transformer(input, theta, self._axis_matrices(), sampler)
        kind, size = self.transformation.kind, self.output_size
        return spatial_transformer(input, theta, self.basis, kind, size, sampler, *self._division())

    def theta(self, parameters: Tensor) -> Tensor:
        """Maps the network's parameters [N, Q] to theta [N, D, K] (projective: [N, D + 1, K]), float32 or float64."""
        dtype = torch.promote_types(parameters.dtype, self.parameter_offset.dtype)
        with full_precision(parameters.device):
            values, offset = cast(parameters, dtype), cast(self.parameter_offset, dtype)
            if isinstance(self.transformation, TensorProduct):
                return self._lattice(values, self.transformation, offset)
            theta: Tensor = F.linear(self.transformation.features(values), cast(self.parameter_matrix, dtype), offset)
        return theta.reshape(theta.shape[0], *self.transformation.theta_shape)

    def grid(self, theta: Tensor) -> Tensor:
        """The sampling grid [N, *output_size, D] of theta [N, D, K] (projective: [N, D + 1, K]), in theta's dtype."""
        if isinstance(self.transformation, TensorProduct):
            return tensor_product_grid(theta, self._axis_matrices())
        return sampling_grid(theta, self.basis, self.transformation.kind, self.output_size, *self._division())

    def _division(self) -> tuple[float | None, tuple[float, ...] | None]:
        """The least denominator of a projective grid, and what is added after the division; None: nothing."""
        w_min, offset = self.transformation.w_min, self.transformation.division_offset(self.grid_align_corners)
        if self.short and w_min is not None and not offset:
            offset = (0.0,) * self.transformation.rank
        if self.short and offset:  # each axis of the grid is factor * (grid + 1) - 1
            factors = self._factors().tolist()
            offset = tuple(factor * (move + 1) - 1 for factor, move in zip(factors, offset, strict=True))
        return w_min, offset or None

    def _lattice(self, values: Tensor, family: TensorProduct, offset: Tensor) -> Tensor:
        """theta [N, D, K] of a lattice's parameters [N, Q], without a matrix: thousands of points cost little."""
        values = values.reshape(values.shape[0], family.rank, *family.points)
        theta = family.theta(values.flip(1) if self.order == "yx" else values)
        if self.short:
            theta = theta * cast(self.parameter_scale, theta.dtype)
        return theta + offset if family.offsets or self.short else theta

    def _axis_matrices(self) -> list[Tensor]:
        return [getattr(self, f"axis_matrix_{axis}") for axis in range(self.transformation.rank)]

    def reset_to_identity(self) -> None:
        """Zero the weights of the last linear layer and set its bias to the identity parameters.

        Raises:
            UsageError: there is no localization network, or it does not end in a linear layer with Q outputs.
        """
        head = [module for module in (self.localization or nn.Identity()).modules() if list(module.parameters(False))]
        count = self.transformation.num_parameters
        last = head[-1] if head else None
        if not isinstance(last, nn.Linear) or last.out_features != count or last.bias is None:
            raise UsageError(
                f"identity_init needs a localization network that ends in a linear layer with bias and {count} "
                f"outputs, not {last}; set identity_init=False and initialize it yourself"
            )
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(self._identity())

    def extra_repr(self) -> str:
        """The fields that are not submodules."""
        return (
            f"{type(self.transformation).__name__}, output_size={self.output_size}, mode={self.mode!r}, "
            f"padding_mode={self.padding_mode!r}, align_corners={self.align_corners}, "
            f"grid_align_corners={self.grid_align_corners}, order={self.order!r}, fused={self.fused}"
            + (f", rounding={self.rounding!r}" if self.mode == "nearest" else "")
        )

    def _checked(self, input_size: Sequence[int] | None, convention: str) -> tuple[int, ...] | None:
        if input_size is not None:
            return self.transformation.check_output_size(input_size, "input_size")
        if self.short:
            raise UsageError(f"the convention {convention} depends on the input's size; give input_size, e.g. (28, 28)")
        return None

    def _identity(self) -> Tensor:
        """The identity parameters [Q], float64, in the order of the network's outputs."""
        identity, rank = self.transformation.identity(), self.transformation.rank
        if self.order == "yx" and isinstance(self.transformation, GeneralQuotient):
            return self.transformation.reversed_rows(identity)
        if self.order == "xy" or self.transformation.kind != "basis":
            return identity
        if isinstance(self.transformation, TensorProduct):  # axis-major; other control points are point-major
            return identity.reshape(rank, -1).flip(0).reshape(-1)
        return identity.reshape(-1, rank).flip(1).reshape(-1)

    def _constants(self) -> dict[str, Tensor]:
        if isinstance(self.transformation, TensorProduct):
            return self._lattice_constants(self.transformation)
        kind, shape = self.transformation.kind, self.transformation.theta_shape
        # the transformation does not know the order: for yx, its first axis is y
        axes = self.output_size if self.order == "xy" else self.output_size[::-1]
        matrix, offset = self.transformation.affine_map(axes, self.grid_align_corners)
        basis = self.transformation.basis(self.output_size, self.grid_align_corners)
        if self.order == "yx" and isinstance(self.transformation, GeneralQuotient):
            matrix = self.transformation.reversed_rows(matrix)
        elif self.order == "yx":
            matrix = reorder_axes(matrix, kind, shape)
            offset = offset if kind == "basis" else reorder_axes(offset, kind, shape)  # control points are (x, y)
        if self.short:
            # After a division by a clamped denominator, only what is added then can move the grid.
            moved = self._division()[1] is None
            matrix, offset = shrink(matrix, offset, kind, shape, self._factors(), moved)
        return {"basis": basis, "parameter_matrix": matrix, "parameter_offset": offset}

    def _lattice_constants(self, family: TensorProduct) -> dict[str, Tensor]:
        scale = self._factors()[:, None]
        constants = {
            "parameter_offset": scale * family.offset() + (scale - 1) * family.ones(),
            "parameter_scale": scale,
        }
        matrices = list(family.axis_matrices(self.output_size, self.grid_align_corners))
        matrices[-1] = matrices[-1].T.contiguous().T  # the kernel reads the x axis' matrix transposed
        return constants | {f"axis_matrix_{axis}": matrix for axis, matrix in enumerate(matrices)}

    def _factors(self) -> Tensor:
        """How much shorter than the input each axis of the grid is, [D] float64, x first; ones for most conventions."""
        if not self.short or self.input_size is None:
            return torch.ones(self.transformation.rank, dtype=torch.float64)
        last = torch.tensor([size - 1 for size in reversed(self.input_size)], dtype=torch.float64)
        return torch.where(last > 0, (last - self.short) / last.clamp(min=1), 1.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Called by .to(), .double(), .half(), .cuda() and .to_empty(). Casting a rounded constant does not restore its
        # precision and to_empty() leaves it uninitialized, so the constants are recomputed, in float32 at least.
        before = self.parameter_offset.dtype, self.parameter_offset.device
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.parameter_offset
        if (after.dtype, after.device) != before:
            dtype = torch.promote_types(after.dtype, torch.float32)
            for name, constant in self._constants().items():
                self._buffers[name] = constant.to(device=after.device, dtype=dtype)
        return result


def _respell_keys(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Accept checkpoints of earlier versions, whose keys are spelled ``localisation``."""
    for key in [key for key in state if key.startswith(f"{prefix}localisation.")]:
        state[prefix + respelled(key[len(prefix) :])] = state.pop(key)
