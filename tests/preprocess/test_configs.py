"""Other people's configuration files and transforms as rules."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stn_infer.errors import UsageError
from stn_infer.preprocess.configs import fields_of_config, fields_of_transforms
from stn_infer.preprocess.rule import Preprocess

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TIMM = {"input_size": [3, 224, 224], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}


def rule(config: dict[str, Any]) -> Preprocess:
    return Preprocess(**fields_of_config(config))


@pytest.mark.parametrize(
    ("extra", "size", "resize", "pad"),
    [
        ({}, (256, 256), "shortest", (0, 0, 0)),
        ({"crop_pct": 0.9}, (248, 248), "shortest", (0, 0, 0)),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, (224, 224), "stretch", (0, 0, 0)),
        ({"crop_pct": 0.95, "crop_mode": "border"}, (235, 235), "longest", (128, 102, 76)),
    ],
)
def test_timm(extra: dict[str, Any], size: tuple[int, int], resize: Any, pad: Any) -> None:
    wanted = Preprocess(
        "rgb",
        size,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        resize=resize,
        crop=(224, 224),
        interpolation="bicubic",
        pad=pad,
    )
    assert rule({**TIMM, **extra}) == rule({"architecture": "x", "pretrained_cfg": {**TIMM, **extra}}) == wanted


def test_hugging_face_resize_and_crop() -> None:
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 200},
        "do_rescale": True,
        "rescale_factor": 0.00392156862745098,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    assert rule(config) == Preprocess(
        "rgb",
        (224, 224),
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        resize="shortest",
        crop=(224, 200),
        interpolation="bicubic",
    )


def test_hugging_face_stretches_to_a_size() -> None:
    config = {
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": 224,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    assert rule(config) == Preprocess("rgb", (224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    plain = {**config, "do_rescale": False, "do_normalize": False, "size": {"height": 8, "width": 9}, "resample": 0}
    assert rule(plain) == Preprocess("rgb", (8, 9), scale=1.0, interpolation="nearest")


@pytest.mark.parametrize(("edge", "size", "crop"), [(224, 256, (224, 224)), (384, 384, None)])
def test_convnext_crops_below_384_pixels(edge: int, size: int, crop: Any) -> None:
    config = {"image_processor_type": "x", "size": {"shortest_edge": edge}, "crop_pct": 0.875, **IMAGENET}
    found = rule(config)
    assert (found.size, found.crop) == ((size, size), crop)
    assert found.resize == ("shortest" if crop else "stretch")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**TIMM, "crop_mode": "corner"}, "crop_mode 'corner' is unknown"),
        ({**TIMM, "interpolation": "random"}, "interpolation 'random' is unknown"),
        ({"image_mean": [0] * 3, "size": {"shortest_edge": 800, "longest_edge": 1333}}, "bounds both edges"),
        ({"image_mean": [0] * 3, "do_pad": True}, "padding"),
        ({"image_mean": [0, 1]}, "neither timm's"),
        ({"hidden_size": 3}, r"neither timm's .* \(no 'input_size'\)"),
        ([1, 2], "neither timm's"),
        ("text", "neither timm's"),
        ({**TIMM, "crop_pct": "much"}, "neither timm's"),
        ({**TIMM, "input_size": [4, 8, 8]}, "neither timm's"),
    ],
)
def test_a_file_without_fields_for_it_is_one_line(tmp_path: Path, config: Any, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message) as caught:
        Preprocess.parse(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[" * 100000])
def test_an_unreadable_file_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot read the preprocessing in") as caught:
        Preprocess.parse(str(path))
    assert "\n" not in str(caught.value)


def transform(name: str, **fields: Any) -> Any:
    """An object of a class with this name, as torchvision's have."""
    return type(name, (SimpleNamespace,), {})(**fields)


RESIZE = transform("Resize", size=256, max_size=None, interpolation=SimpleNamespace(value="bilinear"))
CROP = transform("CenterCrop", size=(224, 200))
NORMALIZE = transform("Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def test_torchvision() -> None:
    compose = transform("Compose", transforms=[RESIZE, CROP, transform("ToTensor"), NORMALIZE])
    wanted = Preprocess("rgb", (256, 256), resize="shortest", crop=(224, 200), **IMAGENET)
    assert Preprocess(**fields_of_transforms(compose)) == wanted
    modern = [transform("ToImage"), RESIZE, CROP, transform("ToDtype", dtype="float32", scale=True), NORMALIZE]
    assert Preprocess(**fields_of_transforms(modern)) == wanted
    preset = transform(
        "ImageClassification",
        crop_size=[224],
        resize_size=[232],
        interpolation=SimpleNamespace(value="bicubic"),
        mean=list(IMAGENET["mean"]),
        std=list(IMAGENET["std"]),
    )
    assert Preprocess(**fields_of_transforms(preset)) == Preprocess(
        "rgb", (232, 232), resize="shortest", crop=(224, 224), interpolation="bicubic", **IMAGENET
    )
    gray = [
        transform("Grayscale", num_output_channels=1),
        transform("Resize", size=(28, 30), max_size=None, interpolation=2),
    ]
    found = fields_of_transforms([*gray, transform("PILToTensor")])
    assert Preprocess(**found) == Preprocess("gray", (28, 30), scale=1.0), "pixel values stay 0..255"


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([transform("RandomResizedCrop", size=3)], "RandomResizedCrop has no fields"),
        ([CROP, RESIZE], "Resize after CenterCrop"),
        ([transform("Resize", size=3, max_size=9, interpolation=2)], "max_size"),
        ([transform("Grayscale", num_output_channels=3)], "Grayscale has no fields"),
        ([transform("ToDtype", scale=False)], "ToDtype has no fields"),
    ],
)
def test_transforms_without_fields_are_named(transforms: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fields_of_transforms(transforms)
