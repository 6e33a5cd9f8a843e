"""``benchmarks/peers``: whether the other libraries compute the same as stn-infer; their speed is not measured."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stn_infer import plugin
from stn_infer.benchmarking.prepare.case import Prepared, Setup
from stn_infer.benchmarking.request import Method
from stn_infer.errors import MissingDependencyError, ModelError
from stn_infer.extras import install
from stn_infer.reference.comparison import Expected

DALI = "benchmarks.peers.dali_warps:warp_affine"
METHOD = Method(rounds=1, seconds=0.01, samples=3, turns=1, warmup_seconds=0.01, warmup_limit=0.1, isolate=False)


def peer(name: str) -> Any:
    return importlib.import_module(f"benchmarks.peers.{name}")


def has_dali() -> bool:
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def prepared(*image: int, precision: Any = "fp32") -> Prepared:
    """A warp of images [C, H, W]; it has no files."""
    case = Prepared(
        folder="",
        name="warp",
        source="benchmarks.peers.warps:warp_digits",
        input_shapes=(image, (6,)),
        precision=precision,
        batch_sizes=(),
    )
    object.__setattr__(case, "load", lambda: SimpleNamespace(module=peer("warps").AffineWarp()))
    return case


def expected(batch: int, *image: int) -> Expected:
    """Random images and changes, and the model's output in float64."""
    generator = torch.Generator().manual_seed(batch)
    inputs = [torch.rand(batch, *shape, generator=generator) for shape in (image, (6,))]
    output = peer("warps").AffineWarp()(*(tensor.double() for tensor in inputs))
    return Expected(tuple(tensor.numpy() for tensor in inputs), (output.numpy(),), False)


def test_every_peer_is_verified_and_timed() -> None:
    """Tiny sizes, in this process."""
    for package in ("kornia", "onnxslim", "onnxsim"):
        pytest.importorskip(package, reason=f"{package} is not installed: the extra 'peers'")
    from stn_infer.api.bench import make_request, measure
    from stn_infer.benchmarking.request import Case

    compare, bounds = peer("compare"), peer("bounds")
    case = Case("benchmarks.peers.warps:warp_digits", input_shapes=((1, 12, 12), (6,)), batch_sizes=(3,))
    peers = [name for name in compare.peers("cpu") if name != "compile"]
    result = measure(make_request((case,), ("ort", *peers), "cpu", 1, None, METHOD))
    status = {row.variant: (row.status, row.reason) for row in result.measurements}
    assert set(status) == {"ort", *peers} and DALI in peers
    if not has_dali():
        reason = status.pop(DALI)
        assert reason[0] == "unavailable" and install("peers-gpu") in reason[1]
        peers.remove(DALI)
    assert {found for found, _ in status.values()} == {"timed"}, status

    rates = bounds.measure_rates("cpu", 1, 1 << 16, 64)
    least = bounds.bound(case, result.models[0].name, 3, rates, "host")
    assert least.bytes == 4 * (2 * 3 * 12 * 12 + 3 * 6)
    assert least.by == "bytes" and least.ms > 0
    text = compare.table(result, [least])
    assert "| kornia |" in text and len(re.findall(r"(?:x|unstable) \|", text)) == len(peers)
    assert text.count("(ort) |") == len(compare.peers("cpu"))  # the fastest of ours is named
    network = replace(result, models=(replace(result.models[0], case=Case("tutorial-stn-r")),))
    text = compare.table(network, [least])
    assert "| kornia |" not in text and "| DALI |" not in text and "| PyTorch |" in text


