"""The fused warp on a GPU, against PyTorch eager and compiled, onnxruntime's CUDA provider, and the copy bandwidth.

    PYTHONPATH=. python benchmarks/gpu.py                       # writes benchmarks/results/gpu-<name>.json
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --tiny   # the same steps at small sizes, without a GPU

Affine, bilinear, zeros. Every answer is checked against float64 before anything is timed. What is compared takes
turns in random order in one process. Two times are taken of each call: on the device, between CUDA events, with the
queue filled beforehand so that launches cost nothing, and the level-2 cache overwritten before; and as its caller
sees it, from the call to the end of its work. Other people's warps on a GPU are in benchmarks/peers/compare.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_infer import plugin
from stn_infer.errors import StnInferError
from stn_infer.fused import spatial_transformer, usable
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Affine

RESULTS = Path(__file__).resolve().parent / "results"
# fp32 coordinates are off by 1e-7 of the width, which random neighbors turn into that of their difference.
_TOLERANCES = {torch.float32: 2e-4, torch.float16: 2e-3}

Shape = tuple[int, int, int, int]
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Sizes:
    """What is measured: shapes [N, C, H, W] of warps and of the bandwidth's warp, and batches of a whole STN."""

    warps: tuple[Shape, ...] = ((1024, 1, 28, 28), (64, 3, 224, 224), (256, 64, 28, 28))
    bandwidth: Shape = (256, 3, 224, 224)
    batches: tuple[int, ...] = (1, 256)


TINY = Sizes(((4, 1, 8, 8), (2, 3, 12, 9)), (2, 3, 16, 16), (1, 3))


@dataclass(frozen=True)
class Row:
    """One variant of one case: medians in milliseconds, its largest error, and the samples behind the medians."""

    case: str
    variant: str
    device_ms: float
    latency_ms: float
    error: float
    device_samples_ms: tuple[float, ...] = field(repr=False)
    latency_samples_ms: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Figure:
    """A ratio, and what is asked of it."""

    name: str
    value: float
    target: float

    def __str__(self) -> str:
        return f"{self.name:64} {self.value:7.2f}  target {self.target:5.2f}  {'ok' if self.reached else 'MISSED'}"

    @property
    def reached(self) -> bool:
        """Whether it is at least what is asked."""
        return self.value >= self.target


@dataclass(frozen=True)
class Work:
    """The variants of one case, its right answer in float64, and what has to stay in memory meanwhile."""

    case: str
    calls: dict[str, Call]
    expected: Tensor
    tolerance: float
    kept: tuple[Tensor, ...] = ()


class Timer:
    """Times calls on a device.

    Args:
        device: ``cuda`` or ``cpu``; on a CPU both times are the same.
        samples: of each variant.
    """

    def __init__(self, device: torch.device, samples: int) -> None:
        self._device, self._samples = device, samples
        self._cuda = device.type == "cuda"
        cache = torch.cuda.get_device_properties(device).L2_cache_size if self._cuda else 0
        self._filler = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def time(self, calls: dict[str, Call], seed: int = 0) -> dict[str, tuple[list[float], list[float]]]:
        """(device times, latencies) in milliseconds of each of ``calls``, which take turns in random order."""
        for call in calls.values():
            for _ in range(10):
                call()
        found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
        order, generator = list(calls), random.Random(seed)
        for _ in range(self._samples):
            generator.shuffle(order)
            for name in order:
                found[name][1].append(self._latency(calls[name]))
                found[name][0].append(self._on_device(calls[name]) if self._cuda else found[name][1][-1])
        return found

    def _latency(self, call: Call) -> float:
        self._settle()
        start = time.perf_counter()
        call()
        self._wait()
        return (time.perf_counter() - start) * 1e3

    def _on_device(self, call: Call) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._settle(busy=True)
        before.record()
        call()
        after.record()
        self._wait()
        return float(before.elapsed_time(after))

    def _settle(self, busy: bool = False) -> None:
        """Overwrite the cache; ``busy``: and keep the device at work until everything is in its queue."""
        self._wait()
        if busy:
            torch.cuda._sleep(2_000_000)  # cycles: about a millisecond
        self._filler.zero_()
        if not busy:
            self._wait()

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)


def graph_of(call: Call, device: torch.device) -> Call:
    """``call`` as a CUDA graph on the tensors that it was given; on a CPU, ``call`` itself."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def canonical_basis(height: int, width: int, device: torch.device) -> Tensor:
    """The rows x, y, 1 at pixel centers, [3, height * width]."""
    y, x = torch.meshgrid(*((2 * torch.arange(size) + 1) / size - 1 for size in (height, width)), indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), torch.ones(x.numel())]).to(device)


def inputs(shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random images, and maps near the identity [N, 2, 3]."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator).to(device, dtype)
    return image, (torch.eye(2, 3) + 0.15 * torch.randn(shape[0], 2, 3, generator=generator)).to(device)


def exact(image: Tensor, theta: Tensor) -> Tensor:
    """The warp in float64."""
    grid = F.affine_grid(theta.double(), list(image.shape), align_corners=False)
    return F.grid_sample(image.double(), grid, align_corners=False)


def name_of(shape: Shape, dtype: torch.dtype = torch.float32) -> str:
    """A case's name."""
    return f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"


