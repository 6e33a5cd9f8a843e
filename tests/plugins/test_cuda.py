"""The CUDA kernels against the CPU kernels, through the C interface and in onnxruntime's CUDA execution provider."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from stn_infer import plugin
from tests.support.plugin_cases import random_grid


def _reason() -> str | None:
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU and a PyTorch built with CUDA"
    if not plugin.available() or not plugin.load().stn_has_cuda():
        return "the plugin library has no CUDA kernels: stn-infer plugin build"
    return None


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_reason() is not None, reason=str(_reason()))]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOLERANCES = {"float32": 3e-5, "float16": 4e-3, "bfloat16": 4e-2}


def run(device: str, fields: dict[str, Any], tensors: dict[str, torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """One problem on one device; the tensors are moved there."""
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    result = output.to(device)
    problem = plugin.Problem(
        **fields, **{name: tensor.data_ptr() for name, tensor in moved.items()}, output=result.data_ptr()
    )
    if device == "cpu":
        plugin.run_cpu(problem)
    else:
        plugin.run_cuda(problem, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
    return result.cpu()


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("channels", [1, 3, 16, 21])
def test_every_combination_equals_the_cpu(rank: int, dtype: str, channels: int) -> None:
    generator = torch.Generator().manual_seed(rank + channels)
    size, output_size = (9, 13, 7)[:rank], (6, 19, 5)[:rank]
    pixels, batch = int(np.prod(output_size)), 3
    modes = range(3 if rank == 2 else 2)
    kinds = range(4) if rank == 2 else (0, 1, 3)
    for kind, mode, padding, align, layout in product(kinds, modes, range(3), range(2), range(2)):
        pitch = -(-channels // 8) * 8 if layout else channels
        rows = {0: rank + 1, 1: 7, 2: 3, 3: 0}[kind]
        image = torch.rand(batch, pitch, *size, generator=generator).to(DTYPES[dtype])
        if kind == 3:
            theta = torch.from_numpy(random_grid((batch, *output_size, rank), size, bool(align)))
        else:
            columns = 3 if kind == 2 else rank
            theta = torch.eye(columns, rows).repeat(batch, 1, 1)
            theta = theta + 0.2 * torch.rand(batch, columns, rows, generator=generator)
            if kind == 2:
                theta[:, 2] = torch.tensor([0.1, -0.1, 1.5])
        basis = torch.rand(max(rows, 1), pixels, generator=generator)
        fields = {
            "rank": rank, "kind": kind, "mode": mode, "padding": padding, "align_corners": align,
            "dtype": list(DTYPES).index(dtype), "input_layout": layout, "output_layout": layout, "batch": batch,
            "channels": channels, "input_size": (ctypes.c_int64 * 3)(*size),
            "output_size": (ctypes.c_int64 * 3)(*output_size), "basis_rows": rows, "theta_batch": batch,
            "input_batch": batch, "channel_pitch_in": pitch if layout else 0,
            "channel_pitch_out": pitch if layout else 0, "points": pixels,
        }  # fmt: skip
        tensors = {"input": image, "theta": theta}
        if kind == 1:
            tensors["basis"] = basis
        output = torch.zeros(batch, pixels * pitch, dtype=DTYPES[dtype])
        cpu, cuda = (run(device, fields, tensors, output).float() for device in ("cpu", "cuda"))
        if layout:
            cpu, cuda = (result.view(batch, pixels, pitch)[..., :channels] for result in (cpu, cuda))
        # a coordinate's last bit may change a nearest sampler's pixel; the grid of kind 3 avoids ties
        close = torch.isclose(cuda, cpu, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
        assert close.float().mean() > (0.995 if mode == 1 and kind != 3 else 0.99999), fields


def test_nothing_outside_is_read_for_any_coordinate() -> None:
    """For compute-sanitizer: huge, infinite and NaN coordinates, and images of one pixel."""
    specials = torch.tensor([0.0, -1.0, 1.0, 1e30, -1e30, 3e38, torch.inf, -torch.inf, torch.nan])
    grid = torch.cartesian_prod(specials, specials)[None].contiguous()
    for size, mode, padding, align in product(((1, 1), (1, 5), (4, 3)), range(3), range(3), range(2)):
        image = torch.rand(1, 2, *size)
        fields = {
            "rank": 2, "kind": 3, "mode": mode, "padding": padding, "align_corners": align, "batch": 1, "channels": 2,
            "input_size": (ctypes.c_int64 * 3)(*size), "output_size": (ctypes.c_int64 * 3)(9, 9), "theta_batch": 1,
            "input_batch": 1, "points": 81,
        }  # fmt: skip
        answer = run("cuda", fields, {"input": image, "theta": grid}, torch.zeros(1, 2, 9, 9))
        assert answer.isfinite().all()


COLD = """
import torch
from stn_infer.fused import grid_sample, spatial_transformer
from stn_infer.fused_lattices import lattice_transformer

torch.manual_seed(0)
image, theta = torch.rand(2, 3, 9, 11, device="cuda"), torch.rand(2, 2, 3, device="cuda") - 0.5
last, basis = image.half().contiguous(memory_format=torch.channels_last), torch.rand(3, 80, device="cuda")
grid, index = torch.rand(2, 8, 10, 2, device="cuda") - 0.5, torch.zeros(2, 80, dtype=torch.int32, device="cuda")
calls = [
    lambda: spatial_transformer(image, theta, basis, "affine", (8, 10)),
    lambda: spatial_transformer(last, theta, basis, "basis", (8, 10)),
    lambda: grid_sample(image, grid, "bicubic", "border", False),
    lambda: lattice_transformer(image, theta, index, basis[:2].contiguous(), (8, 10)),
]
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = [call() for call in calls]
graph.replay()
torch.cuda.synchronize()
for call, found in zip(calls, captured, strict=True):
    assert torch.equal(call(), found) and found.float().std() > 0.01
print("captured")
"""


def test_the_first_launch_of_all_may_be_captured() -> None:
    """In a process of its own, where no kernel was loaded before."""
    done = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("captured"), done.stderr


def test_onnxruntime_runs_the_op_on_its_own_stream() -> None:
    import onnxruntime as ort

    from tests.plugins.test_onnxruntime import canonical, one_node, random_theta

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA")
    rng = np.random.default_rng(0)
    model = one_node("affine", canonical((28, 28)), (28, 28))
    feeds = {"input": rng.random((64, 3, 28, 28), np.float32), "theta": random_theta(rng, 2, 3, 64)}
    answers = []
    for library in (False, True):
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if library else "0")
        if library:
            options.register_custom_ops_library(str(plugin.library_path()))
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
        if session.get_providers()[0] != "CUDAExecutionProvider":
            pytest.skip("onnxruntime's CUDA provider does not load here")
        answers.append(session.run(None, feeds)[0])
    np.testing.assert_allclose(answers[1], answers[0], atol=2e-5)
