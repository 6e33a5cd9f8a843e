"""Ours and other people's tools, in one run of the project's own benchmark, beside what the machine could do at best.

    pip install 'stn-infer[peers]'
    python benchmarks/peers/compare.py -o benchmarks/results/peers-MACHINE.json

Warps (image and theta in, image out): PyTorch, torch.compile, kornia, onnxruntime on the plain export and on
what onnxslim and onnxsim make of it, and ours. Networks: the same without kornia, which has none. The method is
METHOD.md's: verified first, in turns, fresh processes.

The **bound** is what no implementation can beat: the bytes that must be read and written once, over the bandwidth of a
copy of as many bytes; or the floating-point operations over the rate of a matrix product; whichever takes longer. Both
rates are measured before and after the run, by the same number of threads, and the better one counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, os.getcwd())

from stn_infer.benchmarking.explain import ratio_text, speed_up
from stn_infer.benchmarking.judge import flags
from stn_infer.benchmarking.method import Method
from stn_infer.benchmarking.result import BenchResult, Case, Measurement
from stn_infer.benchmarking.run import make_request
from stn_infer.benchmarking.session import run_request
from stn_infer.sources.load import load_source

_WARPS = "benchmarks.peers.warps"
CASES = (
    Case(f"{_WARPS}:warp_digits", input_shapes=((1, 28, 28), (6,)), batch_sizes=(256,)),
    Case(f"{_WARPS}:warp_photos", input_shapes=((3, 224, 224), (6,)), batch_sizes=(64,)),
    Case(f"{_WARPS}:warp_features", input_shapes=((32, 28, 28), (6,)), batch_sizes=(64,)),
    Case("tutorial-stn-r", batch_sizes=(1, 64, 256)),
    Case("st-cnn-affine-rts", batch_sizes=(1, 64)),
)
# float32 coordinates are off by 1e-7 of the width: on photos that is 1.2e-5 of a grey value in every runtime.
_TOLERANCE = 5e-5
OURS = ("ort", "ort-fused", "fused")
PEERS = {
    "eager": "PyTorch",
    "compile": "torch.compile",
    "benchmarks.peers.kornia_warps:homography_warp": "kornia",
    "ort-plain": "onnxruntime, plain export",
    "benchmarks.peers.onnx_tools:onnxslim": "onnxruntime, onnxslim",
    "benchmarks.peers.onnx_tools:onnxsim": "onnxruntime, onnxsim",
}


@dataclass(frozen=True)
class Rates:
    """What the machine does at best: bytes a second of a copy, read and written; operations a second of a product."""

    bytes_per_s: float
    flops_per_s: float

    def better(self, other: Rates) -> Rates:
        """The higher of each."""
        return Rates(max(self.bytes_per_s, other.bytes_per_s), max(self.flops_per_s, other.flops_per_s))


@dataclass(frozen=True)
class Bound:
    """The least a case needs.

    Attributes:
        model, batch_size: the case.
        bytes: inputs, outputs and weights, once.
        flops: of convolutions and products; a multiplication and an addition are two.
        ms: what these take at the machine's rates, the longer of both.
        by: ``bytes`` or ``flops``.
    """

    model: str
    batch_size: int
    bytes: int
    flops: int
    ms: float
    by: str


def measure_rates(threads: int, size: int = 1 << 24) -> Rates:
    """A copy of ``size`` floats, and a product of matrices that fit into the cache; the best of ten."""
    torch.set_num_threads(threads)
    source = torch.rand(size)
    target = torch.empty_like(source)
    side = 768
    a, b = torch.rand(side, side), torch.rand(side, side)
    product = torch.empty(side, side)
    copy = _best(lambda: target.copy_(source))
    multiply = _best(lambda: torch.mm(a, b, out=product))
    return Rates(2 * source.nbytes / copy, 2 * side**3 / multiply)


def _best(call: Callable[[], object], repeats: int = 10) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def bound(case: Case, name: str, batch_size: int, rates: Rates) -> Bound:
    """The bound of one case, counted on the model in PyTorch."""
    from torch.utils.flop_counter import FlopCounterMode

    loaded = load_source(case.model, input_shapes=case.input_shapes)
    inputs = [torch.rand(batch_size, *shape) for shape in loaded.input_shapes]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        outputs = loaded.module(*inputs)
    found = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    count = sum(tensor.nbytes for tensor in (*inputs, *found, *loaded.module.parameters()))
    flops = int(counter.get_total_flops())
    by_bytes, by_flops = count / rates.bytes_per_s * 1e3, flops / rates.flops_per_s * 1e3
    longer = "bytes" if by_bytes >= by_flops else "flops"
    return Bound(name, batch_size, count, flops, max(by_bytes, by_flops), longer)


def table(result: BenchResult, bounds: list[Bound]) -> str:
    """Markdown: a row a case and peer: the bound, the fastest of ours by name, theirs, and the ratio with its interval.

    The ratio is paired within the rounds, as in the result's own table; a row that is not steady bears a star.
    """
    lines = [
        "| case | bound, ms | fastest of ours, ms | peer | theirs, ms | theirs / ours |",
        "|---|---|---|---|---|---|",
    ]
    for least in bounds:
        rows = {
            row.variant: row
            for row in result.measurements
            if (row.model, row.batch_size) == (least.model, least.batch_size)
        }
        timed = [rows[name] for name in OURS if name in rows and rows[name].status == "timed"]
        ours = min(timed, key=_median, default=None)
        own = "none was timed" if ours is None else f"{_figure(ours)} ({ours.variant})"
        for variant, peer in PEERS.items():
            row = rows.get(variant)
            if row is None or row.status != "timed":
                theirs, ratio = (row.reason if row else "not run"), ""
            else:
                theirs, ratio = _figure(row), "" if ours is None else ratio_text(speed_up(ours, row))
            case = f"{least.model}, batch {least.batch_size}"
            lines.append(f"| {case} | {least.ms:.3g} ({least.by}) | {own} | {peer} | {theirs} | {ratio} |")
    return "\n".join(lines)


def _figure(row: Measurement) -> str:
    return f"{_median(row):.3g}{' *' if flags(row) else ''}"


def _median(row: Measurement) -> float:
    return float("inf") if row.median_ms is None else row.median_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="the result, as `stn-infer bench -o` writes it")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", type=int, action="append", help="only these, by number")
    arguments = parser.parse_args()
    cases = [CASES[index] for index in arguments.case] if arguments.case else list(CASES)
    method = Method(rounds=arguments.rounds, seconds=arguments.seconds)
    request = make_request(cases, (*OURS, *PEERS), "cpu", arguments.threads, _TOLERANCE, method)
    rates = measure_rates(arguments.threads)
    command = " ".join(["python", *sys.argv])
    result = run_request(request, output=arguments.output, command=command, say=lambda text: print(text, flush=True))
    rates = rates.better(measure_rates(arguments.threads))
    bounds = [
        bound(model.case, model.name, batch, rates) for model in result.models for batch in model.case.batch_sizes
    ]
    if arguments.output is not None:
        beside = arguments.output.with_name(f"{arguments.output.stem}-bounds.json")
        content = {"schema_version": 1, "rates": asdict(rates), "bounds": [asdict(least) for least in bounds]}
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"copy {rates.bytes_per_s / 1e9:.1f} GB/s, product {rates.flops_per_s / 1e9:.0f} GFLOP/s")
    print(table(result, bounds))


if __name__ == "__main__":
    main()
