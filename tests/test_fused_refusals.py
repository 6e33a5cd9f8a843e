"""What the operators refuse when called directly: the same in real, fake and compiled calls, before a kernel runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from stn_infer import fused, fused_lattices, plugin
from stn_infer.errors import FallbackWarning, UsageError
from stn_infer.fused import composed, spatial_transformer
from stn_infer.samplers import SamplerSpec

SETTINGS = ("bilinear", "zeros", False)
Arguments = dict[str, Any]

OPS: dict[str, Callable[..., Tensor]] = {
    "spatial": torch.ops.stn.spatial_transformer,
    "projective": torch.ops.stn.spatial_transformer,
    "grid": torch.ops.stn.grid_sample,
    "product": torch.ops.stn.tensor_product_transformer,
    "lattice": torch.ops.stn.lattice_transformer,
}


def arguments(op: str, device: str = "cpu") -> Arguments:
    """Tensors that fit together, by the names of an op's arguments: images [2, 3, 5, 7] to [2, 3, 4, 6]."""
    image = torch.rand(2, 3, 5, 7, device=device)
    if op == "grid":
        return {"input": image, "grid": torch.rand(2, 4, 6, 2, device=device)}
    points = {"spatial": (2, 2, 5), "projective": (2, 3, 4), "product": (2, 2, 6), "lattice": (2, 2, 9)}[op]
    given = {"input": image, "theta": torch.rand(*points, device=device)}
    if op == "product":
        sizes = {"planes": (1, 1), "rows": (4, 2), "columns": (3, 6)}
        return given | {name: torch.rand(*size, device=device) for name, size in sizes.items()}
    if op == "lattice":
        index = torch.zeros(3, 24, dtype=torch.int32, device=device)
        return given | {"index": index, "weight": torch.rand(3, 24, device=device), "output_size": [4, 6]}
    basis = torch.rand(points[2], 24, device=device)
    return given | {"basis": basis, "kind": "basis" if op == "spatial" else op, "output_size": [4, 6]}


def call(op: str, given: Arguments) -> Tensor:
    return OPS[op](*given.values(), *SETTINGS)


def tensors(op: str) -> list[str]:
    return [name for name, value in arguments(op).items() if isinstance(value, Tensor)]


CASES = [(op, name) for op in OPS for name in tensors(op)]


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("fake", [False, True])
def test_every_tensor_is_on_the_device_of_the_input(op: str, name: str, fake: bool) -> None:
    """A CPU tensor beside a CUDA image, as PyTorch simulates it; really: one of device meta beside a CPU image."""
    here, there = ("cuda", "cpu") if fake else ("cpu", "meta")
    with FakeTensorMode() if fake else nullcontext():
        given = arguments(op, here)
        assert call(op, given).device.type == here
        given[name] = given[name].to(there)
        with pytest.raises(UsageError) as caught:
            call(op, given)
    message = str(caught.value)
    assert "the device of input, got" in message and "\n" not in message
    assert f"expected {name} on {here}" in message or name == "input"


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_every_tensor_has_a_dtype_that_a_kernel_reads(op: str, name: str, device: str, dtype: torch.dtype) -> None:
    given = arguments(op, device)
    given[name] = given[name].real.to(dtype)
    with pytest.raises(UsageError, match=rf"^expected {name} to be .*, got {dtype}$"):
        call(op, given)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_image_in_double_precision_has_no_kernel(op: str, device: str) -> None:
    given = arguments(op, device)
    given["input"] = given["input"].double()
    with pytest.raises(UsageError, match=r"^expected input to be float32, float16 or bfloat16, got torch.float64$"):
        call(op, given)


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_every_tensor_is_dense(op: str, name: str) -> None:
    given = arguments(op)
    given[name] = given[name].to_sparse()
    with pytest.raises(UsageError, match=rf"^expected {name} to be a dense tensor, got one of the layout"):
        call(op, given)


