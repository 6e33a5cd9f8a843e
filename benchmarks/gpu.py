"""Measure the fused warp on a GPU against eager and compiled PyTorch, onnxruntime's CUDA provider and a copy.

    PYTHONPATH=. python benchmarks/gpu.py                       # writes benchmarks/results/gpu-<name>.jsonl
    PYTHONPATH=. python benchmarks/gpu.py --part warps --no-compile   # the kernels alone: every kind and layout
    PYTHONPATH=. python benchmarks/gpu.py --once                # each kernel once, for a profiler
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --tiny   # the same steps at small sizes, without a GPU

`stn-infer bench --suite benchmarks/suites/gpu.toml` measures whole models in fresh processes, and
benchmarks/peers/compare.py other libraries; this script needs one minute, those need many. It verifies every output
against float64 before it times it. Variants take turns in random order in one process. Each call is timed twice: on the
device, between CUDA events, with the queue filled beforehand so that launches do not count, and the level-2 cache
overwritten; and on the host, from the call to the end of its work.

Results are printed and written after each case, a line of JSON for each row and ratio, so that a time limit loses only
the remaining cases. With ``--run`` and ``--step`` of an earlier call, only cases are measured that it has not begun.
Exit code 1: a case failed; the others were still measured. Exit code 3: a case broke the device's context, as by an
illegal address; nothing more can be measured in this process.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_cases import PARTS, cases
from benchmarks.gpu_check.records import Records, words_of
from benchmarks.gpu_warps import WARPS, Call, Work, variants
from stn_infer import plugin
from stn_infer.errors import MissingDependencyError, ModelError, StnInferError, one_line
from stn_infer.proto.session import import_onnxruntime

RESULTS = Path(__file__).resolve().parent / "results"
_BROKEN = 3


@dataclass(frozen=True)
class Row:
    """One variant of one case: medians in milliseconds, its error, and all samples.

    ``error`` is the largest absolute error; for a nearest sampler, the share of values from another pixel.
    """

    case: str
    variant: str
    device_ms: float
    latency_ms: float
    error: float
    device_samples_ms: tuple[float, ...] = field(repr=False)
    latency_samples_ms: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Figure:
    """A ratio and its target."""

    name: str
    value: float
    target: float

    def __str__(self) -> str:
        return f"{self.name:64} {self.value:7.2f}  target {self.target:5.2f}  {'ok' if self.reached else 'MISSED'}"

    @property
    def reached(self) -> bool:
        """Whether the ratio is at least its target."""
        return self.value >= self.target


class Timer:
    """Times calls on a device.

    Args:
        device: ``cuda`` or ``cpu``; on a CPU both times are the same.
        samples: the number of samples of each variant.
    """

    def __init__(self, device: torch.device, samples: int) -> None:
        self._device, self._samples = device, samples
        self._cuda: Any = torch.cuda if device.type == "cuda" else None
        cache = self._cuda.get_device_properties(device).L2_cache_size if self._cuda else 0
        self._filler = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def time(self, calls: Mapping[str, Call], seed: int = 0) -> dict[str, tuple[list[float], list[float]]]:
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
        before, after = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._settle(busy=True)
        before.record()
        call()
        after.record()
        self._wait()
        return float(before.elapsed_time(after))

    def _settle(self, busy: bool = False) -> None:
        """Overwrite the cache; ``busy``: also keep the device busy until everything is in its queue."""
        self._wait()
        if busy:
            self._cuda._sleep(2_000_000)  # cycles: about a millisecond
        self._filler.zero_()
        if not busy:
            self._wait()

    def _wait(self) -> None:
        if self._cuda:
            self._cuda.synchronize(self._device)


def figures_of(work: Work, rows: list[Row]) -> list[Figure]:
    """The ratios with targets, for the variants that were measured."""
    found = {row.variant: row.device_ms if work.on_device else row.latency_ms for row in rows}
    names = {"copy": "share of the copy bandwidth"}
    return [
        Figure(f"{work.case}: {names.get(other, f'speedup over {other}')}", found[other] / found[work.ours], least)
        for other, least in work.targets.items()
        if other in found
    ]


def measure(work: Work, timer: Timer) -> list[Row]:
    """Verify, time and print the variants of one case.

    Raises:
        ModelError: an output is wrong; no variant is timed.
    """
    errors = {name: work.error_of(call()) for name, call in work.calls.items() if name != "copy"}
    limit = 1e-3 if work.nearest else work.tolerance
    for name, error in errors.items():
        if not error <= limit:
            raise ModelError(f"{name} is off by {error:.1e}, expected at most {limit:.1e}: not timed")
    rows = []
    for name, (on_device, latency) in timer.time(work.calls).items():
        error = errors.get(name, 0.0)
        row = Row(work.case, name, median(on_device), median(latency), error, tuple(on_device), tuple(latency))
        rows.append(row)
        rate = f"{work.bytes / row.device_ms / 1e9:6.3f} TB/s" if work.bytes else ""
        print(
            f"{work.case:48} {name:14} device {row.device_ms:9.4f} ms  latency {row.latency_ms:9.4f} ms  "
            f"error {error:.1e} {rate}",
            flush=True,
        )
    return rows


def run_once(device: torch.device, tiny: bool, wanted: Sequence[str]) -> None:
    """Call the kernel of every warp once, for a profiler."""
    for case in WARPS:
        case = case.tiny() if tiny else case
        if is_wanted(case.name, wanted):
            fused, *_ = variants(case, device)
            fused()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            print(case.name, flush=True)


def is_wanted(name: str, wanted: Sequence[str]) -> bool:
    """Whether a case's name contains one of ``wanted``; of none, all are."""
    return not wanted or any(part in name for part in wanted)


