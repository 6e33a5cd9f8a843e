"""The registry's networks: outputs, sizes, and rejected options."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.models import NETWORKS, create
from stn_infer.transforms import (
    Affine,
    Attention,
    CoarseLattice,
    CubicBSpline,
    PiecewiseAffine,
    Projective,
    Rigid,
    Similarity,
    ThinPlateSpline,
    Transformation,
    Translation,
)

FAMILIES = {
    "affine": Affine(),
    "projective": Projective(),
    "tps": ThinPlateSpline(),
    "piecewise": PiecewiseAffine(),
    "translation": Translation(),
    "attention": Attention(),
    "rigid": Rigid(),
    "similarity": Similarity(),
    "lattice": CoarseLattice(),
    "bspline": CubicBSpline(),
}

NAMES = [
    "fcn",
    "cnn",
    *(f"st-{base}-{family}" for base in ("fcn", "cnn") for family in FAMILIES),
    "tutorial-cnn",
    "tutorial-stn",
]
EXPERIMENTS = [
    "svhn-cnn",
    "svhn-st-single",
    "svhn-st-multi",
    "birds-2st",
    "birds-4st",
    "birds-cnn",
    "mnist-addition",
    "mnist-addition-projective",
    "mnist-addition-tps",
    "colocalization",
    "volume-cnn",
    "st-volume",
    "svhn-cnn-small",
    "svhn-st-single-small",
    "svhn-st-multi-small",
    "birds-2st-small",
    "birds-cnn-small",
    "volume-cnn-small",
    "st-volume-small",
]


def transformers(network: nn.Module) -> list[SpatialTransformer]:
    return [module for module in network.modules() if isinstance(module, SpatialTransformer)]


def test_the_names() -> None:
    assert list(NETWORKS) == [*NAMES[:-2], *EXPERIMENTS, *NAMES[-2:]]
    assert all(network.description for network in NETWORKS.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_logits_of_any_batch(name: str, batch: int) -> None:
    if name == "tutorial-stn" and batch == 0:
        return  # torch's affine_grid rejects an empty batch
    network = create(name).eval()
    assert network(torch.rand(batch, *NETWORKS[name].input_shape)).shape == (batch, 10)
    assert create(name, classes=7).eval()(torch.rand(batch, *NETWORKS[name].input_shape)).shape == (batch, 7)


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = create(name)
    network(torch.rand(4, *NETWORKS[name].input_shape)).square().sum().backward()
    without = [key for key, value in network.named_parameters() if value.grad is None]
    assert without == []
    heads = [transformer.localization[-1] for transformer in transformers(network)]  # type: ignore[index]
    heads = [network.head] if name == "tutorial-stn" else heads
    assert len(heads) == name.startswith(("st-", "tutorial-stn"))
    assert all(bool(head.bias.grad.abs().sum() > 0) for head in heads)


@pytest.mark.parametrize("base", ["fcn", "cnn"])
@pytest.mark.parametrize(("family", "transformation"), FAMILIES.items())
def test_a_transformer_starts_at_the_identity(base: str, family: str, transformation: Transformation) -> None:
    network = create(f"st-{base}-{family}")
    (transformer,) = transformers(network)
    assert transformer.transformation == transformation
    images = torch.rand(2, 1, 28, 28)
    classifier = network.get_submodule("classifier")
    torch.testing.assert_close(network(images), classifier(images), atol=1e-4, rtol=0)


def test_the_tutorial_network_supports_the_convention_of_old_checkpoints() -> None:
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    old = create("tutorial-stn", align_corners=True).eval()
    new = create("tutorial-stn").eval()
    with torch.no_grad():
        old.head.bias.copy_(torch.tensor([0.8, 0.1, 0.0, -0.1, 0.9, 0.1]))
        new.load_state_dict(old.state_dict())
        theta = old.head.bias.reshape(1, 2, 3).expand(2, -1, -1)
        grid = torch.nn.functional.affine_grid(theta, [2, 1, 28, 28], align_corners=True)
        warped = torch.nn.functional.grid_sample(images, grid, align_corners=True)
        torch.testing.assert_close(old(images), old.classifier(warped))
        assert not torch.allclose(new(images), old(images), atol=1e-3)


def test_the_tutorial_network_is_plain_torch_and_starts_as_its_classifier() -> None:
    network = create("tutorial-stn").eval()
    assert not any(type(module).__module__.startswith("stn_infer.layers") for module in network.modules())
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(network(images), network.get_submodule("classifier")(images), atol=1e-5, rtol=0)


def test_sizes_follow_the_paper() -> None:
    convolutions = [module for module in create("cnn").modules() if isinstance(module, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size) for c in convolutions] == [(32, (9, 9)), (64, (7, 7))]
    localization = transformers(create("st-cnn-affine"))[0].localization
    assert localization is not None
    convolutions = [module for module in localization.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size) for c in convolutions] == [(20, (5, 5)), (20, (5, 5))]
    linear = [m.out_features for m in transformers(create("st-fcn-affine"))[0].modules() if isinstance(m, nn.Linear)]
    assert linear == [32, 32, 6]


def test_options_reach_the_network_and_its_transformation() -> None:
    network = create(
        "st-cnn-tps", input_shape=(3, 42, 36), output_size=(30, 28), points=[2, 5], offsets=True, padding_mode="border"
    )
    (transformer,) = transformers(network)
    assert transformer.transformation == ThinPlateSpline((2, 5), offsets=True)
    assert transformer.output_size == (30, 28)
    assert transformer.padding_mode == "border"
    assert network(torch.rand(2, 3, 42, 36)).shape == (2, 10)
    (transformer,) = transformers(create("st-fcn-attention", scale=0.5))
    assert transformer.transformation == Attention(scale=0.5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("st-cnn-afine", {}, "did you mean 'st-cnn-affine'"),
        ("resnet50", {}, "no such network: 'resnet50'"),
        ("st-cnn-affine", {"points": (4, 4)}, "no option 'points'; its options: align_corners, classes"),
        ("fcn", {"filters": 3}, "no option 'filters'; its options: classes, hidden, input_shape"),
        ("cnn", {"input_shape": (1, 20, 28)}, "at least 24 x 24 pixels, not 20 x 28"),
        ("st-cnn-affine", {"input_shape": (1, 24, 24)}, "at least 28 x 28 pixels, not 24 x 24"),
        ("st-cnn-affine", {"output_size": (8, 8)}, "at least 24 x 24"),
        ("st-cnn-tps", {"points": (1, 4)}, "at least 2 rows"),
        ("st-cnn-affine", {"input_shape": (28, 28)}, "cannot be built with input_shape="),
        ("fcn", {"hidden": "many"}, "cannot be built with hidden='many'"),
        ("fcn", {"hidden": -4}, "cannot be built with hidden=-4"),
        ("st-fcn-attention", {"scale": "half"}, "cannot be built with scale='half'"),
    ],
)
def test_build_errors_are_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        create(name, **options)
    assert "\n" not in str(caught.value)


def test_the_registry_is_read_without_torch() -> None:
    code = "import sys, stn_infer.models, stn_infer.models.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