@pytest.mark.parametrize("op", OPS)
def test_other_devices_have_no_kernel(op: str) -> None:
    with FakeTensorMode(), pytest.raises(UsageError, match=r"^expected input on the CPU or on a CUDA GPU, got xpu"):
        call(op, arguments(op, "xpu"))


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("spatial", {"basis": torch.zeros(5, 23)}, "expected a basis with 24 columns"),
        ("spatial", {"basis": torch.zeros(5, 25)}, "expected a basis with 24 columns"),
        ("spatial", {"basis": torch.zeros(24)}, "expected a basis with 5 rows"),
        ("spatial", {"basis": torch.zeros(4, 24)}, "expected a basis with 5 rows"),
        ("projective", {"basis": torch.zeros(4, 6)}, "expected a basis with 24 columns"),
        ("projective", {"theta": torch.zeros(2, 2, 4)}, "expected theta with 3 rows"),
        ("grid", {"grid": torch.zeros(2, 4, 6, 3)}, "expected a grid"),
        ("grid", {"grid": torch.zeros(1, 4, 6, 2)}, "expected a grid"),
        ("product", {"rows": torch.zeros(8)}, "expected rows to be a matrix"),
        ("product", {"planes": torch.tensor(1.0)}, "expected planes to be a matrix"),
        ("product", {"columns": torch.zeros(3, 6, 1)}, "expected columns to be a matrix"),
        ("product", {"columns": torch.zeros(4, 6)}, r"expected theta \[2, 2, 8\]"),
        ("product", {"rows": torch.zeros(4, 0), "theta": torch.zeros(2, 2, 0)}, "a lattice with at least one point"),
        ("product", {"input": torch.zeros(3)}, "expected an input"),
        ("lattice", {"index": torch.zeros(3, 23, dtype=torch.int32)}, "expected index and weight"),
        ("lattice", {"theta": torch.zeros(2, 2, 0)}, "of a lattice with points"),
        ("lattice", {"theta": torch.zeros(2, 18)}, "expected theta"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_lengths_that_do_not_fit(op: str, change: Arguments, message: str, device: str) -> None:
    given = arguments(op, device) | {name: tensor.to(device) for name, tensor in change.items()}
    with pytest.raises(UsageError, match=message):
        call(op, given)


def test_a_compiled_call_refuses_the_same() -> None:
    """The traced graph has fake tensors; PyTorch wraps what they raise, and the sentence is in its message."""
    compiled = torch.compile(lambda *given: call("spatial", dict(enumerate(given))), backend="eager", fullgraph=True)
    given = arguments("spatial")
    torch.testing.assert_close(compiled(*given.values()), call("spatial", given))
    with pytest.raises(Exception, match="expected a basis with 24 columns, the points of output size"):
        compiled(*(given | {"basis": torch.zeros(5, 23)}).values())


def test_an_exported_graph_refuses_what_it_was_not_traced_for() -> None:
    class Warp(torch.nn.Module):
        def forward(self, input: Tensor, theta: Tensor, basis: Tensor) -> Tensor:
            return call("spatial", {"a": input, "b": theta, "c": basis, "kind": "basis", "size": [4, 6]})

    given = [value for value in arguments("spatial").values() if isinstance(value, Tensor)]
    graph = torch.export.export(Warp(), tuple(given)).graph_module  # without the checks that PyTorch puts around it
    torch.testing.assert_close(graph(*given)[0], Warp()(*given))
    with pytest.raises(UsageError, match="expected a basis with 24 columns"):
        graph(*given[:2], torch.zeros(5, 23))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_op_without_a_kernel_runs_pytorchs_operators(
    op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a graph that was traced on another machine, for example."""
    torch.manual_seed(0)
    given = arguments(op)
    given["input"] = given["input"].to(dtype).contiguous(memory_format=torch.channels_last)
    expected = call(op, given)
    for module in (fused, fused_lattices):
        monkeypatch.setattr(module, "usable", lambda input: False)
    monkeypatch.setattr(plugin, "run_cpu", None)
    found = call(op, given)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=2e-3 if dtype == torch.float16 else 1e-5, rtol=1e-3)


class Library:
    """A library whose CUDA kernels run on cuda:0 only."""

    def stn_has_cuda(self) -> int:
        return 1

    def stn_cuda_usable(self, device: int) -> int:
        return int(device == 0)

    def stn_status_text(self, status: int) -> bytes:
        assert status == 7
        return b"CUDA: no kernel image is available for execution on the device (cudaErrorNoKernelImageForDevice)"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_load", lambda named: (Library(), None))
    monkeypatch.setattr(plugin, "_cuda_problem", plugin._cuda_problem.__wrapped__)
    plugin.warn_of.cache_clear()


@pytest.mark.usefixtures("limited")
def test_a_gpu_without_code_is_warned_of_once() -> None:
    with FakeTensorMode():
        images = [torch.empty(2, 3, 5, 7, device=f"cuda:{index}") for index in (0, 1)]
    assert fused.usable(images[0])
    with pytest.warns(FallbackWarning) as caught:
        assert not fused.usable(images[1])
    assert str(caught[0].message) == (
        "the plugin library's kernels cannot run on cuda:1: CUDA: no kernel image is available for execution on the "
        "device (cudaErrorNoKernelImageForDevice); PyTorch's operators are used instead"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fused.usable(images[1])
        assert fused.usable(images[0])


def test_an_index_outside_of_the_lattice_reads_its_ends() -> None:
    given = arguments("lattice")
    given["index"] = torch.tensor([[-5] * 24, [9] * 24, [3] * 24], dtype=torch.int32)
    within = given | {"index": given["index"].clamp(0, 8)}
    torch.testing.assert_close(call("lattice", given), call("lattice", within))
    plain = [given[name] for name in ("theta", "index", "weight")]
    grid = fused_lattices.lattice_grid(*plain, (4, 6))
    torch.testing.assert_close(fused.sampled(given["input"], grid, SamplerSpec()), call("lattice", within))


def test_the_fallback_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list(arguments("spatial").values())
    expected = composed(*given)
    monkeypatch.setenv(plugin.ENVIRONMENT, "/nowhere/libstn_plugins.so")
    torch.testing.assert_close(torch.ops.stn.spatial_transformer(*given, *SETTINGS), expected)
    torch.testing.assert_close(spatial_transformer(*given), expected)
