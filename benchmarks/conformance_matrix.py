"""Compare each sampler in each runtime with the float64 sampler: mode x padding x align_corners x rank x type.

Every cell is computed on this machine's CPU, with noise in [0, 1] and grids that leave the image. Runtimes that need a
GPU are tested as far as possible without one: TensorRT-RTX builds an engine and TensorRT's registry creates our plugin,
but neither runs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from benchmarks.op_files import op_file
from stn_infer import plugin
from stn_infer.arrays import Array
from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import MissingDependencyError, StnInferError, one_line
from stn_infer.fusion.basis import Basis, canonical_basis
from stn_infer.fusion.op import SAMPLER, SPATIAL
from stn_infer.reference.calls import grid_and_bound
from stn_infer.reference.comparison import compare_warp
from stn_infer.samplers import MODES, PADDING_MODES, SamplerSpec
from stn_infer.sampling import sample

DTYPES = ("float32", "float16", "bfloat16")
SIZES = {2: ((24, 32), (20, 28)), 3: ((6, 10, 12), (5, 8, 10))}
RUNTIMES = (
    "PyTorch",
    "PyTorch, fused",
    "onnxruntime GridSample",
    "onnxruntime, function",
    "onnxruntime, library",
    "OpenVINO, inlined",
    "OpenVINO, extension",
    "TensorRT-RTX",
    "TensorRT, plugin",
)
#: Those that run ``stn::Sampler``.
SAMPLER_RUNTIMES = tuple(name for name in RUNTIMES if name not in ("PyTorch", "onnxruntime GridSample"))
_BATCH, _CHANNELS, _OPSET = 4, 2, 22


@dataclass(frozen=True)
class Case:
    """One combination; ``at_grid``: our op is ``stn::Sampler``, at the float32 grid of the same theta."""

    rank: int
    dtype: str
    sampler: SamplerSpec
    at_grid: bool = False

    @property
    def possible(self) -> bool:
        """Whether ONNX and PyTorch define the combination; bicubic sampling of volumes is not defined."""
        return not (self.rank == 3 and self.sampler.mode == "bicubic")


@dataclass(frozen=True)
class Outcome:
    """The result of a combination in one runtime.

    Attributes:
        verdict: ``exact``, ``within`` (what float32 explains), ``off``, ``unsupported``, ``builds`` or ``accepted``
            (not run), or ``absent`` where the runtime is not installed.
        error: the largest absolute error, of values in [0, 1].
    """

    verdict: str
    error: float = 0.0

    def text(self) -> str:
        """The text in the table; an error is rounded up to a power of ten."""
        if self.verdict == "within":
            return f"≤ 1e{math.ceil(math.log10(max(self.error, 1e-8)))}"
        if self.verdict == "off":
            return f"**off by {self.error:.0e}**"
        return {"absent": "-", "builds": "builds", "accepted": "accepted"}.get(self.verdict, self.verdict)


def cases(dtypes: Sequence[str] = DTYPES, *, at_grid: bool = False) -> list[Case]:
    """All defined combinations."""
    found = (
        Case(rank, dtype, SamplerSpec(mode, padding_mode, align_corners), at_grid)
        for rank, dtype, mode, padding_mode, align_corners in product(
            SIZES, dtypes, MODES, PADDING_MODES, (False, True)
        )
    )
    return [case for case in found if case.possible]


@dataclass(frozen=True)
class Data:
    """The inputs of a case.

    Attributes:
        image: [N, C, *in] float32 values that the case's type holds.
        theta: [N, D, D + 1] float32.
        grid: the exact grid, float64.
        bound: what float32 coordinates may be off, in pixels.
    """

    image: Array
    theta: Array
    grid: Array
    bound: Array


def data(case: Case) -> Data:
    """Make noise images, and affine transforms that leave the image."""
    size, _ = SIZES[case.rank]
    generator = torch.Generator().manual_seed(11)
    image = torch.rand((_BATCH, _CHANNELS, *size), generator=generator)
    image = image.to(getattr(torch, case.dtype)).float()
    theta = torch.eye(case.rank, case.rank + 1) + 0.3 * torch.randn(
        (_BATCH, case.rank, case.rank + 1), generator=generator
    )
    return Data(image.numpy(), theta.numpy(), *grid_and_bound(_basis(case), theta.numpy(), size))


def _basis(case: Case) -> Basis:
    output_size = SIZES[case.rank][1]
    return Basis("affine", canonical_basis(output_size).astype(np.float32), output_size)


def outcome(case: Case, run: Callable[[Case, Data], Array]) -> Outcome:
    """Run a case and judge it."""
    given = data(case)
    try:
        found = run(case, given)
    except MissingDependencyError:
        return Outcome("absent")
    except Exception as error:  # a runtime may raise any exception
        known = isinstance(error, (RuntimeError, StnInferError, ValueError)) or "onnxruntime" in type(error).__module__
        if not known:
            raise
        return Outcome("unsupported")
    expected = sample(case.sampler, given.image, given.grid)
    deviation = compare_warp(found, given.image, given.grid, given.bound, case.sampler, case.dtype)
    largest = float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max())
    if deviation.problem() is not None:
        return Outcome("off", largest)
    if case.sampler.mode == "nearest" and not deviation.flips.flipped:
        return Outcome("exact")
    return Outcome("within", largest)


# ---- runtimes ----------------------------------------------------------------------------------------------------


def run_pytorch(case: Case, given: Data) -> Array:
    """An affine grid in float32, then grid_sample in the image's type, which requires the grid in that type too."""
    dtype = getattr(torch, case.dtype)
    grid = _grid(case, given).to(dtype)
    image = torch.from_numpy(given.image).to(dtype)
    sampler = case.sampler
    warped = F.grid_sample(image, grid, sampler.mode, sampler.padding_mode, sampler.align_corners)
    return np.asarray(warped.float().numpy())


