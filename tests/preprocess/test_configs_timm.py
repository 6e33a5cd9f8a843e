"""timm's configurations as rules, against timm's own transforms on pictures, to the pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stn_infer.backends.base import TensorSpec
from stn_infer.data.held import Samples
from stn_infer.data.loader import Loader
from stn_infer.preprocess.configs import fields_of_config
from stn_infer.preprocess.rule import Preprocess

pytestmark = pytest.mark.slow
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "-1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
SIZES = [(500, 375), (375, 500), (224, 224), (97, 331), (640, 480), (251, 250)]  # width, height


@pytest.fixture(scope="module")
def create() -> Any:
    """timm's ``create_transform``."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("timm's transforms need torchvision: pip install 'stn-infer[timm]'")
    except RuntimeError:  # a wheel for CUDA beside a PyTorch for CPUs: operators that no transform uses are missing
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
    return pytest.importorskip("timm.data", reason="pip install 'stn-infer[timm]'").create_transform


def picture(width: int, height: int) -> Image.Image:
    """Edges, gradients and noise, which show how a resize weighs pixels."""
    generator = np.random.default_rng(width * 1000 + height)
    down, right = np.mgrid[0:height, 0:width]
    channels = [right * 255 // width, down * 255 // height, (right // 7 + down // 5) % 2 * 255]
    pixels = np.stack(channels, axis=-1) + generator.integers(-40, 40, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def prepared(rule: Preprocess, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The input [C, H, W] that a model gets."""
    specs = [TensorSpec("input", (None, 3, *(rule.output_size or ())), np.dtype(np.float32))]
    loader = Loader(specs, rule)
    loaded = loader.load(list(Samples(loader.arrays, specs, rule).of(image)))
    assert not loaded.errors
    (group,) = loaded.groups
    return np.array(group.inputs["input"][0], np.float32)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("part", "mode"), [(0.875, "center"), (0.9, "center"), (1.0, "center"), (0.95, "squash"), (0.9, "border")]
)
def test_to_the_pixel(create: Any, part: float, mode: str, interpolation: str, statistics: str) -> None:
    mean, std = STATISTICS[statistics]
    config = {"input_size": (3, 224, 224), "interpolation": interpolation, "mean": mean, "std": std}
    config |= {"crop_pct": part, "crop_mode": mode}
    theirs = create(
        (3, 224, 224),
        is_training=False,
        interpolation=interpolation,
        mean=mean,
        std=std,
        crop_pct=part,
        crop_mode=mode,
    )
    rule = Preprocess(**fields_of_config(config))
    for size in SIZES:
        image = picture(*size)
        expected = theirs(image).numpy()
        np.testing.assert_allclose(prepared(rule, image), expected, rtol=0, atol=2e-6, err_msg=str(size))


@pytest.mark.parametrize("preset", STATISTICS)
def test_presets(create: Any, preset: str) -> None:
    mean, std = STATISTICS[preset]
    theirs = create((3, 96, 96), is_training=False, interpolation="bilinear", mean=mean, std=std)
    rule = Preprocess.parse(f"{preset},rgb,size=109x109,resize=shortest,crop=96x96,interpolation=bilinear")
    for size in SIZES:
        image = picture(*size)
        np.testing.assert_allclose(prepared(rule, image), theirs(image).numpy(), rtol=0, atol=2e-6, err_msg=str(size))
