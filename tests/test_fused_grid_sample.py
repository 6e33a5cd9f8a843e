"""``fused.grid_sample`` as a drop-in for PyTorch's: results, defaults, errors, gradients, compilation and export."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from stn_infer import plugin
from stn_infer.errors import UsageError
from stn_infer.fused import grid_sample, spatial_transformer
from stn_infer.torch_export.plain import export_plain

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)

PAIRS = list(product((torch.float32, torch.float16, torch.bfloat16), repeat=2))
TOLERANCES = {torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def case(rank: int = 2, dtype: torch.dtype = torch.float32, grid: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """An image and a grid that reaches beyond it, kept away from ties."""
    generator = torch.Generator().manual_seed(rank)
    size, output_size = (7, 9, 5)[:rank], (6, 8, 4)[:rank]
    image = torch.randn(2, 3, *size, generator=generator)
    points = torch.rand((2, *output_size, rank), generator=generator) * 2.6 - 1.3
    return image.to(dtype), points.to(grid)


@pytest.mark.parametrize("dtypes", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}".replace("torch.", ""))
@pytest.mark.parametrize("rank", [2, 3])
def test_equals_pytorchs(rank: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """In float32 at the stored values, because PyTorch requires one type."""
    image, grid = case(rank, *dtypes)
    modes = ("bilinear", "bicubic", "nearest")[: 2 if rank == 2 else 1]
    for mode, padding_mode, align_corners in product(modes, ("zeros", "border", "reflection"), (False, True)):
        warped = grid_sample(image, grid, mode, padding_mode, align_corners)
        expected = F.grid_sample(image.float(), grid.float(), mode, padding_mode, align_corners)
        assert warped.dtype == image.dtype
        torch.testing.assert_close(warped.float(), expected, atol=TOLERANCES[image.dtype], rtol=1e-5)


def test_it_is_the_kernel_that_runs() -> None:
    with torch.profiler.profile() as profile:
        grid_sample(*case(), align_corners=False)
    names = {event.name for event in profile.events()}
    assert "stn::grid_sample" in names and "aten::grid_sampler_2d" not in names


def test_channels_last_and_views_keep_their_layout_and_values() -> None:
    image, grid = case()
    expected = F.grid_sample(image, grid, align_corners=False)
    last = image.contiguous(memory_format=torch.channels_last)
    warped = grid_sample(last, grid.flip(0).flip(0).transpose(1, 2).contiguous().transpose(1, 2), align_corners=False)
    assert warped.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(warped, expected, atol=1e-5, rtol=0)
    wide = torch.cat([image, image], 3)[..., : image.shape[3]]
    torch.testing.assert_close(grid_sample(wide, grid, align_corners=False), expected, atol=1e-5, rtol=0)


def test_the_default_is_pytorchs_with_a_warning() -> None:
    image, grid = case()
    with pytest.warns(UserWarning, match="align_corners"):
        warped = grid_sample(image, grid)
    torch.testing.assert_close(warped, F.grid_sample(image, grid, align_corners=False), atol=1e-5, rtol=0)


def test_types_without_a_kernel_go_to_pytorchs() -> None:
    image, grid = (tensor.double() for tensor in case())
    assert torch.equal(grid_sample(image, grid, align_corners=True), F.grid_sample(image, grid, align_corners=True))
    mixed = grid_sample(image, grid.float(), align_corners=True)
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, F.grid_sample(image, grid.float().double(), align_corners=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_treats_it_as_pytorchs(dtype: torch.dtype) -> None:
    image, grid = case(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        warped = grid_sample(image, grid, align_corners=False)
    assert warped.dtype == torch.float32
    torch.testing.assert_close(warped, F.grid_sample(image.float(), grid, align_corners=False), atol=1e-5, rtol=0)


IMAGE, GRID = case()
WRONG: dict[str, tuple[Any, ...]] = {
    "mode": (IMAGE, GRID, "lanczos", "zeros"),
    "padding mode": (IMAGE, GRID, "bilinear", "wrap"),
    "batch": (IMAGE, GRID[:1], "bilinear", "zeros"),
    "coordinates": (IMAGE, torch.zeros(2, 6, 8, 3), "bilinear", "zeros"),
    "rank": (IMAGE, torch.zeros(2, 6, 8, 4, 3), "bilinear", "zeros"),
    "no batch": (IMAGE[0], GRID, "bilinear", "zeros"),
    "bicubic volume": (*case(3), "bicubic", "zeros"),
    "empty image": (IMAGE[..., :0], GRID, "bilinear", "zeros"),
    "integers": (IMAGE.long(), GRID, "bilinear", "zeros"),
    "device": (IMAGE, GRID.to("meta"), "bilinear", "zeros"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_are_pytorchs(what: str) -> None:
    """Here; the operator, which has no other caller to please, raises the package's own with one line."""
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)) as expected:
        F.grid_sample(*WRONG[what], align_corners=False)
    with pytest.raises(type(expected.value)) as raised:
        grid_sample(*WRONG[what], align_corners=False)
    assert str(raised.value).splitlines()[0] == str(expected.value).splitlines()[0]
    with pytest.raises(UsageError) as own:
        torch.ops.stn.grid_sample(*WRONG[what], False)
    assert len(str(own.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["basis", "projective", "affine"])
@pytest.mark.parametrize("size", [(64, 64), (4096, 4096), (3, 3)])
def test_a_basis_of_another_length_is_an_error(kind: str, size: tuple[int, int]) -> None:
    """It was read out of bounds."""
    theta = torch.zeros(1, 3 if kind == "projective" else 2, 3)
    for call in (spatial_transformer, None):
        with pytest.raises(UsageError, match=rf"expected a basis with {size[0] * size[1]} columns, .* \(3, 10\)$"):
            if call is not None:
                call(torch.zeros(1, 1, 4, 4), theta, torch.zeros(3, 10), kind, size)
            else:
                arguments = (kind, list(size), "bilinear", "zeros", False)
                torch.ops.stn.spatial_transformer(torch.zeros(1, 1, 4, 4), theta, torch.zeros(3, 10), *arguments)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("half", [False, True])
def test_gradients_are_pytorchs(rank: int, half: bool) -> None:
    image, grid = case(rank, torch.float16 if half else torch.float32)
    found = gradients(grid_sample, image, grid)
    expected = gradients(F.grid_sample, image.float(), grid)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, atol=2e-2 if half else 1e-4, rtol=1e-2 if half else 1e-5)
    assert [one.dtype for one in found] == [image.dtype, grid.dtype]
    only_grid = grid.clone().requires_grad_()
    grid_sample(image, only_grid, align_corners=True).float().sum().backward()
    assert only_grid.grad is not None