def _grid(case: Case, given: Data) -> torch.Tensor:
    """The affine grid in float32."""
    points = torch.from_numpy(given.theta) @ torch.from_numpy(_basis(case).rows)
    return points.transpose(1, 2).reshape(_BATCH, *SIZES[case.rank][1], case.rank)


def run_fused(case: Case, given: Data) -> Array:
    """The plugin library's kernel as a PyTorch operator."""
    from stn_infer.fused import grid_sample, spatial_transformer

    plugin.load()
    image = torch.from_numpy(given.image).to(getattr(torch, case.dtype))
    if case.at_grid:
        sampler = case.sampler
        warped = grid_sample(image, _grid(case, given), sampler.mode, sampler.padding_mode, sampler.align_corners)
        return np.asarray(warped.float().numpy())
    theta, basis = torch.from_numpy(given.theta), torch.from_numpy(_basis(case).rows)
    warped = spatial_transformer(image, theta, basis, "affine", SIZES[case.rank][1], case.sampler)
    return np.asarray(warped.float().numpy())


def _file(case: Case, *, standard: bool = False, opset: int = _OPSET) -> onnx.ModelProto:
    """The case's sampler, as our op or as the standard operator."""
    size, output_size = SIZES[case.rank]
    shape, basis = (_CHANNELS, *size), _basis(case).rows
    return op_file(
        "affine",
        shape,
        basis,
        output_size,
        case.sampler,
        opset=opset,
        dtype=case.dtype,
        standard=standard,
        sampler_op=case.at_grid,
    )


def _ort(standard: bool, library: bool) -> Callable[[Case, Data], Array]:
    def run(case: Case, given: Data) -> Array:
        backend = OrtBackend(_file(case, standard=standard).SerializeToString(), threads=1, plugin=library)
        return backend.run({"input": given.image, "theta": given.theta})["output"]

    return run


def _openvino(extension: bool) -> Callable[[Case, Data], Array]:
    def run(case: Case, given: Data) -> Array:
        from stn_infer.backends.openvino.backend import OpenVinoBackend

        backend = OpenVinoBackend(_file(case).SerializeToString(), threads=1, plugin=extension)
        return backend.run({"input": given.image, "theta": given.theta})["output"]

    return run


MEASURED: dict[str, Callable[[Case, Data], Array]] = {
    "PyTorch": run_pytorch,
    "PyTorch, fused": run_fused,
    "onnxruntime GridSample": _ort(True, False),
    "onnxruntime, function": _ort(False, False),
    "onnxruntime, library": _ort(False, True),
    "OpenVINO, inlined": _openvino(False),
    "OpenVINO, extension": _openvino(True),
}


