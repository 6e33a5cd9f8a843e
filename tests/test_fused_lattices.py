"""Lattices as PyTorch operators: values, gradients, torch.compile, and shapes that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stn_infer import plugin
from stn_infer.errors import UsageError
from stn_infer.fused_lattices import lattice_grid, lattice_transformer, tensor_product_transformer
from stn_infer.layers import SpatialTransformer
from stn_infer.samplers import SamplerSpec
from stn_infer.transforms import CoarseLattice, CubicBSpline, TensorProduct
from stn_infer.transforms.grid import sampled, tensor_product_grid

needs_library = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)
FAMILIES = [(CubicBSpline((5, 6)), (11, 13)), (CoarseLattice((2, 3, 4)), (5, 6, 7))]


def product_case(family: TensorProduct, size: tuple[int, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    image = torch.randn(2, 3, *(6, 7, 8)[: family.rank])
    theta = family.identity().reshape(1, family.rank, -1) + 0.1 * torch.randn(2, family.rank, family.num_basis)
    return image, theta.float(), [matrix.float() for matrix in family.axis_matrices(size, True)]


def lattice_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    index = torch.randint(0, 9, (3, 20), dtype=torch.int32)
    return torch.randn(2, 3, 6, 7), torch.rand(2, 2, 9) - 0.5, index, torch.rand(3, 20)


@pytest.mark.parametrize(("family", "size"), FAMILIES)
def test_the_operator_is_its_composition(family: TensorProduct, size: tuple[int, ...]) -> None:
    image, theta, matrices = product_case(family, size)
    for spec in (SamplerSpec(), SamplerSpec("nearest", "border", True)):
        expected = sampled(image, tensor_product_grid(theta, matrices), spec)
        warped = tensor_product_transformer(image, theta, matrices, spec)
        torch.testing.assert_close(warped, expected, atol=1e-5, rtol=1e-5)
    last = image.contiguous(memory_format=torch.channels_last if family.rank == 2 else torch.channels_last_3d)
    warped = tensor_product_transformer(last, theta, matrices)
    torch.testing.assert_close(warped, tensor_product_transformer(image, theta, matrices), atol=1e-6, rtol=0)


def test_an_irregular_lattice_is_its_composition() -> None:
    image, theta, index, weight = lattice_case()
    expected = sampled(image, lattice_grid(theta, index, weight, (4, 5)), SamplerSpec())
    torch.testing.assert_close(lattice_transformer(image, theta, index, weight, (4, 5)), expected)
    dense = torch.zeros(9, 20)
    for row, factors in zip(index.long(), weight, strict=True):
        dense[row, torch.arange(20)] += factors
    grid = (theta @ dense).transpose(1, 2).reshape(2, 4, 5, 2)
    torch.testing.assert_close(lattice_grid(theta, index, weight, (4, 5)), grid)


@needs_library
def test_gradients_are_those_of_the_composition() -> None:
    image, theta, matrices = product_case(*FAMILIES[0])
    _, points, index, weight = lattice_case()
    cases: list[tuple[list[Tensor], Any, Any]] = [
        (
            [image, theta, *matrices],
            lambda x, t, *m: tensor_product_transformer(x, t, m),
            lambda x, t, *m: sampled(x, tensor_product_grid(t, m), SamplerSpec()),
        ),
        (
            [image, points, weight],
            lambda x, t, w: lattice_transformer(x, t, index, w, (4, 5)),
            lambda x, t, w: sampled(x, lattice_grid(t, index, w, (4, 5)), SamplerSpec()),
        ),
    ]
    for tensors, ours, composed in cases:
        gradients = []
        for compute in (ours, composed):
            inputs = [tensor.clone().requires_grad_() for tensor in tensors]
            gradients.append(torch.autograd.grad(compute(*inputs).square().sum(), inputs))
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@needs_library
@pytest.mark.slow
def test_opcheck() -> None:
    image, theta, matrices = product_case(*FAMILIES[0])
    constants = (torch.ones(1, 1), matrices[0], matrices[1].T)
    torch.library.opcheck(
        torch.ops.stn.tensor_product_transformer, (image, theta, *constants, "bilinear", "zeros", False)
    )
    image, theta, index, weight = lattice_case()
    torch.library.opcheck(
        torch.ops.stn.lattice_transformer, (image, theta, index, weight, [4, 5], "bilinear", "zeros", False)
    )


@pytest.mark.parametrize(("family", "size"), FAMILIES)
def test_a_fused_layer_gives_the_same_images(family: TensorProduct, size: tuple[int, ...]) -> None:
    image, _, _ = product_case(family, size)
    parameters = family.identity()[None] + 0.05 * torch.randn(2, family.num_parameters)
    plain, fused = (SpatialTransformer(None, family, size, fused=fused) for fused in (False, True))
    torch.testing.assert_close(fused(image, parameters.float()), plain(image, parameters.float()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": torch.zeros(2, 2, 29)}, r"expected theta \[2, 2, 30\] for the lattice"),
        ({"theta": torch.zeros(1, 2, 30)}, r"expected theta \[2, 2, 30\]"),
        ({"matrices": [torch.zeros(3, 5)]}, "two or three matrices"),
        ({"matrices": [torch.zeros(5, 2), torch.zeros(3, 5), torch.zeros(4, 3)]}, "two matrices for an image"),
        ({"sampler": SamplerSpec("cubic")}, "mode is one of"),  # type: ignore[arg-type]
        ({"input": torch.zeros(2, 3, 0, 4)}, "at least one pixel"),
        ({"input": torch.zeros(2, 3, 4)}, "expected an input"),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict[str, Any], message: str) -> None:
    image, theta, matrices = product_case(*FAMILIES[0])
    arguments = {"input": image, "theta": theta, "matrices": matrices} | change
    with pytest.raises(UsageError, match=message):
        tensor_product_transformer(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.zeros(3, 20, dtype=torch.int64)}, "index to be int32"),
        ({"index": torch.zeros(2, 20, dtype=torch.int32)}, "index and weight"),
        ({"output_size": (4, 6)}, r"\[J, 24\]"),
        ({"index": torch.zeros(65, 20, dtype=torch.int32), "weight": torch.zeros(65, 20)}, "1 to 64"),
        ({"output_size": (2, 2, 5)}, "an input of 5 axes"),
        ({"output_size": (-2, -10)}, "an output size of at least 0"),
        ({"theta": torch.zeros(2, 3, 9)}, r"theta \[2, 2, 9\]"),
    ],
)
def test_a_lattice_that_does_not_fit_is_one_line(change: dict[str, Any], message: str) -> None:
    image, theta, index, weight = lattice_case()
    arguments = {"input": image, "theta": theta, "index": index, "weight": weight, "output_size": (4, 5)} | change
    with pytest.raises(UsageError, match=message):
        lattice_transformer(**arguments)
