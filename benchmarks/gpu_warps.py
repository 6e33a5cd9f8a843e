"""Warps of every kind, mode and layout of the kernels, as cases of ``gpu.py``.

Each is computed by the fused kernel and by PyTorch's operators, and beside them as many bytes are copied as a warp must
move at least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_infer.fused import composed, grid_sample, spatial_transformer
from stn_infer.fused_lattices import lattice_grid, lattice_transformer, tensor_product_transformer
from stn_infer.fusion.basis import canonical_basis
from stn_infer.samplers import SamplerSpec
from stn_infer.transforms.grid import sampled, tensor_product_grid

_ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

Shape = tuple[int, ...]
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Warp:
    """One warp, with zeros padding.

    Attributes:
        shape: of the images [N, C, H, W] or volumes [N, C, D, H, W]; the output has the same size.
        dtype: of the images.
        kind: ``affine``, ``projective``, ``basis`` of ``rows`` rows, ``grid`` (a ready grid), ``tensor product`` (of
            ``rows`` points per axis) or ``lattice`` (``rows`` points in all, three per pixel).
        mode: of the sampler.
        channels_last: the images' memory format.
        rows: K; None: one more than axes.
        share: the least share of the copy's bandwidth to reach.
    """

    shape: Shape
    dtype: torch.dtype = torch.float32
    kind: str = "affine"
    mode: str = "bilinear"
    channels_last: bool = False
    rows: int | None = None
    share: float | None = None

    @property
    def name(self) -> str:
        """The shape, the type, and settings that differ from the defaults."""
        kinds = {
            "affine": "",
            "basis": f"basis of {self.rows} rows",
            "tensor product": f"tensor product of {self.rows} points",
            "lattice": f"lattice of {self.rows} points",
        }
        kind = kinds.get(self.kind, self.kind)
        unusual = (kind, "" if self.mode == "bilinear" else self.mode, "channels last" if self.channels_last else "")
        text = f"{'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')}"
        return ", ".join(filter(None, (text, *unusual)))

    @property
    def size(self) -> Shape:
        """The lengths of the images' axes."""
        return self.shape[2:]

    @property
    def targets(self) -> Mapping[str, float]:
        """A variant to the least ratio of its time on the device to the fused warp's."""
        return {"eager": 3.0, "compile": 1.5} | ({} if self.share is None else {"copy": self.share})

    @property
    def tolerance(self) -> float:
        """The error of rounding the result, plus that of float32 coordinates: 2^-20 of the longest side."""
        return _ROUNDING[self.dtype] + 2 * max(self.size) * 2.0**-21

    def tiny(self) -> Warp:
        """The same warp of a few small images."""
        n, c, *size = self.shape
        sides = (12, 17) if len(size) == 2 else (5, 6, 7)
        small = (min(n // 64 + 1, 16), min(c, 5), *map(min, size, sides))
        return replace(self, shape=small)


_PHOTOS: Shape = (256, 3, 224, 224)
_FEATURES: Shape = (256, 64, 28, 28)
_HALF = torch.float16
#: Those with a target for the copy's bandwidth first, so that a time limit loses the others.
WARPS = (
    Warp(_PHOTOS, share=0.8),
    Warp(_PHOTOS, _HALF, share=0.75),
    Warp(_FEATURES, channels_last=True, share=0.7),
    Warp(_PHOTOS, channels_last=True, share=0.6),
    Warp(_PHOTOS, kind="projective", share=0.6),
    Warp(_PHOTOS, mode="nearest", share=0.6),
    Warp(_PHOTOS, kind="basis", rows=19, share=0.5),
    Warp(_PHOTOS, kind="grid", share=0.7),
    Warp(_PHOTOS, _HALF, kind="grid"),
    Warp((1024, 1, 28, 28)),
    Warp(_FEATURES),
    Warp((64, 3, 224, 224)),
    Warp((1, 3, 224, 224)),
    Warp((1, 1, 28, 28)),
    Warp((8, 64, 28, 28), channels_last=True),
    Warp(_PHOTOS, torch.bfloat16),
    Warp(_FEATURES, _HALF),
    Warp(_FEATURES, _HALF, channels_last=True),
    Warp(_PHOTOS, _HALF, channels_last=True),
    Warp((64, 3, 224, 224), mode="bicubic"),
    Warp((64, 3, 256, 256), kind="tensor product", rows=19),
    Warp((64, 3, 256, 256), kind="lattice", rows=81),
    Warp(_PHOTOS, _HALF, kind="projective"),
    Warp(_PHOTOS, _HALF, kind="basis", rows=19),
    Warp(_FEATURES, kind="grid", channels_last=True),
    Warp((256, 512, 7, 7), channels_last=True),
    Warp((4, 2, 96, 96, 96)),
    Warp((65536, 1, 4, 4)),
    Warp((4096, 1, 1, 1000)),
)


@dataclass(frozen=True)
class Work:
    """The variants of one case, and the targets of one of them.

    Attributes:
        case: its name.
        calls: variants by name; ``copy`` is not verified.
        expected: the expected output in float64.
        tolerance: the limit on the largest absolute error.
        ours: the variant that the targets apply to.
        targets: another variant to the minimum speedup over it.
        on_device: whether speedups are of times on the device, or of latencies.
        bytes: the minimum number of bytes to move; 0 if it is not counted.
        nearest: whether a value may come from another pixel.
        kept: objects that must stay in memory during the measurement.
    """

    case: str
    calls: Mapping[str, Call]
    expected: Tensor
    tolerance: float
    ours: str
    targets: Mapping[str, float]
    on_device: bool
    bytes: int = 0
    nearest: bool = False
    kept: tuple[Tensor, ...] = field(default=(), repr=False)

    def error_of(self, output: Tensor) -> float:
        """The error as in :class:`Row`."""
        off = (output.double() - self.expected).abs()
        return float((off > self.tolerance).double().mean() if self.nearest else off.max())


def images(case: Warp, device: torch.device) -> Tensor:
    """Random images of the case, the same in every run on the same kind of device."""
    generator = torch.Generator(device).manual_seed(0)
    image = torch.rand(case.shape, generator=generator, device=device).to(case.dtype)
    return image.to(memory_format=torch.channels_last) if case.channels_last else image


def inputs(case: Warp, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random images, thetas near the identity [N, D or D + 1, K], and the basis [K, P], of an affine or other basis."""
    generator, axes = torch.Generator().manual_seed(0), len(case.size)
    rows, sides = case.rows or axes + 1, axes + (case.kind == "projective")
    theta = torch.eye(sides, rows) + 0.15 * torch.randn(case.shape[0], sides, rows, generator=generator)
    if case.kind == "projective":
        theta[:, 2] = torch.tensor([0.05, -0.05, 1.2])
    basis = torch.from_numpy(canonical_basis(case.size)).float()
    # smooth, as a spline's are: neighboring pixels read neighboring pixels
    waves = [0.3 * torch.cos(torch.pi * (k // 4 * basis[0] + k % 4 * basis[1])) for k in range(1, rows - axes)]
    return images(case, device), theta.to(device), torch.stack([*basis, *waves]).to(device)


def _points(case: Warp, rows: int, columns: int) -> Tensor:
    """Control points of a regular lattice, moved by a few hundredths [N, 2, rows * columns]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    regular = torch.stack([x.flatten(), y.flatten()])
    return regular + 0.02 * torch.randn(case.shape[0], *regular.shape, generator=generator)


def _interpolation(length: int, points: int) -> Tensor:
    """The matrix [length, points] of linear interpolation between evenly spaced points."""
    where = torch.linspace(0, points - 1, length)[:, None] - torch.arange(points)
    return (1 - where.abs()).clamp(min=0)


def variants(case: Warp, device: torch.device) -> tuple[Call, Call, Call, Tensor, int]:
    """The fused warp, PyTorch's operators, the same in float64, the images, and the bytes of a ready grid."""
    sampler = SamplerSpec(case.mode)
    if case.kind in ("affine", "basis", "projective"):
        image, theta, basis = inputs(case, device)
        kind, size = case.kind, case.size

        def eager() -> Tensor:
            if kind != "affine" or case.dtype != torch.float32 or case.rows is not None:
                return composed(image, theta, basis, kind, size, sampler)
            grid = F.affine_grid(theta, list(case.shape), align_corners=False)
            return F.grid_sample(image, grid, case.mode, align_corners=False)

        fused = partial(spatial_transformer, image, theta, basis, kind, size, sampler)
        exact = partial(composed, image.double(), theta.double(), basis.double(), kind, size, sampler)
        return fused, eager, exact, image, 0
    image = images(case, device)
    if case.kind == "grid":
        _, theta, basis = inputs(replace(case, shape=(case.shape[0], 1, *case.size), kind="affine"), device)
        grid = torch.matmul(theta, basis).transpose(1, 2).reshape(case.shape[0], *case.size, -1).contiguous()
        return (
            partial(grid_sample, image, grid, case.mode, align_corners=False),
            partial(sampled, image, grid, sampler),
            partial(sampled, image.double(), grid.double(), sampler),
            image,
            grid.numel() * grid.element_size(),
        )
    assert case.rows is not None
    if case.kind == "tensor product":
        points = _points(case, case.rows, case.rows).to(device)
        matrices = [_interpolation(length, case.rows).to(device) for length in case.size]
        wide = [matrix.double() for matrix in matrices]
        return (
            partial(tensor_product_transformer, image, points, matrices, sampler),
            lambda: sampled(image, tensor_product_grid(points, matrices), sampler),
            lambda: sampled(image.double(), tensor_product_grid(points.double(), wide), sampler),
            image,
            0,
        )
    side = round(case.rows**0.5)
    points = _points(case, side, side).to(device)
    index, weight = (tensor.to(device) for tensor in _triangles(case.size, side))
    return (
        partial(lattice_transformer, image, points, index, weight, case.size, sampler),
        lambda: sampled(image, lattice_grid(points, index, weight, case.size), sampler),
        lambda: sampled(image.double(), lattice_grid(points.double(), index, weight.double(), case.size), sampler),
        image,
        0,
    )


def _triangles(size: Shape, side: int) -> tuple[Tensor, Tensor]:
    """Each pixel's triangle of a mesh of ``side`` points per axis: index [3, P] int32 and weight [3, P]."""
    y, x = (torch.linspace(0, side - 1, length) for length in size)
    y, x = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))
    row, column = (axis.floor().clamp(max=side - 2) for axis in (y, x))
    down, right = y - row, x - column
    corner, lower = (row * side + column).int(), down > right
    middle = torch.where(lower, corner + side, corner + 1)
    index = torch.stack([corner, middle, corner + side + 1])
    less, more = torch.minimum(down, right), torch.maximum(down, right)
    return index, torch.stack([1 - more, more - less, less])


def warp(case: Warp, device: torch.device, compiled: bool = True) -> Work:
    """One warp: fused, with PyTorch's operators, compiled if ``compiled``, and a copy of as many bytes.

    The minimum that a warp must move: each image is read and written once, and a ready grid is read.
    """
    fused, eager, exact, image, extra = variants(case, device)
    moved = 2 * image.numel() * image.element_size() + extra
    source = torch.randint(256, (moved // 2,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"fused": fused, "eager": eager, "copy": lambda: target.copy_(source)}
    if compiled:
        calls["compile"] = torch.compile(eager, dynamic=False)
    nearest = case.mode == "nearest"
    return Work(case.name, calls, exact(), case.tolerance, "fused", case.targets, True, moved, nearest=nearest)