def builds(case: Case) -> Outcome:
    """Whether TensorRT-RTX parses and builds the portable file, at the opset of its type, into native layers."""
    from stn_infer.backends.tensorrt.builder import build_plan, prepare
    from stn_infer.backends.tensorrt.profiles import resolve_profiles
    from stn_infer.backends.tensorrt.runtime import load_runtime

    try:
        runtime = load_runtime("tensorrt-rtx")
    except StnInferError:
        return Outcome("absent")
    model = _file(case, opset=_OPSET if case.dtype == "bfloat16" else 18)
    try:
        prepared = prepare(model, runtime, plugin=False)
        build_plan(runtime, prepared, resolve_profiles(prepared, None), target="sm89")
    except StnInferError as error:
        print(case, one_line(error), file=sys.stderr)
        return Outcome("unsupported")
    return Outcome("builds")


def accepted(wanted: Sequence[Case]) -> list[Outcome]:
    """Whether TensorRT's plugin registry (lean) creates our plugin from these fields; all cases are of one op."""
    fields = [
        {
            "mode": case.sampler.mode,
            "padding_mode": case.sampler.padding_mode,
            "align_corners": [int(case.sampler.align_corners)],
            **({} if case.at_grid else {"grid_shape": [0, *SIZES[case.rank][1], case.rank]}),
        }
        for case in wanted
    ]
    op = SAMPLER if wanted and wanted[0].at_grid else SPATIAL
    script = Path(__file__).with_name("plugin_registry.py")
    done = subprocess.run(
        [sys.executable, str(script), str(plugin.library_path()), op, json.dumps(fields)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "STN_TENSORRT_DEVICE": "cpu"},
    )
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        return [Outcome("absent")] * len(wanted)
    return [Outcome("accepted" if made else "unsupported") for made in json.loads(done.stdout)]


Row = tuple[Case, dict[str, Outcome]]


def rows(wanted: Sequence[Case], runtimes: Sequence[str] = RUNTIMES) -> list[Row]:
    """Every case in every runtime."""
    found: list[Row] = [
        (case, {name: outcome(case, MEASURED[name]) for name in runtimes if name in MEASURED}) for case in wanted
    ]
    if "TensorRT-RTX" in runtimes:
        for case, cells in found:
            cells["TensorRT-RTX"] = builds(case)
    if "TensorRT, plugin" in runtimes:
        for (_, cells), made in zip(found, accepted(wanted), strict=True):
            cells["TensorRT, plugin"] = made
    return found


# ---- the table ---------------------------------------------------------------------------------------------------


def table(found: Sequence[Row], runtimes: Sequence[str] = RUNTIMES) -> str:
    """A Markdown table: one line for all paddings and conventions of a mode with the same verdict."""
    lines = [
        f"| rank | type | mode | padding | align_corners | {' | '.join(runtimes)} |",
        f"|---|---|---|---|---|{'---|' * len(runtimes)}",
    ]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for case, cells in found:
        verdicts = tuple(cells[name].verdict for name in runtimes)
        groups.setdefault((case.rank, case.dtype, case.sampler.mode, verdicts), []).append((case, cells))
    for (rank, dtype, mode, _), members in groups.items():
        paddings = [name for name in PADDING_MODES if any(case.sampler.padding_mode == name for case, _ in members)]
        corners = sorted({case.sampler.align_corners for case, _ in members})
        full = len(members) == len(paddings) * len(corners)
        worst = [max((cells[name] for _, cells in members), key=lambda cell: cell.error) for name in runtimes]
        which = [
            "any" if full and len(paddings) == 3 else ", ".join(paddings),
            "any" if full and len(corners) == 2 else ", ".join(map(str, corners)),
        ]
        if not full:
            which = ["; ".join(f"{c.sampler.padding_mode} {c.sampler.align_corners}" for c, _ in members), "(as named)"]
        cells_text = " | ".join(cell.text() for cell in worst)
        lines.append(f"| {rank}-D | {dtype} | {mode} | {which[0]} | {which[1]} | {cells_text} |")
    return "\n".join(lines)
