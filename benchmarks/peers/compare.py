"""Compare stn-infer with other libraries in one run of the project's own benchmark, with a lower bound of each time.

    pip install -e '.[peers]'               # and [peers-gpu] for DALI and CV-CUDA
    python benchmarks/peers/compare.py -o benchmarks/results/peers-MACHINE.json
    python benchmarks/peers/compare.py --device cuda --boundary device -o benchmarks/results/peers-GPU.json

Warps (image and theta in, image out) run in PyTorch, torch.compile, kornia, DALI, CV-CUDA (on a GPU), onnxruntime on
the plain export and on the files that onnxslim and onnxsim make from it, and stn-infer. Networks run in the same
libraries, except kornia, DALI and CV-CUDA, which have none. METHOD.md describes the method: verification first,
variants in turns, fresh processes.

The **lower bound** of a case's time is the longest of: the bytes that must be read and written once, over the bandwidth
of a copy of as many bytes; the floating-point operations, over the rate of a matrix product; and, between a GPU and
main memory, inputs and outputs over the bandwidth of the bus. Rates are measured on the same device before and after
the run, with the same number of threads, and the higher ones count; see bounds.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.bounds import Bound, Rates, bound, measure_rates
from stn_infer.api.bench import make_request, measure
from stn_infer.backends.device import Device
from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.report.speedup import ratio_text, reported
from stn_infer.benchmarking.request import Case, Method
from stn_infer.benchmarking.result import BenchResult

_WARPS = "benchmarks.peers.warps"
CASES = (
    Case(f"{_WARPS}:warp_digits", input_shapes=((1, 28, 28), (6,)), batch_sizes=(256,)),
    Case(f"{_WARPS}:warp_photos", input_shapes=((3, 224, 224), (6,)), batch_sizes=(16,)),
    Case(f"{_WARPS}:warp_features", input_shapes=((32, 28, 28), (6,)), batch_sizes=(64,)),
    Case("tutorial-stn-r", batch_sizes=(1, 64, 256)),
    Case("st-cnn-affine-rts", batch_sizes=(1, 64)),
)
# float32 coordinates have an error of 1e-7 of the width, which is 1.2e-5 of a gray value on photos in every runtime
_TOLERANCE = 5e-5
_OURS = ("ort", "ort-fused", "fused", "benchmarks.peers.ours:fused_warp")
_OURS_ON_A_GPU = ("ort-fused-graph", "fused-graph", "benchmarks.peers.ours:fused_warp_graph")
_PEERS = {
    "eager": "PyTorch",
    "compile": "torch.compile",
    "benchmarks.peers.kornia_warps:homography_warp": "kornia",
    "benchmarks.peers.dali_warps:warp_affine": "DALI",
    "ort-plain": "onnxruntime, plain export",
    "benchmarks.peers.onnx_tools:onnxslim": "onnxruntime, onnxslim",
    "benchmarks.peers.onnx_tools:onnxsim": "onnxruntime, onnxsim",
}
_PEERS_ON_A_GPU = {
    "graph": "PyTorch in a CUDA graph",
    "benchmarks.peers.cvcuda_warps:warp_affine": "CV-CUDA",
}
_WARPS_ALONE = ("kornia_warps:homography_warp", "dali_warps:warp_affine", "cvcuda_warps:warp_affine")


def ours(device: str) -> tuple[str, ...]:
    """stn-infer's variants on ``cpu`` or ``cuda:N``."""
    return _OURS if device == "cpu" else _OURS + _OURS_ON_A_GPU


def peers(device: str) -> dict[str, str]:
    """Other libraries' variants on ``cpu`` or ``cuda:N``, and their names in the table."""
    return _PEERS if device == "cpu" else _PEERS | _PEERS_ON_A_GPU


def table(result: BenchResult, bounds: list[Bound]) -> str:
    """A Markdown table, one row per case and library: lower bound, our fastest variant, its time, the speedup.

    The speedup is paired within rounds, as in the result's own table; a star marks an unstable measurement. Libraries
    that only have warps have no rows for networks.
    """
    lines = [
        "| case | lower bound, ms | fastest of ours, ms | library | its time, ms | our speedup over it (95 % CI) |",
        "|---|---|---|---|---|---|",
    ]
    networks = {model.name for model in result.models if not model.case.model.startswith(_WARPS)}
    for least in bounds:
        rows = {
            row.variant: row
            for row in result.measurements
            if (row.model, row.batch_size) == (least.model, least.batch_size)
        }
        timed = [rows[name] for name in ours(result.request.device) if name in rows and rows[name].status == "timed"]
        best = min(timed, key=_median, default=None)
        own = "none was timed" if best is None else f"{_figure(best)} ({best.variant.rpartition(':')[2]})"
        for variant, peer in peers(result.request.device).items():
            if least.model in networks and variant.removeprefix("benchmarks.peers.") in _WARPS_ALONE:
                continue
            row = rows.get(variant)
            if row is None or row.status != "timed":
                theirs, ratio = (row.reason if row else "not run"), ""
            else:
                found = None if best is None else reported(best, row)
                theirs, ratio = _figure(row), ratio_text(found) if found else "" if best is None else "unstable"
            case = f"{least.model}, batch {least.batch_size}"
            lines.append(f"| {case} | {least.ms:.3g} ({least.by}) | {own} | {peer} | {theirs} | {ratio} |")
    return "\n".join(lines)


def _figure(row: Measurement) -> str:
    return f"{_median(row):.3g}{' *' if row.flags else ''}"


def _median(row: Measurement) -> float:
    return float("inf") if row.median_ms is None else row.median_ms


def _rates(device: str, threads: int) -> Rates:
    """Measure in a separate process, whose GPU memory and threads are released when it ends."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_rates, device, threads).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="the result, as `stn-infer bench -o` writes it")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--boundary", choices=["host", "device"], default="host", help="what a call spans; METHOD.md")
    parser.add_argument("--case", type=int, action="append", help="measure only this case, by index; repeatable")
    arguments = parser.parse_args()
    cases = [CASES[index] for index in arguments.case] if arguments.case else list(CASES)
    method = Method(rounds=arguments.rounds, seconds=arguments.seconds, boundary=arguments.boundary)
    device, threads = str(Device.parse(arguments.device)), arguments.threads
    if device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"{device} was asked for, PyTorch {torch.__version__} finds no usable GPU")
    request = make_request(cases, (*ours(device), *peers(device)), device, threads, _TOLERANCE, method)
    rates = _rates(device, threads)
    command = " ".join(["python", *sys.argv])
    result = measure(request, output=arguments.output, command=command, say=lambda text: print(text, flush=True))
    rates = rates.better(_rates(device, threads))
    bounds = [
        bound(model.case, model.name, batch, rates, arguments.boundary)
        for model in result.models
        for batch in model.case.batch_sizes
    ]
    if arguments.output is not None:
        beside = arguments.output.with_name(f"{arguments.output.stem}-bounds.json")
        content = {"schema_version": 2, "rates": asdict(rates), "bounds": [asdict(least) for least in bounds]}
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    bandwidths = ", ".join(f"{rate / 1e9:.0f} at {moved / 2**20:.3g} MiB" for moved, rate in rates.copies)
    print(f"copies, GB/s: {bandwidths}; product: {rates.flops_per_s / 1e9:.0f} GFLOP/s")
    print(table(result, bounds))


if __name__ == "__main__":
    main()