def warp(shape: Shape, device: torch.device, compiled: bool = True) -> Work:
    """One affine warp: fused, eager, and eager compiled."""
    image, theta = inputs(shape, device)
    basis, size = canonical_basis(*shape[2:], device), list(shape)

    def eager() -> Tensor:
        return F.grid_sample(image, F.affine_grid(theta, size, align_corners=False), align_corners=False)

    calls: dict[str, Call] = {
        "fused": lambda: spatial_transformer(image, theta, basis, "affine", shape[2:]),
        "eager": eager,
    }
    if compiled:
        calls["compile"] = torch.compile(eager, dynamic=False)
    return Work(name_of(shape), calls, exact(image, theta), _TOLERANCES[torch.float32])


def bandwidth(shape: Shape, device: torch.device, dtype: torch.dtype) -> Work:
    """The fused warp beside a copy of as many bytes as it has to move at least: each image read and written once."""
    image, theta = inputs(shape, device, dtype)
    basis, target = canonical_basis(*shape[2:], device), torch.empty_like(image)
    calls: dict[str, Call] = {
        "fused": lambda: spatial_transformer(image, theta, basis, "affine", shape[2:]),
        "copy": lambda: target.copy_(image),
    }
    return Work(f"bandwidth {name_of(shape, dtype)}", calls, exact(image, theta), _TOLERANCES[dtype])


def whole(batch: int, device: torch.device, compiled: bool = True) -> Work:
    """The trained tutorial STN as a whole: eager as PyTorch runs it, fused, compiled, and fused in a CUDA graph."""
    from stn_infer.sources.load import load_source

    loaded = load_source("tutorial-stn-r")
    plain: Any = loaded.module.eval()
    image = torch.rand(batch, *loaded.input_shapes[0], generator=torch.Generator().manual_seed(0)).to(device)
    expected = copy.deepcopy(plain).double().to(device)(image.double())
    plain = plain.to(device)
    # The same layers around this project's transformer: the tutorial's own code calls affine_grid and grid_sample.
    localization = torch.nn.Sequential(plain.localization, plain.head)
    transformer = SpatialTransformer(
        localization, Affine(), loaded.input_shapes[0][1:], identity_init=False, fused=True
    ).to(device)
    fused = torch.nn.Sequential(transformer, plain.classifier).eval()
    calls: dict[str, Call] = {
        "eager": lambda: plain(image),
        "fused": lambda: fused(image),
        "graph, eager": graph_of(lambda: plain(image), device),
        "graph, fused": graph_of(lambda: fused(image), device),
    }
    if compiled:
        program = torch.compile(plain, dynamic=False)
        calls["compile"] = lambda: program(image)
    return Work(f"tutorial-stn, batch {batch}", calls, expected, 1e-3 * float(expected.abs().max()))