def test_a_missing_custom_variant_is_an_error() -> None:
    from stn_infer.benchmarking.variants.registry import open_variant

    with pytest.raises(ModelError, match=r"variant benchmarks\.peers\.warps:nothing cannot be imported"):
        open_variant("benchmarks.peers.warps:nothing", None)  # type: ignore[arg-type]
    assert "benchmarks.peers.warps" in sys.modules


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_every_named_variant_exists(device: str) -> None:
    from stn_infer.benchmarking.variants.names import VARIANTS

    compare = peer("compare")
    names = [*compare.ours(device), *compare.peers(device)]
    assert len(set(names)) == len(names)
    for name in names:
        module, _, function = name.partition(":")
        assert name in VARIANTS or callable(getattr(importlib.import_module(module), function))
    assert ("benchmarks.peers.cvcuda_warps:warp_affine" in names) == (device != "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "--device", "cuda", "--boundary", "device"])
    with pytest.raises(SystemExit, match=r"cuda:0 was asked for, PyTorch .* finds no usable GPU"):
        peer("compare").main()


@pytest.mark.parametrize("origin", [0.0, 0.5])
def test_matrices_in_pixels_give_the_models_grid(origin: float) -> None:
    height, width = 7, 11
    change = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    scale, shift = peer("pixels").pixel_map(height, width, origin)
    matrices = (change @ scale + shift).view(-1, 2, 3).double()
    y, x = torch.meshgrid(torch.arange(height) + origin, torch.arange(width) + origin, indexing="ij")
    pixels = torch.einsum("nij,jhw->nhwi", matrices, torch.stack([x, y, torch.ones(height, width)]).double())
    theta = peer("warps").theta_of(change.double())
    grid = torch.nn.functional.affine_grid(theta, [4, 1, height, width], align_corners=True)
    wanted = (grid + 1) / 2 * torch.tensor([width - 1, height - 1]) + origin
    assert float((pixels - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["kornia_warps:homography_warp", "ours:fused_warp", "dali_warps:warp_affine"])
def test_a_library_of_warps_runs_no_networks(name: str) -> None:
    module, _, function = name.partition(":")
    if module == "dali_warps" and not has_dali():
        pytest.skip("DALI is not installed: the extra 'peers-gpu'")
    if module == "kornia_warps":
        pytest.importorskip("kornia", reason="kornia is not installed: the extra 'peers'")
    opener = getattr(peer(module), function)
    network = prepared(1, 28, 28)
    object.__setattr__(network, "input_shapes", ((1, 28, 28),))
    for case in (network, prepared(1, 28, 28, precision="fp16")):
        with pytest.raises(ModelError, match=r"it runs benchmarks\.peers\.warps in fp32 only"):
            opener(Setup(case, "cpu", 1, METHOD))


@pytest.mark.skipif(not plugin.available(), reason="the plugin library is not built: stn-infer plugin build")
@pytest.mark.parametrize("image", [(1, 12, 9), (5, 6, 17)])
def test_our_warp_in_a_pytorch_program(image: tuple[int, ...]) -> None:
    ours = peer("ours")
    runner = ours.fused_warp(Setup(prepared(*image), "cpu", 1, METHOD))
    wanted = expected(3, *image)
    bound = runner.bind(wanted.inputs)
    assert wanted.error(bound.outputs()) < 3e-6
    assert [sampler.op for sampler in bound.inspect().samplers] == ["stn.spatial_transformer"]
    assert runner.describe()["plugin"] == "libstn_plugins.so"
    runner.close()
    with pytest.raises(MissingDependencyError, match="CUDA graphs need a GPU"):
        ours.fused_warp_graph(Setup(prepared(*image), "cpu", 1, METHOD))


@pytest.mark.skipif(not has_dali(), reason="DALI is not installed: the extra 'peers-gpu'")
@pytest.mark.parametrize("image", [(1, 12, 9), (3, 16, 16), (32, 6, 17)])
def test_dali_computes_what_the_model_does(image: tuple[int, ...]) -> None:
    runner = peer("dali_warps").warp_affine(Setup(prepared(*image), "cpu", 1, METHOD))
    wanted = {batch: expected(batch, *image) for batch in (2, 5)}
    bounds = {batch: runner.bind(it.inputs) for batch, it in wanted.items()}
    found = {batch: list(bound.outputs()) for batch, bound in bounds.items()}
    for _ in range(3):  # memory that was handed out is not written again
        bounds[5].call()
    for batch in wanted:
        assert wanted[batch].error(found[batch]) < 2e-5
    assert not any(bound.concurrent for bound in bounds.values())
    assert runner.describe()["runtime"].startswith("DALI ") and "channels last" in runner.describe()["images"]
    assert [sampler.place for sampler in bounds[2].inspect().samplers] == ["cpu"]
    runner.close()


class CvCuda:
    """A stand-in for ``cvcuda``: checks its arguments and warps as OpenCV does, one pixel at a time."""

    __version__ = "0.0"
    Interp = SimpleNamespace(LINEAR=1, WARP_INVERSE_MAP=16)
    Border = SimpleNamespace(CONSTANT=object())

    def __init__(self) -> None:
        self.wrapped = 0
        self.streams: list[int] = []

    def as_images(self, buffers: list[torch.Tensor]) -> list[torch.Tensor]:
        assert all(buffer.dim() == 3 and buffer.is_contiguous() for buffer in buffers)
        self.wrapped += 1
        return buffers

    def as_tensor(self, buffer: torch.Tensor, layout: str) -> torch.Tensor:
        assert layout == "NC" and buffer.dtype == torch.float32 and buffer.shape[1:] == (6,)
        return buffer

    def as_stream(self, handle: int) -> int:
        return handle

    def warp_affine_into(
        self,
        dst: list[torch.Tensor],
        src: list[torch.Tensor],
        xform: torch.Tensor,
        flags: int,
        *,
        border_mode: object,
        border_value: np.ndarray,
        stream: int,
    ) -> None:
        assert flags == 17 and border_mode is self.Border.CONSTANT
        assert border_value.shape == (src[0].shape[2],) and not border_value.any()
        self.streams.append(stream)
        for target, source, matrix in zip(dst, src, xform.double().numpy(), strict=True):
            height, width, _ = source.shape
            padded = np.pad(source.numpy().astype(np.float64), ((9, 9), (9, 9), (0, 0)))
            for row, column in np.ndindex(*target.shape[:2]):
                x, y = matrix.reshape(2, 3) @ [column, row, 1.0]
                left, top = int(np.floor(x)), int(np.floor(y))
                assert -9 <= left <= width + 7 and -9 <= top <= height + 7, "further out than the stand-in pads"
                corners = padded[top + 9 : top + 11, left + 9 : left + 11]
                weights = np.outer([top + 1 - y, y - top], [left + 1 - x, x - left])
                target[row, column] = torch.from_numpy(np.einsum("ijc,ij->c", corners, weights))


@pytest.mark.parametrize("image", [(1, 6, 9), (3, 8, 5)])
def test_cv_cudas_arguments_give_the_models_warp(image: tuple[int, ...]) -> None:
    """CV-CUDA's variant on the CPU, with a stand-in."""
    pixels, cvcuda_warps, stand_in = peer("pixels"), peer("cvcuda_warps"), CvCuda()

    class Variant(pixels.PixelVariant):  # type: ignore[misc, name-defined]
        library, op, origin = "stand-in", "warp", 0.0

        def make(self, shape: torch.Size) -> Callable[..., torch.Tensor]:
            return cvcuda_warps.batch_warp(stand_in, shape, "cpu", lambda: 7)  # type: ignore[no-any-return]

    runner = Variant(Setup(prepared(*image), "cpu", 1, METHOD))
    wanted = expected(3, *image)
    bound = runner.bind(wanted.inputs)
    assert wanted.error(list(bound.outputs())) < 3e-6
    wrapped = stand_in.wrapped
    bound.call()
    assert stand_in.wrapped == wrapped == 2  # images and outputs, once
    assert stand_in.streams == [7, 7]
    runner.close()


def test_errors_of_cv_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    warp = peer("cvcuda_warps").warp_affine
    with pytest.raises(MissingDependencyError, match="CV-CUDA needs a GPU, the device is cpu"):
        warp(Setup(prepared(1, 28, 28), "cpu", 1, METHOD))
    monkeypatch.setitem(sys.modules, "cvcuda", None)
    with pytest.raises(MissingDependencyError, match=re.escape(f"{install('peers-gpu')}, or cvcuda-cu12")):
        warp(Setup(prepared(1, 28, 28), "cuda:0", 1, METHOD))
    monkeypatch.setitem(sys.modules, "cvcuda", CvCuda())
    with pytest.raises(ModelError, match="1, 3 or 4 channels, these images have 32"):
        warp(Setup(prepared(32, 28, 28), "cuda:0", 1, METHOD))


def test_a_bound_is_the_slowest_of_its_parts() -> None:
    from stn_infer.benchmarking.request import Case

    bounds = peer("bounds")
    case = Case("benchmarks.peers.warps:warp_digits", input_shapes=((1, 8, 8), (6,)), batch_sizes=(4,))
    image, count = 4 * 4 * 64, 4 * (2 * 4 * 64 + 4 * 6)
    # copies of fewer bytes do not count, and a larger copy may be faster
    rates = bounds.Rates(((count // 2, 9e9), (count, 1e9), (4 * count, 2e9), (64 * count, 5e8)), 1e9)
    assert rates.bytes_per_s(count) == 2e9 and rates.bytes_per_s(count * 65) == 5e8
    found = bounds.bound(case, "warp", 4, rates, "host")
    assert (found.by, found.bytes, found.ms) == ("bytes", count, pytest.approx(count / 2e9 * 1e3))

    on_gpu = bounds.Rates(rates.copies, 1e9, upload_per_s=1e8, download_per_s=5e7)
    assert bounds.bound(case, "warp", 4, on_gpu, "device") == found
    over_the_bus = bounds.bound(case, "warp", 4, on_gpu, "host")
    assert (over_the_bus.by, over_the_bus.ms) == ("bus", pytest.approx(image / 5e7 * 1e3))

    again = bounds.Rates(tuple((moved, 1e9) for moved, _ in rates.copies), 2e9, 3e8, 1e7)
    better = on_gpu.better(again)
    assert [rate for _, rate in better.copies] == [9e9, 1e9, 2e9, 1e9]
    assert (better.flops_per_s, better.upload_per_s, better.download_per_s) == (2e9, 3e8, 5e7)
