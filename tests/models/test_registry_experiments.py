"""The paper's other experiments: layers as in the paper at full width, outputs, starts and rejected sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.models import create
from stn_infer.models.birds import PartNet
from stn_infer.models.colocalization import SoftArgmax
from stn_infer.models.inception import MODULES, inception
from stn_infer.transforms import Affine, Attention


def transformers(network: nn.Module) -> list[SpatialTransformer]:
    return [module for module in network.modules() if isinstance(module, SpatialTransformer)]


def meta(name: str, **options: object) -> nn.Module:
    """The network at full width, without memory for its weights."""
    with torch.device("meta"):
        return create(name, **options)


@pytest.mark.parametrize(("size", "features"), [(64, 3072), (128, 12288)])
def test_house_number_layers_are_the_papers(size: int, features: int) -> None:
    network = meta("svhn-cnn", input_shape=(3, size, size))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [48, 64, 128, 160, 192, 192, 192, 192]
    assert all(c.kernel_size == (5, 5) and c.padding == (2, 2) and c.stride == (1, 1) for c in convolutions)
    linear = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]
    assert linear == [(features, 3072), (3072, 3072), (3072, 3072), (3072, 55)]


@pytest.mark.parametrize("name", ["svhn-cnn-small", "svhn-st-single-small", "svhn-st-multi-small"])
def test_initial_weights_keep_the_signal_of_a_house_number(name: str) -> None:
    torch.manual_seed(0)
    network = create(name).eval()
    with torch.no_grad():
        assert 0.1 < float(network(torch.rand(8, 3, 64, 64)).std()) < 3


@pytest.mark.parametrize(("name", "count"), [("svhn-cnn", 0), ("svhn-st-single", 1), ("svhn-st-multi", 4)])
def test_house_number_networks_start_as_their_classifier(name: str, count: int) -> None:
    torch.manual_seed(0)
    network = create(name, input_shape=(3, 32, 48), width=0.1, hidden=16).eval()
    found = transformers(network)
    assert len(found) == count
    assert all(transformer.transformation == Affine() for transformer in found)
    images = torch.rand(2, 3, 32, 48)
    logits = network(images)
    assert logits.shape == (2, 5, 11)
    for transformer in found:
        assert transformer.localization is not None
        assert transformer.localization[-1].in_features == 32  # type: ignore[index,union-attr]
    network.transformers = nn.ModuleList(nn.Identity() for _ in range(8))
    torch.testing.assert_close(logits, network(images), atol=1e-4, rtol=0)


def test_the_transformers_of_svhn_st_multi_see_each_stages_features() -> None:
    network = meta("svhn-st-multi")
    assert [transformer.output_size for transformer in transformers(network)] == [
        (64, 64),
        (32, 32),
        (32, 32),
        (16, 16),
    ]


def test_inception_has_the_published_widths() -> None:
    with torch.device("meta"):
        trunk, features = inception()
    widths = [block.features for block in trunk[5:]]  # type: ignore[union-attr]
    assert widths == [256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]
    assert features == 1024
    assert len(MODULES) == 10
    assert trunk(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1024, 7, 7)
    assert trunk(torch.empty(1, 3, 96, 160, device="meta")).shape == (1, 1024, 3, 5)


@pytest.mark.parametrize(
    ("name", "size", "starts"),
    [
        ("birds-2st", 224, [(-0.5, 0.0), (0.5, 0.0)]),
        ("birds-4st", 448, [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]),
    ],
)
def test_bird_networks_share_a_localization_and_start_tiled(
    name: str, size: int, starts: list[tuple[float, float]]
) -> None:
    full = meta(name)
    assert isinstance(full, PartNet)
    shapes = [(m.in_features, m.out_features) for m in full.modules() if isinstance(m, nn.Linear)]
    count = len(starts)
    assert shapes == [(128 * 7 * 7, 128), (128, 2 * count), (1024 * count, 200)]
    assert full(torch.empty(1, 3, size, size, device="meta")).shape == (1, 200)
    small = create(name, width=0.05, input_shape=(3, 64, 64), output_size=(32, 32), classes=7).eval()
    found = transformers(small)
    assert [transformer.transformation for transformer in found] == [Attention(scale=0.5)] * count
    images = torch.rand(2, 3, 64, 64)
    parameters = small.get_submodule("localization")(images)
    torch.testing.assert_close(parameters, torch.tensor(starts).flatten().expand(2, -1))
    assert small(images).shape == (2, 7)
    corner = found[0](torch.rand(1, 3, 64, 64), torch.tensor([starts[0]]))
    assert corner.shape == (1, 3, 32, 32)


def test_a_crop_of_birds_4st_is_its_quarter() -> None:
    small = create("birds-4st", width=0.05, input_shape=(3, 64, 64), output_size=(32, 32))
    images = torch.rand(1, 3, 64, 64)
    first, *_, fourth = transformers(small)
    torch.testing.assert_close(first(images, torch.tensor([[-0.5, -0.5]])), images[..., :32, :32], atol=1e-4, rtol=0)
    torch.testing.assert_close(fourth(images, torch.tensor([[0.5, 0.5]])), images[..., 32:, 32:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mnist-addition", "mnist-addition-projective", "mnist-addition-tps"])
def test_addition_sums_with_two_transformers_of_both_channels(name: str) -> None:
    network = create(name, hidden=16).eval()
    assert len(transformers(network)) == 2
    images = torch.rand(3, 2, 42, 42)
    assert network(images).shape == (3, 19)
    classifier = network.get_submodule("classifier")
    torch.testing.assert_close(network(images), classifier(torch.cat([images, images], 1)), atol=1e-4, rtol=0)


def test_colocalization_returns_the_crop_and_its_box_in_pixels() -> None:
    network = create("colocalization", input_shape=(1, 84, 112), output_size=(28, 28)).eval()
    scores = network.get_submodule("transformer").localization[-2]  # type: ignore[index,union-attr]
    with torch.no_grad():
        scores.weight.zero_()
    found = network(torch.rand(2, 1, 84, 112))
    assert found["crop"].shape == (2, 1, 28, 28)
    expected = torch.tensor([56 - 112 / 6, 42 - 84 / 6, 56 + 112 / 6, 42 + 84 / 6])
    torch.testing.assert_close(found["box"], expected.expand(2, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("left", "top"), [(0, 0), (40, 20), (56, 56)])
def test_the_crop_of_colocalization_starts_towards_a_bright_object(left: int, top: int) -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 84, 84)
    image[:, :, top : top + 28, left : left + 28] = 1
    with torch.inference_mode():
        found = create("colocalization").eval()(image)
    center = (found["box"][0, :2] + found["box"][0, 2:]) / 2
    assert (center - torch.tensor([left + 14.0, top + 14.0])).abs().max() < 14, "half of the way from the middle"
    shift = center / 42 - 1
    theta = torch.tensor([[[1 / 3, 0, shift[0]], [0, 1 / 3, shift[1]]]])
    expected = F.grid_sample(image, F.affine_grid(theta, [1, 1, 28, 28], align_corners=False), align_corners=False)
    torch.testing.assert_close(found["crop"], expected, atol=1e-4, rtol=0)


def test_soft_argmax_is_the_place_of_a_single_high_score() -> None:
    scores = torch.zeros(2, 1, 3, 5)
    scores[0, 0, 2, 1] = scores[1, 0, 0, 4] = 50
    expected = torch.tensor([[-0.4, 2 / 3], [0.8, -2 / 3]])
    torch.testing.assert_close(SoftArgmax((3, 5))(scores), expected)


def test_volumes_are_warped_in_3d_and_flattened() -> None:
    network = create("st-volume", input_shape=(1, 28, 30, 32), filters=4, localization_filters=3).eval()
    (transformer,) = transformers(network)
    assert transformer.transformation == Affine(rank=3)
    volumes = torch.rand(2, 1, 28, 30, 32)
    classifier = network.get_submodule("classifier")
    logits = network(volumes)
    assert logits.shape == (2, 10)
    torch.testing.assert_close(logits, classifier(volumes.amax(2)), atol=1e-4, rtol=0)
    assert transformers(meta("st-volume"))[0].output_size == (60, 60, 60)
    assert create("volume-cnn", input_shape=(1, 8, 30, 32), filters=2)(torch.rand(2, 1, 8, 30, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("small", "full", "factor"),
    [
        ("svhn-st-multi-small", "svhn-st-multi", 4),
        ("svhn-st-single-small", "svhn-st-single", 4),
        ("svhn-cnn-small", "svhn-cnn", 4),
        ("birds-2st-small", "birds-2st", 4),
        ("birds-cnn-small", "birds-cnn", 4),
        ("volume-cnn-small", "volume-cnn", 4),
        ("st-volume-small", "st-volume", 4),
    ],
)
def test_small_networks_are_narrower_with_as_many_layers(small: str, full: str, factor: int) -> None:
    def widths(name: str) -> list[int]:
        return [m.out_channels for m in meta(name).get_submodule(part).modules() if isinstance(m, nn.Conv2d)]

    part = "" if "cnn" in small else "convolutions" if "svhn" in small else "describers" if "2st" in small else ""
    assert len(widths(small)) == len(widths(full)) > 0
    assert widths(small) == [round(width / factor) for width in widths(full)]
    assert len(transformers(meta(small))) == len(transformers(meta(full)))


def test_presets_are_defaults_that_options_replace() -> None:
    assert meta("birds-2st-small")(torch.empty(1, 3, 96, 96, device="meta")).shape == (1, 16)
    assert meta("birds-2st-small", classes=5)(torch.empty(1, 3, 96, 96, device="meta")).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("svhn-cnn", (3, 64, 60), "multiples of 16, not 64 x 60"),
        ("birds-2st", (3, 64, 60), "multiples of 32"),
        ("birds-4st", (3, 416, 448), "above 224: of 64"),
        ("colocalization", (1, 84, 20), "at least 28 x 28 pixels, not 84 x 20"),
        ("st-volume", (1, 27, 60, 60), "at least 28 x 28 x 28, not 27 x 60 x 60"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create(name, input_shape=shape)
