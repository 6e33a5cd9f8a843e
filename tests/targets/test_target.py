"""Which targets there are, and what is said about others."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from stn_infer.errors import UsageError
from stn_infer.targets import target
from stn_infer.targets.target import TARGETS, Target, parse_targets

INSTALLED = {"onnxruntime-gpu": "1.31.1", "tensorrt-rtx": "1.7.1.116", "openvino": "2026.4.1"}


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, for the test to change."""
    known = dict(INSTALLED)

    def versions(names: Iterable[str]) -> dict[str, str]:
        return {name: known[name] for name in names if name in known}

    monkeypatch.setattr(target, "versions", versions)
    return known


@pytest.mark.parametrize("text", TARGETS)
def test_every_target_that_is_named_is_known(text: str) -> None:
    assert str(Target.parse(text)) == text


def test_versions() -> None:
    assert Target.parse("tensorrt==10.16").release == (10, 16)
    assert Target.parse("tensorrt==8.6").installed == ""
    assert Target.parse(" openvino ") == Target("openvino", "", "2026.4.1")
    assert Target.parse("openvino==2026.4").installed == "2026.4.1"
    assert Target.parse("tensorrt-rtx").release == (1, 7)


def test_an_installed_tensorrt_is_a_target_whatever_its_version(packages: dict[str, str]) -> None:
    packages["tensorrt"] = "11.4.0.106"
    assert Target.parse("tensorrt") == Target("tensorrt", "", "11.4.0.106")
    assert Target.parse("tensorrt==11.4").installed == "11.4.0.106"
    assert Target.parse("tensorrt==11.4.0").installed == "11.4.0.106"
    assert Target.parse("tensorrt==10.3").installed == ""
    packages["tensorrt"] = "11.10.0.1"
    assert Target.parse("tensorrt==11.1").installed == ""


def test_a_runtime_that_is_not_installed_is_still_a_target(packages: dict[str, str]) -> None:
    del packages["openvino"]
    assert Target.parse("openvino") == Target("openvino", "", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trt", "no such target: 'trt'; the targets are tensorrt==8.6, .*, tensorrt==11.4, tensorrt-rtx, onnxruntime"),
        ("", "no such target: ''; the targets are"),
        ("openvino==", "no such target: 'openvino=='; the targets are"),
        ("tensorrt==10.4", "no such target: 'tensorrt==10.4'; the known versions of TensorRT are 8.6, 10.3, 10.8"),
        ("tensorrt", "TensorRT is not installed here, so the target needs a version: tensorrt==8.6, 10.3"),
        (
            "onnxruntime==1.20",
            "no such target: 'onnxruntime==1.20'; onnxruntime 1.31.1 is installed, so the target is on",
        ),
        ("openvino==2026.4.x", "no such target: 'openvino==2026.4.x'; openvino 2026.4.1 is installed"),
    ],
)
def test_an_unknown_target_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Target.parse(text)
    assert "\n" not in str(error.value)


def test_each_target_is_judged_once() -> None:
    assert list(map(str, parse_targets(["openvino", "tensorrt==8.6", "openvino"]))) == ["openvino", "tensorrt==8.6"]
