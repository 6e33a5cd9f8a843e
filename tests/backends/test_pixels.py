"""Normalization on a device equals the one in main memory, in every backend that takes pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from stn_infer.arrays import Array
from stn_infer.backends.base import BatchingBackend, PixelBackend, TensorSpec
from stn_infer.backends.eager import EagerBackend
from stn_infer.backends.ort import OrtBackend
from stn_infer.backends.pixels import normalization_graph, normalize_on_device, pixel_input
from stn_infer.errors import InputError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.plain import export_plain
from tests.support.streams_standin import Inline

RULES = (
    Preprocess("rgb"),
    Preprocess("rgb", scale=1.0, mean=(127.5,), std=(64.0,)),
    Preprocess("rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    Preprocess("rgb", gamma=2.2, mean=(0.0, 0.1, 0.2), std=(1.0, 1.0, 2.0)),
)


def pixels_of(layout: str, rows: int = 3) -> Array:
    """Pixels [N, 3, 6, 7] as decoders and array files have them."""
    generator = np.random.default_rng(0)
    if layout == "planar":
        return generator.integers(0, 256, (rows, 3, 6, 7), dtype=np.uint8)
    four = generator.integers(0, 256, (rows, 6, 7, 4), dtype=np.uint8)
    return {"interleaved": four[..., :3].copy(), "four bytes": four[..., :3], "bgr": four[..., 2::-1]}[
        layout
    ].transpose(0, 3, 1, 2)


LAYOUTS = ("planar", "interleaved", "four bytes", "bgr")


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_in_pytorch(rule: Preprocess, dtype: torch.dtype) -> None:
    pixels = pixels_of("interleaved")
    out = torch.full(pixels.shape, 77, dtype=dtype)
    normalize_on_device(torch.from_numpy(pixels), rule, out)
    expected = normalize(pixels, rule).astype(out.numpy().dtype)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-3, atol=1e-7)


class Net(nn.Module):
    """Tells every pixel and its place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.flatten(1), x.mean((2, 3))], 1)


def loaded(fixed_batch: int | None = None) -> LoadedModel:
    return LoadedModel("toy", Net().eval(), ((3, 6, 7),), ModelMetadata(), "factory", fixed_batch)


def file(**change: Any) -> bytes:
    return export_plain(Net().eval(), ((3, 6, 7),), **change).SerializeToString()


@pytest.fixture(scope="module")
def backends() -> dict[str, Any]:
    return {"eager": EagerBackend(loaded(), streams=Inline()), "ort": OrtBackend(file(), threads=1)}


@pytest.mark.parametrize("name", ["eager", "ort"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_give_what_they_give_for_values(name: str, layout: str, backends: dict[str, Any]) -> None:
    backend = backends[name]
    assert isinstance(backend, PixelBackend) and isinstance(backend, BatchingBackend)
    (given,), (result,) = backend.inputs, backend.outputs
    for rule in RULES:
        for rows in (3, 0, 1):
            pixels = pixels_of(layout, rows)
            before = pixels.copy()
            expected = backend.run({given.name: normalize(pixels, rule)})[result.name]
            found = backend.run_pixels(pixels, rule)[result.name]
            assert found.dtype == expected.dtype and np.array_equal(pixels, before)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["eager", "ort"])
def test_what_is_not_pixels_for_the_model(name: str, backends: dict[str, Any]) -> None:
    backend = backends[name]
    with pytest.raises(InputError, match=r"pixels are uint8 \[N, C, H, W\], given float32 of 4 axes"):
        backend.run_pixels(pixels_of("planar").astype(np.float32), RULES[0])
    with pytest.raises(InputError, match=r"takes shape \[\?, 3, 6, 7\], given \[3, 3, 6, 6\]"):
        backend.run_pixels(pixels_of("planar")[..., :6], RULES[0])
    several = (TensorSpec("a", (None, 3, 6, 7), np.dtype(np.float32)), TensorSpec("b", (None, 6), np.dtype(np.float32)))
    with pytest.raises(InputError, match=r"one input \[N, C, H, W\], not a, b"):
        pixel_input(several, pixels_of("planar"))


def test_a_fixed_batch() -> None:
    backend = EagerBackend(loaded(fixed_batch=2), streams=Inline())
    pixels = pixels_of("interleaved", 5)
    found = backend.run_pixels(pixels, RULES[2])["output"]
    np.testing.assert_allclose(
        found, Net()(torch.from_numpy(normalize(pixels, RULES[2]))).numpy(), rtol=1e-5, atol=1e-6
    )


def test_on_a_cpu_images_are_normalized_before() -> None:
    """There that is faster: the values of a few images stay in the cache."""
    assert not OrtBackend(file(), threads=1).takes_pixels and not EagerBackend(loaded()).takes_pixels
    assert EagerBackend(loaded()).in_flight == 1 and EagerBackend(loaded(), streams=Inline()).in_flight == 3


@pytest.mark.parametrize("last", [True, False])
def test_the_graph_is_valid_and_has_no_more_operators_than_needed(last: bool) -> None:
    plain = onnx.load_from_string(normalization_graph(Preprocess("gray"), np.dtype(np.float16), last))
    onnx.checker.check_model(plain, full_check=True)
    first = ["Transpose"] if last else []
    assert [node.op_type for node in plain.graph.node] == [*first, "Cast", "Mul", "Cast"]
    whole = onnx.load_from_string(normalization_graph(RULES[3], np.dtype(np.float32), last))
    onnx.checker.check_model(whole, full_check=True)
    assert [node.op_type for node in whole.graph.node] == [*first, "Cast", "Mul", "Pow", "Sub", "Div", "Cast"]