def gradients(function: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    weights = torch.linspace(-1, 1, function(*leaves, align_corners=True).numel())
    warped = function(*leaves, align_corners=True)
    (warped.float() * weights.view_as(warped)).sum().backward()
    return tuple(leaf.grad for leaf in leaves)


def test_compiled_without_a_graph_break_with_dynamic_shapes_and_gradients() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda image, grid: grid_sample(image, grid) * 2, backend=counter, fullgraph=True, dynamic=True
    )
    for rows in (6, 5):
        image, grid = case()
        grid = grid[:, :rows].clone().requires_grad_()
        warped = function(image, grid)
        expected = 2 * F.grid_sample(image, grid, align_corners=False)
        torch.testing.assert_close(warped, expected, atol=1e-5, rtol=0)
        (found,) = torch.autograd.grad(warped.sum(), grid)
        torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), grid)[0], atol=1e-4, rtol=1e-5)
    assert counter.frame_count == 1


def test_the_operator_passes_pytorchs_own_checks() -> None:
    image, grid = case()
    tensors = (image.requires_grad_(), grid.requires_grad_())
    torch.library.opcheck(torch.ops.stn.grid_sample.default, (*tensors, "bilinear", "border", True))


class Flow(nn.Module):
    """A sampler at a bent grid."""

    def forward(self, image: Tensor, grid: Tensor) -> Tensor:
        return grid_sample(image, grid.sin(), "bilinear", "border", align_corners=False)


def test_a_model_with_it_exports_as_gridsample() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = export_plain(Flow().eval(), [(3, 7, 9), (6, 8, 2)])
    assert [node.op_type for node in model.graph.node] == ["Sin", "GridSample"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda() -> None:
    for rank, dtypes in product((2, 3), PAIRS):
        image, grid = case(rank, *dtypes)
        for mode, padding_mode in product(("bilinear", "bicubic")[: 4 - rank], ("zeros", "border", "reflection")):
            expected = F.grid_sample(image.float(), grid.float(), mode, padding_mode, False)
            warped = grid_sample(image.cuda(), grid.cuda(), mode, padding_mode, False).cpu()
            torch.testing.assert_close(warped.float(), expected, atol=TOLERANCES[image.dtype], rtol=1e-3)
    image, grid = case()
    for found, expected in zip(
        gradients(grid_sample, image.cuda(), grid.cuda()), gradients(F.grid_sample, image, grid), strict=True
    ):
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    theta, basis = torch.zeros(2, 2, 3), torch.zeros(3, 16).cuda()
    with pytest.raises(UsageError, match="expected theta on cuda:0, the device of input, got cpu"):
        spatial_transformer(image.cuda(), theta, basis, "basis", (4, 4))
