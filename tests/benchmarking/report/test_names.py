from __future__ import annotations

from dataclasses import replace

import pytest

from stn_infer.benchmarking.report.names import is_ours, names
from stn_infer.benchmarking.result import BenchResult
from stn_infer.benchmarking.variants.names import VARIANTS


def renamed(result: BenchResult, *variants: str, **runs_on: str) -> BenchResult:
    """A result whose rows at batch 8 are of other variants."""
    rows = [row for row in result.measurements if row.batch_size == 8]
    pairs = zip(rows, variants, strict=False)
    return replace(result, measurements=tuple(replace(row, variant=name, runs_on=runs_on) for row, name in pairs))


def test_every_variant_has_a_name_of_its_own(measured: BenchResult) -> None:
    (row, *_), (model,) = measured.measurements, measured.models
    for device in ("cpu", "cuda:0"):
        rows = tuple(replace(row, variant=name) for name in VARIANTS)
        result = replace(measured, measurements=rows, request=replace(measured.request, device=device))
        found = names(result, model)
        assert len(set(found.values())) == len(VARIANTS)
        assert not set(found.values()) & set(VARIANTS)
        for name, each in zip(VARIANTS, rows, strict=True):
            # what VARIANTS says of it, and what its name says
            assert is_ours(each) is found[name].startswith("stn-infer")
            assert ("torch.onnx.export" in VARIANTS[name]) is ("torch.onnx.export" in found[name])
    assert found["ort-fused"] == "stn-infer, onnxruntime GPU"


def test_a_plain_file_that_was_given_is_not_called_an_export(measured: BenchResult) -> None:
    (model,) = measured.models
    given = replace(model, sha256={"file": "a", "plain": "a", "portable": "b"})
    assert names(measured, given)["ort-plain"] == "the given file, onnxruntime CPU"
    ours = replace(model, sha256={"file": "b", "plain": "a", "portable": "b"})
    assert names(measured, ours)["ort-plain"] == "torch.onnx.export, onnxruntime CPU"


@pytest.mark.parametrize(
    ("runs_on", "name"),
    [
        ({"runtime": "kornia 0.9"}, "kornia 0.9 CPU, warp"),
        ({"runtime": "PyTorch", "plugin": "none"}, "PyTorch CPU, warp"),
        ({"runtime": "PyTorch", "plugin": "libstn_plugins.so"}, "stn-infer, PyTorch CPU, warp"),
        ({}, "warp"),
    ],
)
def test_a_function_of_the_users_own(measured: BenchResult, runs_on: dict[str, str], name: str) -> None:
    result = renamed(measured, "package.module:warp", **runs_on)
    assert names(result, result.models[0]) == {"package.module:warp": name}
    assert is_ours(result.measurements[0]) is name.startswith("stn-infer")


def test_functions_of_one_name_keep_their_modules(measured: BenchResult) -> None:
    result = renamed(measured, "one:warp", "two:warp")
    assert names(result, result.models[0]) == {"one:warp": "one:warp", "two:warp": "two:warp"}
