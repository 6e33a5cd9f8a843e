"""The fused PyTorch operator against the composition of standard operators, eager and compiled, and its gradient."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from stn_infer import plugin
from stn_infer.errors import UsageError
from stn_infer.fused import composed, spatial_transformer, usable
from stn_infer.layers import SpatialTransformer
from stn_infer.samplers import SamplerSpec
from stn_infer.transforms import Affine, Attention, PiecewiseAffine, Projective, ThinPlateSpline, Transformation

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)


def case(rank: int = 2, kind: str = "affine", batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """An image, theta and basis; sizes (7, 9, 5) to (6, 8, 4)."""
    generator = torch.Generator().manual_seed(rank)
    output_size = (6, 8, 4)[:rank]
    rows, columns = (3, 3) if kind == "projective" else (rank, rank + 1)
    image = torch.randn(batch, 3, *(7, 9, 5)[:rank], generator=generator).to(dtype)
    theta = torch.eye(rows, columns) + 0.2 * torch.randn(batch, rows, columns, generator=generator)
    axes = [(2 * torch.arange(size) + 1) / size - 1 for size in output_size]
    mesh = torch.meshgrid(*axes, indexing="ij")[::-1]
    return image, theta, torch.stack([*(axis.flatten() for axis in mesh), torch.ones(mesh[0].numel())])


@pytest.mark.parametrize(
    ("rank", "kind"), [(2, "affine"), (2, "basis"), (2, "projective"), (3, "affine"), (3, "basis")]
)
def test_equals_the_composition(rank: int, kind: str) -> None:
    image, theta, basis = case(rank, kind)
    modes = ("bilinear", "bicubic") if rank == 2 else ("bilinear",)
    for mode, padding_mode, align_corners in product(modes, ("zeros", "border", "reflection"), (False, True)):
        arguments = (image, theta, basis, kind, (6, 8, 4)[:rank], SamplerSpec(mode, padding_mode, align_corners))
        torch.testing.assert_close(spatial_transformer(*arguments), composed(*arguments), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("grid_align_corners", [False, True])
@pytest.mark.parametrize(
    "transformation",
    [Affine(), Affine(rank=3), Attention(), Projective(8), ThinPlateSpline((3, 3)), PiecewiseAffine((3, 3))],
    ids=lambda transformation: f"{type(transformation).__name__}-{transformation.rank}",
)
def test_equals_the_layer(transformation: Transformation, grid_align_corners: bool) -> None:
    """Every family's theta and basis, in both grid conventions."""
    size = (6, 8, 4)[: transformation.rank]
    layer = SpatialTransformer(None, transformation, size, grid_align_corners=grid_align_corners)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, *(7, 9, 5)[: transformation.rank], generator=generator)
    parameters = transformation.identity() + 0.1 * torch.randn(2, transformation.num_parameters, generator=generator)
    theta = layer.theta(parameters.float())
    answer = spatial_transformer(image, theta, layer.basis, transformation.kind, size)
    torch.testing.assert_close(answer, layer(image, parameters.float()), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_keep_float32_coordinates(dtype: torch.dtype) -> None:
    image, theta, basis = case(dtype=dtype)
    answer = spatial_transformer(image, theta, basis, "affine", (6, 8))
    assert answer.dtype == dtype
    exact = composed(image.double(), theta.double(), basis.double(), "affine", (6, 8))
    torch.testing.assert_close(answer.double(), exact, atol=2e-2 if dtype == torch.bfloat16 else 2e-3, rtol=1e-2)


def test_channels_last_stays_channels_last() -> None:
    image, theta, basis = case()
    expected = spatial_transformer(image, theta, basis, "affine", (6, 8))
    answer = spatial_transformer(image.to(memory_format=torch.channels_last), theta, basis, "affine", (6, 8))
    assert answer.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
    strided = torch.cat([image, image], dim=3)[..., : image.shape[3]]
    torch.testing.assert_close(spatial_transformer(strided, theta, basis, "affine", (6, 8)), expected)


@pytest.mark.parametrize("kind", ["affine", "projective"])
def test_opcheck(kind: str) -> None:
    """PyTorch's own checks of schema, fake kernel, autograd registration and tracing with dynamic shapes."""
    image, theta, basis = case(kind=kind)
    image.requires_grad_()
    theta.requires_grad_()
    opcheck(image, theta, basis, kind)


def opcheck(image: Tensor, theta: Tensor, basis: Tensor, kind: str = "affine") -> None:
    arguments = (image, theta, basis, kind, [6, 8], "bilinear", "border", False)
    torch.library.opcheck(torch.ops.stn.spatial_transformer.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_opcheck_of_half_types(dtype: torch.dtype) -> None:
    image, theta, basis = case(dtype=dtype)
    opcheck(image, theta.to(dtype), basis)


def test_opcheck_of_layouts() -> None:
    image, theta, basis = case()
    opcheck(image.to(memory_format=torch.channels_last), theta, basis)
    opcheck(image[:, :1].to(memory_format=torch.channels_last), theta, basis)  # one channel is both layouts
    opcheck(torch.cat([image, image], dim=3)[..., : image.shape[3]], theta.mT.contiguous().mT, basis.T.contiguous().T)


def test_gradient_equals_the_compositions() -> None:
    gradients = []
    for function in (spatial_transformer, composed):
        image, theta, basis = case()
        image.requires_grad_()
        theta.requires_grad_()
        function(image, theta, basis, "affine", (6, 8)).square().sum().backward()
        gradients.append((image.grad, theta.grad))
    for fused, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_compiled_with_a_changing_batch(backend: str) -> None:
    """The operator is part of one graph, which runs every batch size and keeps coordinates in float32."""
    torch.manual_seed(0)
    localization = nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 9, 6))
    layer = SpatialTransformer(localization, Affine(), (6, 8), identity_init=False, fused=True)
    plain = SpatialTransformer(localization, Affine(), (6, 8), identity_init=False)

    def warp(image: Tensor) -> Tensor:
        warped: Tensor = layer(image * 2) + 1
        return warped

    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(warp, fullgraph=True, backend=counter, dynamic=True)
    for batch in (4, 7):
        image = case(batch=batch)[0]
        torch.testing.assert_close(compiled(image), plain(image * 2) + 1, atol=3e-5, rtol=1e-5)
    assert counter.frame_count == 1
    assert any("spatial_transformer" in str(node.target) for node in counter.graphs[0].graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_round_coordinates(dtype: torch.dtype) -> None:
    """Under autocast, the localization network rounds its output; the transformer does not round coordinates."""
    layer = SpatialTransformer(None, Affine(), (6, 8), fused=True)
    image, theta, _ = case(dtype=dtype)
    expected = layer(image, theta.flatten(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = layer(image, theta.flatten(1))
    assert warped.dtype == dtype
    torch.testing.assert_close(warped, expected, atol=0, rtol=0)


def test_float64_goes_through_the_composition() -> None:
    image, theta, basis = (tensor.double() for tensor in case())
    assert not usable(image)
    assert spatial_transformer(image, theta, basis, "affine", (6, 8)).dtype == torch.float64


def test_an_empty_batch() -> None:
    image, theta, basis = case()
    assert spatial_transformer(image[:0], theta[:0], basis, "affine", (6, 8)).shape == (0, 3, 6, 8)


def test_the_composition_keeps_its_grid_in_float32_under_autocast() -> None:
    image, theta, basis = case()
    expected = composed(image, theta, basis, "affine", (6, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(composed(image, theta, basis, "affine", (6, 8)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": SamplerSpec("cubic")}, "mode is one of"),
        ({"sampler": SamplerSpec(padding_mode="none")}, "padding_mode is one of"),
        ({"kind": "grid"}, "kind is one of"),
        ({"output_size": (6, 8, 4)}, "expected an input of 5 axes"),
        ({"theta": torch.zeros(1, 2, 3)}, "expected theta with 2 rows and batch size 2"),
        ({"basis": torch.zeros(4, 48)}, "expected a basis with 3 rows"),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    image, theta, basis = case()
    arguments = {"input": image, "theta": theta, "basis": basis, "kind": "affine", "output_size": (6, 8)} | change
    with pytest.raises(UsageError, match=message):
        spatial_transformer(**arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_and_a_cuda_graph() -> None:
    for rank, kind, dtype in product((2, 3), ("affine", "basis"), (torch.float32, torch.float16, torch.bfloat16)):
        image, theta, basis = (tensor.cuda() for tensor in case(rank, kind, dtype=dtype))
        size = (6, 8, 4)[:rank]
        for mode in ("bilinear", "bicubic")[: 4 - rank]:
            expected = composed(image.float(), theta, basis, kind, size, SamplerSpec(mode))
            for memory_format in (torch.contiguous_format, (torch.channels_last, torch.channels_last_3d)[rank - 2]):
                laid_out = image.to(memory_format=memory_format)
                warped = spatial_transformer(laid_out, theta, basis, kind, size, SamplerSpec(mode))
                torch.testing.assert_close(warped.float(), expected, atol=3e-2, rtol=1e-2)
    image, theta, basis = (tensor.cuda() for tensor in case())
    spatial_transformer(image, theta, basis, "affine", (6, 8))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = spatial_transformer(image, theta, basis, "affine", (6, 8))
    image.mul_(3)
    graph.replay()
    expected = composed(image, theta, basis, "affine", (6, 8))
    torch.testing.assert_close(captured, expected, atol=1e-4, rtol=1e-4)


def test_the_layer_uses_the_operator_and_exports_without_it() -> None:
    from torch import nn

    from stn_infer.layers import SpatialTransformer
    from stn_infer.torch_export.plain import export_plain
    from stn_infer.transforms import Affine

    torch.manual_seed(0)
    localization = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 7, 6))
    layers = [SpatialTransformer(localization, Affine(), (5, 6), identity_init=False, fused=f) for f in (True, False)]
    images = torch.randn(4, 3, 9, 7)
    with torch.profiler.profile() as profile:
        fused = layers[0](images)
    names = {event.name for event in profile.events()}
    assert "stn::spatial_transformer" in names and "aten::grid_sampler_2d" not in names
    torch.testing.assert_close(fused, layers[1](images), atol=1e-5, rtol=0)
    torch.testing.assert_close(layers[0].double()(images.double()), layers[1].double()(images.double()))
    model = export_plain(layers[0].float().eval(), [(3, 9, 7)])
    assert "GridSample" in {node.op_type for node in model.graph.node}
    compiled = torch.compile(layers[0].float(), backend="aot_eager")(images)
    torch.testing.assert_close(compiled, fused)