def in_onnxruntime(shape: Shape, device: torch.device) -> Work:
    """One portable node in onnxruntime on this device, by the function in the file and by the op; tensors stay put."""
    import numpy as np
    import onnxruntime as ort
    from warp import affine_node

    from stn_infer.backends.ort import cuda_problem

    if device.type == "cuda" and (problem := cuda_problem()) is not None:
        raise StnInferError(problem)
    model = affine_node(shape).SerializeToString()
    image, theta = inputs(shape, device)
    provider: Any = "CPUExecutionProvider"
    if device.type == "cuda":
        provider = ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0})

    def bound(library: bool) -> Call:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if library:
            options.register_custom_ops_library(str(plugin.library_path()))
        session = ort.InferenceSession(model, options, providers=[provider])
        output, binding = torch.empty(shape, device=device), session.io_binding()
        where = (device.type, device.index or 0, np.float32)
        for name, tensor in (("input", image), ("theta", theta)):
            binding.bind_input(name, *where, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("output", *where, shape, output.data_ptr())

        def run() -> Tensor:
            session.run_with_iobinding(binding)  # waits for its own stream
            return output

        return run

    calls = {"function": bound(False), "op": bound(True)}
    # The memory of images and maps is known to the bindings by its address alone.
    work = Work(f"onnxruntime {name_of(shape)}", calls, exact(image, theta), _TOLERANCES[torch.float32])
    return replace(work, kept=(image, theta))


def measure(work: Work, timer: Timer) -> list[Row]:
    """Check, time and print the variants of one case.

    Raises:
        SystemExit: an answer is wrong.
    """
    errors = {}
    with torch.inference_mode():
        for name, call in work.calls.items():
            if name != "copy":
                errors[name] = float((call().double() - work.expected).abs().max())
                if not errors[name] <= work.tolerance:
                    raise SystemExit(f"{work.case}, {name}: off by {errors[name]:.1e}, no time is taken")
        times = timer.time(work.calls)
    rows = []
    for name, (on_device, latency) in times.items():
        error = errors.get(name, 0.0)
        rows.append(Row(work.case, name, median(on_device), median(latency), error, tuple(on_device), tuple(latency)))
        print(
            f"{work.case:40} {name:14} device {rows[-1].device_ms:9.4f} ms  latency {rows[-1].latency_ms:9.4f} ms  "
            f"error {error:.1e}",
            flush=True,
        )
    return rows


def cases(sizes: Sizes, device: torch.device, compiled: bool) -> Iterator[Callable[[], Work]]:
    """Everything that is measured, made one after the other so that memory is free again."""
    for shape in sizes.warps:
        yield lambda shape=shape: warp(shape, device, compiled=compiled)  # type: ignore[misc]
    for dtype in (torch.float32, torch.float16):
        yield lambda dtype=dtype: bandwidth(sizes.bandwidth, device, dtype)  # type: ignore[misc]
    for batch in sizes.batches:
        yield lambda batch=batch: whole(batch, device, compiled)  # type: ignore[misc]
    for shape in sizes.warps:
        yield lambda shape=shape: in_onnxruntime(shape, device)  # type: ignore[misc]


def figures(rows: list[Row]) -> list[Figure]:
    """The ratios that are asked for: warps and bandwidth on the device, whole models and onnxruntime as callers see."""
    found = []
    for case in dict.fromkeys(row.case for row in rows):
        of = {row.variant: row for row in rows if row.case == case}
        if case.startswith("bandwidth"):
            ratio = of["copy"].device_ms / of["fused"].device_ms
            found.append(Figure(f"{case}: share of the copy bandwidth", ratio, 0.8))
        elif case.startswith("onnxruntime"):
            ratio = of["function"].latency_ms / of["op"].latency_ms
            found.append(Figure(f"{case}: without the op / with it", ratio, 1.0))
        elif case.startswith("tutorial"):
            ratio = of["eager"].latency_ms / of["graph, fused"].latency_ms
            found.append(
                Figure(f"{case}: eager / fused in a CUDA graph", ratio, 5.0 if case.endswith(" batch 1") else 2.0)
            )
        else:
            for other, target in (("eager", 3.0), ("compile", 1.5)):
                if other in of:
                    ratio = of[other].device_ms / of["fused"].device_ms
                    found.append(Figure(f"{case}: {other} / fused", ratio, target))
    return found


def gpu_of(device: torch.device) -> dict[str, Any]:
    """The device as a reader of figures needs to know it."""
    if device.type != "cuda":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "sm": f"sm{properties.major}{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "multiprocessors": properties.multi_processor_count,
    }


def versions() -> dict[str, str]:
    """PyTorch, CUDA and what else times depend on."""
    found = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda), "plugin": str(plugin.info().version)}
    try:
        import onnxruntime

        found["onnxruntime"] = str(onnxruntime.__version__)
    except ImportError:
        pass
    return found


def result_path(name: str) -> Path:
    """``benchmarks/results/gpu-<name>.json`` for a GPU's name."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "")).strip("-")
    return RESULTS / f"gpu-{words}.json"


def main(argv: list[str] | None = None) -> int:
    """Run everything; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--samples", type=int, default=100, help="of each variant")
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/gpu-<name>.json, for a GPU")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{device} was asked for, PyTorch {torch.__version__} finds no usable GPU")
    if not usable(torch.empty(1, device=device)):
        raise SystemExit(f"the plugin library has no kernels for {device.type}: {plugin.info().problem or 'no CUDA'}")

    torch.backends.cudnn.allow_tf32 = False  # as in this project's own backends
    timer, rows, notes = Timer(device, arguments.samples), [], []
    for case in cases(TINY if arguments.tiny else Sizes(), device, not arguments.no_compile):
        try:
            with torch.inference_mode():
                work = case()
        except (ImportError, StnInferError) as error:  # onnxruntime alone may be missing here
            notes.append(f"onnxruntime is left out: {error}")
            continue
        rows += measure(work, timer)
    wanted = figures(rows)
    print(*dict.fromkeys(notes), *wanted, sep="\n")
    path = arguments.output or (result_path(gpu_of(device)["name"]) if device.type == "cuda" else None)
    if path is not None:
        result = {
            "schema_version": 1,
            "command": " ".join(["python", *(sys.argv if argv is None else ["benchmarks/gpu.py", *argv])]),
            "gpu": gpu_of(device),
            "versions": versions(),
            "samples": arguments.samples,
            "notes": list(dict.fromkeys(notes)),
            "figures": [{**asdict(figure), "reached": figure.reached} for figure in wanted],
            "rows": [asdict(row) for row in rows],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
