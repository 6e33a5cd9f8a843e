"""Every op in every runtime: what does not fit is one line and the next call is right; no samples give no rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import pytest
import torch

from stn_infer import fused, fused_lattices, plugin
from stn_infer.backends.base import Backend
from stn_infer.backends.openvino.backend import OpenVinoBackend
from stn_infer.backends.openvino.extension import find
from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import MissingDependencyError, ModelError, StnInferError
from stn_infer.repairs.inlined import inlined
from tests.support.op_models import (
    LATTICE,
    OP_TYPES,
    PROJECTIVE,
    SAMPLER,
    SIZE,
    SPATIAL,
    TENSOR_PRODUCT,
    Array,
    feeds,
    one_node,
)

Run = Callable[[dict[str, Array]], Array]


def ort(op: str, given: dict[str, Array], *, library: bool, inline: bool = False) -> Backend:
    model = one_node(op, given)
    content = (inlined(model) if inline else model).SerializeToString()
    return OrtBackend(content, threads=1, plugin=library)


def openvino(op: str, given: dict[str, Array], *, extension: bool) -> Backend:
    pytest.importorskip("openvino")
    return OpenVinoBackend(one_node(op, given).SerializeToString(), threads=1, plugin=extension)


def grid_sample(image: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """A drop-in for PyTorch's function, whose exceptions it raises."""
    try:
        return fused.grid_sample(image, grid, align_corners=False)
    except (RuntimeError, ValueError) as error:
        raise ModelError(str(error)) from error


def tensor_product(
    image: torch.Tensor, theta: torch.Tensor, planes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """The function in PyTorch takes no planes for images, and columns the other way round."""
    matrices = [rows, columns.mT if columns.dim() == 2 else columns]
    if planes.shape != (1, 1):
        matrices.insert(0, planes)
    return fused_lattices.tensor_product_transformer(image, theta, matrices)


class Eager:
    """The plugin library's functions in PyTorch."""

    def __init__(self, op: str, given: dict[str, Array]) -> None:
        self.op = op

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        given = [torch.from_numpy(value) for value in inputs.values()]
        functions: dict[str, Callable[..., torch.Tensor]] = {
            SAMPLER: grid_sample,
            SPATIAL: partial(fused.spatial_transformer, kind="basis", output_size=SIZE),
            PROJECTIVE: partial(fused.spatial_transformer, kind="projective", output_size=SIZE),
            TENSOR_PRODUCT: tensor_product,
            LATTICE: partial(fused_lattices.lattice_transformer, output_size=SIZE),
        }
        return {"output": functions[self.op](*given).numpy()}


RUNTIMES: dict[str, Callable[[str, dict[str, Array]], Backend | Eager]] = {
    "onnxruntime, the library's op": partial(ort, library=True),
    "onnxruntime, the function": partial(ort, library=False),
    "onnxruntime, inlined": partial(ort, library=False, inline=True),
    "OpenVINO, the extension": partial(openvino, extension=True),
    "OpenVINO": partial(openvino, extension=False),
    "PyTorch": Eager,
}


def opened(op: str, runtime: str, given: dict[str, Array]) -> Backend | Eager:
    with_library = runtime in ("onnxruntime, the library's op", "OpenVINO, the extension", "PyTorch")
    if with_library and not plugin.info().onnxruntime:
        pytest.skip("the plugin library is not built")
    if runtime == "OpenVINO, the extension":
        pytest.importorskip("openvino")
        try:
            find()
        except MissingDependencyError as error:
            pytest.skip(str(error))
    return RUNTIMES[runtime](op, given)


def lengths(op: str) -> Iterator[tuple[str, int, int]]:
    """Each input's name with an axis and a length that does not fit: one less and one more."""
    for name, value in feeds(op).items():
        for axis, length in enumerate(value.shape):
            if (name == "input" and axis) or (op == SAMPLER and name == "grid" and axis in (1, 2)):
                continue  # channels and sizes may be anything
            if op == LATTICE and name == "theta" and axis == 2:
                continue  # so may the number of points; indices beyond it are tested below
            yield from ((name, axis, length - 1), (name, axis, length + 1))


@cache
def wanted(op: str) -> Array:
    return ort(op, feeds(op), library=False).run(feeds(op))["output"]


@pytest.mark.parametrize("op", OP_TYPES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_wrong_length_is_one_line_and_the_next_call_is_right(op: str, runtime: str) -> None:
    right = feeds(op)
    backend = opened(op, runtime, right)
    np.testing.assert_allclose(backend.run(right)["output"], wanted(op), atol=1e-5)
    for name, axis, length in lengths(op):
        if runtime == "PyTorch" and (name, axis) in (("rows", 0), ("columns", 1)):
            continue  # the output's size
        value = np.take(right[name], np.arange(length) % right[name].shape[axis], axis)
        with pytest.raises(StnInferError) as caught:
            backend.run(right | {name: value})
        assert "\n" not in str(caught.value), (name, value.shape)
        if axis == 1 and length > right[name].shape[axis]:
            np.testing.assert_allclose(backend.run(right)["output"], wanted(op), atol=1e-5)


@pytest.mark.parametrize("op", OP_TYPES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_wrong_rank_is_one_line(op: str, runtime: str) -> None:
    right = feeds(op)
    for name, value in right.items():
        for other in (value[0], value[None]):
            given = right | {name: other}
            try:
                found = opened(op, runtime, given).run(given)["output"]
            except StnInferError as error:
                assert "\n" not in str(error)
            else:  # plain operators broadcast constants
                assert name not in ("input", "theta", "grid"), (name, other.shape)
                assert runtime not in ("onnxruntime, the library's op", "PyTorch")
                assert found.shape == wanted(op).shape


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_index_beyond_the_points_is_one_line_or_the_nearest_point(runtime: str) -> None:
    right = feeds(LATTICE)
    beyond = right | {"index": right["index"] + np.int32(5)}
    backend = opened(LATTICE, runtime, right)
    nearest = right | {"index": np.minimum(beyond["index"], right["theta"].shape[2] - 1)}
    try:
        found = backend.run(beyond)["output"]
    except StnInferError as error:
        assert "\n" not in str(error)
    else:
        if "OpenVINO" in runtime:  # its Gather gives zeros
            nearest = right | {"weight": np.where(beyond["index"] < right["theta"].shape[2], right["weight"], 0)}
            nearest["index"] = np.minimum(beyond["index"], right["theta"].shape[2] - 1)
        np.testing.assert_allclose(found, backend.run(nearest)["output"], atol=1e-6)


@pytest.mark.parametrize("op", OP_TYPES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_samples_have_no_rows(op: str, runtime: str) -> None:
    found = opened(op, runtime, feeds(op)).run(feeds(op, 0))["output"]
    assert (found.shape, found.dtype) == ((0, 3, *SIZE), np.float32)