def is_broken(device: torch.device) -> bool:
    """Whether nothing can be computed any more on a GPU in this process."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def gpu_of(device: torch.device) -> dict[str, Any]:
    """A description of the device."""
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
    """The versions of PyTorch, CUDA, the plugin library and onnxruntime."""
    found = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda), "plugin": str(plugin.info().version)}
    with suppress(MissingDependencyError):
        found["onnxruntime"] = str(import_onnxruntime().__version__)
    return found


def result_path(name: str) -> Path:
    """``benchmarks/results/gpu-<name>.jsonl`` for a GPU's name."""
    return RESULTS / f"gpu-{words_of(name)}.jsonl"


def measure_all(
    parts: tuple[str, ...], timer: Timer, device: torch.device, records: Records | None, arguments: argparse.Namespace
) -> int:
    """Measure the cases of ``parts`` and write what is found; the exit code."""
    failed, begun = False, set() if records is None else records.begun()

    def write(kind: str, case: str, **values: object) -> None:
        if records is not None:
            records.append(kind, case, **values)

    for name, make in cases(parts, device, tiny=arguments.tiny, compiled=not arguments.no_compile):
        if name in begun or not is_wanted(name, arguments.case or ()):
            continue
        write("begin", name)
        try:
            with torch.inference_mode():
                work = make()
                rows = measure(work, timer)
        except (ImportError, MissingDependencyError) as error:  # a GPU machine may have only PyTorch
            print(f"{name} is omitted: {error}", flush=True)
            write("note", name, reason=str(error))
        except Exception as error:  # out of GPU memory, a compiler error: the other cases continue
            reason = str(error) if isinstance(error, StnInferError) else one_line(error)
            print(f"FAILED {name}: {reason}", flush=True)
            write("failure", name, reason=reason)
            failed = True
            if is_broken(device):
                return _BROKEN
        else:
            for row in rows:
                write("row", name, **{key: value for key, value in asdict(row).items() if key != "case"})
            for figure in figures_of(work, rows):
                print(figure, flush=True)
                write("figure", name, **asdict(figure), reached=figure.reached)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run everything; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; repeatable (default: all)")
    parser.add_argument("--case", action="append", help="only cases whose names contain this; repeatable")
    parser.add_argument("--once", action="store_true", help="call each kernel once, for a profiler, without timing")
    parser.add_argument("--tiny", action="store_true", help="use small sizes")
    parser.add_argument("--no-compile", action="store_true", help="omit torch.compile")
    parser.add_argument("--samples", type=int, default=100, help="samples of each variant")
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/gpu-<name>.jsonl, for a GPU")
    parser.add_argument("--run", help="the run's name in the file (default: the time)")
    parser.add_argument("--step", default="gpu.py", help="the step's name in the file")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{device} was asked for, PyTorch {torch.__version__} finds no usable GPU")
    try:
        plugin.require(device.type, device.index or 0)
    except MissingDependencyError as error:
        raise SystemExit(str(error)) from None
    if arguments.once:
        run_once(device, arguments.tiny, arguments.case or ())
        return 0

    torch.backends.cudnn.allow_tf32 = False  # as in this project's own backends
    path = arguments.output or (result_path(gpu_of(device)["name"]) if device.type == "cuda" else None)
    records = None
    if path is not None:
        records = Records(path, arguments.run or time.strftime("%Y-%m-%dT%H:%M:%S"), arguments.step)
        records.append(
            "head", gpu=gpu_of(device), versions=versions(), samples=arguments.samples, command=_command(argv)
        )
    return measure_all(tuple(arguments.part or PARTS), Timer(device, arguments.samples), device, records, arguments)


def _command(argv: list[str] | None) -> str:
    return " ".join(["python", *(sys.argv if argv is None else ["benchmarks/gpu.py", *argv])])


if __name__ == "__main__":
    sys.exit(main())
