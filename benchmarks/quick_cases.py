"""The cases of ``quick.py``: the warp alone and the whole tutorial STN; each variant is verified before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from benchmarks.op_files import op_file
from stn_infer import plugin
from stn_infer.arrays import Array
from stn_infer.fusion.basis import canonical_basis
from stn_infer.fusion.fuse import fuse
from stn_infer.proto.session import Stored, open_session
from stn_infer.samplers import SamplerSpec
from stn_infer.sources.load import load_source
from stn_infer.torch_export.plain import export_plain

PLAIN, FUNCTION, FUSED = "onnxruntime, plain export", "onnxruntime, function", "onnxruntime, fused"
PYTORCH = "PyTorch, grid_sample"
# fp32 coordinates have an error of 1e-7 of the image's width; on random images the output has it times the difference
# of neighboring pixels.
_TOLERANCE = 1e-4

Calls = dict[str, Callable[[], Array]]


def write_files(folder: Path) -> None:
    """Write the tutorial STN as ``plain.onnx`` (torch.onnx.export) and ``portable.onnx`` (stn-infer export)."""
    loaded = load_source("tutorial-stn")
    plain = export_plain(loaded.module, loaded.input_shapes, loaded.name)
    onnx.save(plain, folder / "plain.onnx")
    onnx.save(fuse(plain)[0], folder / "portable.onnx")


def verified_calls(case: str, folder: Path) -> Calls:
    """The variants of a case, each in one thread, verified.

    Args:
        case: ``warp NxCxHxW`` or ``tutorial-stn, batch N``.
        folder: the folder of :func:`write_files`.

    Raises:
        SystemExit: a variant's output is wrong.
    """
    torch.set_num_threads(1)
    kind, _, size = case.partition(" ")
    if kind == "warp":
        calls, expected = _warp(tuple(map(int, size.split("x"))))
    else:
        calls = _tutorial(folder, int(size.split()[-1]))
        expected = calls[PLAIN]()
    for name, call in calls.items():
        error = float(np.abs(call() - expected).max())
        if not error <= _TOLERANCE:
            raise SystemExit(f"{case}, {name}: off by {error:.1e}, expected at most {_TOLERANCE:.0e}: not timed")
    return calls


def _warp(shape: tuple[int, ...]) -> tuple[Calls, Array]:
    """The variants of an affine warp of random images [N, C, H, W] near the identity, and its output in float64."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator)
    theta = torch.eye(2, 3) + 0.15 * torch.randn(shape[0], 2, 3, generator=generator)

    def grid_sample(image: torch.Tensor, theta: torch.Tensor) -> Array:
        grid = F.affine_grid(theta, list(shape), align_corners=False)
        return np.asarray(F.grid_sample(image, grid, align_corners=False).numpy())

    model = op_file("affine", shape[1:], canonical_basis(shape[2:]), shape[2:], SamplerSpec())
    feeds = {"input": image.numpy(), "theta": theta.numpy()}
    calls: Calls = {
        FUNCTION: _call(model, feeds, library=False),
        FUSED: _call(model, feeds, library=True),
        PYTORCH: partial(grid_sample, image, theta),
    }
    return calls, grid_sample(image.double(), theta.double())


def _tutorial(folder: Path, batch: int) -> Calls:
    plain, portable = (onnx.load(folder / f"{name}.onnx") for name in ("plain", "portable"))
    image = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0)).numpy()
    feeds = {plain.graph.input[0].name: image}
    return {
        PLAIN: _call(plain, feeds, library=False),
        FUNCTION: _call(portable, feeds, library=False),
        FUSED: _call(portable, feeds, library=True),
    }


def _call(model: onnx.ModelProto, feeds: dict[str, Array], *, library: bool) -> Callable[[], Array]:
    """A call that returns the first output; the session's threads sleep between calls, so as not to disturb others."""
    path = plugin.library_path() if library else None
    session = open_session(Stored(model), threads=1, spin="while-running", library=path).raw
    return lambda: session.run(None, feeds)[0]
