"""The fused PyTorch operator on projective grids over any basis, images and volumes, with a bounded denominator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stn_infer import fused, plugin
from stn_infer.errors import UsageError
from stn_infer.fused import composed, spatial_transformer
from stn_infer.reference.calls import recorder
from stn_infer.transforms.grid import sampling_grid

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)

OUTPUT_SIZE = (4, 6, 3)
OFFSET = (-0.3, 0.2, 0.45)


def case(rank: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image, theta [2, D + 1, K] whose w runs from -1 to 1, and a basis [K, P]."""
    generator = torch.Generator().manual_seed(columns)
    points = torch.Size(OUTPUT_SIZE[:rank]).numel()
    theta = 2 * torch.rand(2, rank + 1, columns, generator=generator) - 1
    theta[:, rank] = torch.eye(columns)[0]
    image = torch.randn(2, 3, *(5, 7, 6)[:rank], generator=generator)
    return image, theta, 2 * torch.rand(columns, points, generator=generator) - 1


@pytest.mark.parametrize(("rank", "columns"), [(2, 3), (2, 5), (3, 4), (3, 6)])
def test_values_and_gradients_equal_the_compositions(rank: int, columns: int) -> None:
    results = []
    for function in (spatial_transformer, composed):
        image, theta, basis = case(rank, columns)
        image.requires_grad_()
        theta.requires_grad_()
        warped = function(image, theta, basis, "projective", OUTPUT_SIZE[:rank], w_min=0.5, offset=OFFSET[:rank])
        warped.square().sum().backward()
        results.append((warped.detach(), image.grad, theta.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    unbounded = spatial_transformer(*case(rank, columns), "projective", OUTPUT_SIZE[:rank])
    assert not torch.allclose(unbounded, results[0][0])


@pytest.mark.parametrize(("w_min", "offset"), [(None, None), (0.5, None), (0.5, [0.1, 0.2, 0.3])])
def test_opcheck(w_min: float | None, offset: list[float] | None) -> None:
    image, theta, basis = case(3, 5)
    arguments = (image.requires_grad_(), theta, basis, "projective", list(OUTPUT_SIZE), "bilinear", "zeros", False)
    torch.library.opcheck(torch.ops.stn.spatial_transformer.default, (*arguments, w_min, offset))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    image, theta, basis = case(3, 5)
    expected = spatial_transformer(image, theta, basis, "projective", OUTPUT_SIZE, w_min=0.5, offset=OFFSET)
    monkeypatch.setattr(fused, "usable", lambda image: False)
    torch.testing.assert_close(
        spatial_transformer(image, theta, basis, "projective", OUTPUT_SIZE, w_min=0.5, offset=OFFSET),
        expected,
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("kernel", [True, False])
def test_what_does_not_fit_is_one_line(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    image, theta, basis = case(3, 5)
    if not kernel:
        monkeypatch.setattr(fused, "usable", lambda image: False)
    for arguments, words in (
        ((image, theta[:, :3], basis, "projective", OUTPUT_SIZE), "expected theta with 4 rows"),
        ((image, theta, basis[:4], "projective", OUTPUT_SIZE), "expected a basis with 5 rows"),
        ((image, theta, basis[:, :9], "projective", OUTPUT_SIZE), "expected a basis with 72 columns"),
        ((image, theta, basis[:, :71], "projective", OUTPUT_SIZE), "expected a basis with 72 columns"),
        ((image, theta[..., :4], basis, "projective", OUTPUT_SIZE), "expected a basis with 4 rows"),
        ((image, theta[:1], basis, "projective", OUTPUT_SIZE), "expected theta with 4 rows and batch size 2"),
        ((image, theta[0], basis, "projective", OUTPUT_SIZE), "expected theta with 4 rows"),
        ((image, theta, basis[0], "projective", OUTPUT_SIZE), "expected a basis with 5 rows"),
        ((image, theta, basis, "projective", OUTPUT_SIZE[:2]), "expected an input of 4 axes"),
        ((image[:, :, :0], theta, basis, "projective", OUTPUT_SIZE), "expected an input with at least one pixel"),
        ((image, theta, basis, "projective", (-4, -6, 3)), "expected an output size of at least 0 along each axis"),
        ((image, theta[..., :0], basis[:0], "projective", OUTPUT_SIZE), "at least one row"),
        ((image, theta.int(), basis, "projective", OUTPUT_SIZE), "expected theta to be floating-point"),
        ((image, theta.to("meta"), basis, "projective", OUTPUT_SIZE), "expected theta on cpu"),
    ):
        with pytest.raises(UsageError, match=words):
            spatial_transformer(*arguments, w_min=0.5)
    for kind, w_min in (("basis", 0.5), ("projective", float("nan"))):
        rows = theta if kind == "projective" else theta[:, :3]
        with pytest.raises(UsageError, match="expected w_min to be a number, for kind projective only"):
            spatial_transformer(image, rows, basis, kind, OUTPUT_SIZE, w_min=w_min)
    for kind, offset in (("basis", OFFSET), ("projective", OFFSET[:2]), ("projective", (0.0, 0.0, float("inf")))):
        rows = theta if kind == "projective" else theta[:, :3]
        with pytest.raises(UsageError, match="expected an offset of 3 numbers, for kind projective only"):
            spatial_transformer(image, rows, basis, kind, OUTPUT_SIZE, offset=offset)


@pytest.mark.parametrize("kernel", [True, False])
def test_no_points_and_no_samples(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(fused, "usable", lambda image: False)
    image, theta, basis = case(3, 5)
    assert spatial_transformer(image, theta, basis[:, :0], "projective", (4, 0, 3), w_min=0.5).shape == (2, 3, 4, 0, 3)
    assert spatial_transformer(image[:0], theta[:0], basis, "projective", OUTPUT_SIZE).shape == (0, 3, *OUTPUT_SIZE)


@pytest.mark.parametrize(("w_min", "offset"), [(None, None), (0.5, None), (None, OFFSET), (0.5, OFFSET)])
def test_records_have_the_bound_and_the_offset(w_min: float | None, offset: tuple[float, ...] | None) -> None:
    image, theta, basis = case(3, 5)
    with recorder() as record:
        spatial_transformer(image, theta, basis, "projective", OUTPUT_SIZE, w_min=w_min, offset=offset)
    expected = sampling_grid(theta.double(), basis.double(), "projective", OUTPUT_SIZE, w_min, offset)
    torch.testing.assert_close(torch.from_numpy(record.calls[0].grid), expected, atol=1e-9, rtol=1e-9)
