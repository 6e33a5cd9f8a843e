"""A lower bound of each case's time: the data it must move and the operations it must compute, at the machine's rates.

All rates are measured on the device of the benchmark, with the same number of threads. A copy is faster in a cache, so
the bandwidth for a number of bytes is the best among copies of at least as many. Inputs and outputs cross a GPU's bus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from stn_infer.benchmarking.request import Case
from stn_infer.sources.load import load_source

# The number of floats in the copies, from caches to main memory, and the side of the matrices.
_SMALLEST = 1 << 14
_LARGEST = {"cpu": 1 << 24, "cuda": 1 << 26}
_SIDE = {"cpu": 768, "cuda": 4096}
_REPEATS = 10


@dataclass(frozen=True)
class Rates:
    """The highest measured rates of a device.

    Attributes:
        copies: (bytes read and written, bytes per second) of copies on the device, in order of size.
        flops_per_s: operations per second of a float32 matrix product without TF32.
        upload_per_s: bytes per second from pinned memory to the device; None on a CPU.
        download_per_s: bytes per second from the device to pinned memory; None on a CPU.
    """

    copies: tuple[tuple[int, float], ...]
    flops_per_s: float
    upload_per_s: float | None = None
    download_per_s: float | None = None

    def bytes_per_s(self, count: int) -> float:
        """The best bandwidth of copies that move at least ``count`` bytes; that of the largest copy if none does."""
        return max((rate for moved, rate in self.copies if moved >= count), default=self.copies[-1][1])

    def better(self, other: Rates) -> Rates:
        """Combine two measurements of the same device: the higher value of each rate."""
        copies = tuple(
            (moved, max(rate, again)) for (moved, rate), (_, again) in zip(self.copies, other.copies, strict=True)
        )
        return Rates(
            copies,
            max(self.flops_per_s, other.flops_per_s),
            _higher(self.upload_per_s, other.upload_per_s),
            _higher(self.download_per_s, other.download_per_s),
        )


@dataclass(frozen=True)
class Bound:
    """The lower bound of a case's time.

    Attributes:
        model: the case's model.
        batch_size: the case's batch size.
        bytes: inputs, outputs and weights, once.
        flops: of convolutions and matrix products; a multiplication and an addition count as two.
        ms: the time of the slowest of these at the machine's rates.
        by: the slowest: ``bytes``, ``flops``, or ``bus`` (inputs to a GPU and outputs from it, in parallel).
    """

    model: str
    batch_size: int
    bytes: int
    flops: int
    ms: float
    by: str


def measure_rates(device: str, threads: int, largest: int | None = None, side: int | None = None) -> Rates:
    """Measure copies of up to ``largest`` floats and a product of square matrices of ``side``; the best of ten each."""
    torch.set_num_threads(threads)
    kind = device.partition(":")[0]
    largest, side = largest or _LARGEST[kind], side or _SIDE[kind]
    with nullcontext() if kind == "cpu" else torch.cuda.device(device):
        source, target = torch.rand(largest, device=device), torch.empty(largest, device=device)
        sizes = [size for power in range(0, 20, 2) if (size := _SMALLEST << power) <= largest] or [largest]
        copies = [_copy(source[:size], target[:size]) for size in sizes]
        a, b, product = (torch.rand(side, side, device=device) for _ in range(3))
        flops_per_s = 2 * side**3 / _best(lambda: torch.mm(a, b, out=product), kind != "cpu")
        if kind == "cpu":
            return Rates(tuple(copies), flops_per_s)
        pinned = torch.empty(largest, pin_memory=True)
        upload = source.nbytes / _best(lambda: target.copy_(pinned, non_blocking=True), True)
        download = source.nbytes / _best(lambda: pinned.copy_(source, non_blocking=True), True)
        return Rates(tuple(copies), flops_per_s, upload, download)


def _copy(source: Tensor, target: Tensor) -> tuple[int, float]:
    """Bytes read and written, and bytes per second."""
    moved = source.nbytes + target.nbytes
    return moved, moved / _best(lambda: target.copy_(source), source.is_cuda)


def bound(case: Case, name: str, batch_size: int, rates: Rates, boundary: str) -> Bound:
    """The bound of one case, counted on the model in PyTorch; at the ``host`` boundary it includes a GPU's bus."""
    from torch.utils.flop_counter import FlopCounterMode

    loaded = load_source(case.model, input_shapes=case.input_shapes)
    inputs = [torch.rand(batch_size, *shape) for shape in loaded.input_shapes]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        outputs = loaded.module(*inputs)
    found = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    fed, made = _bytes(inputs), _bytes(found)
    count = fed + made + _bytes(loaded.module.parameters())
    flops = int(counter.get_total_flops())
    takes = {"bytes": count / rates.bytes_per_s(count), "flops": flops / rates.flops_per_s}
    if boundary == "host" and rates.upload_per_s and rates.download_per_s:
        takes["bus"] = max(fed / rates.upload_per_s, made / rates.download_per_s)
    slowest = max(takes, key=takes.__getitem__)
    return Bound(name, batch_size, count, flops, takes[slowest] * 1e3, slowest)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _higher(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _best(call: Callable[[], Tensor], on_gpu: bool) -> float:
    """The fastest of ten calls in seconds; on a GPU between events, which excludes the launch."""
    times: list[float] = []
    for _ in range(_REPEATS + 1):  # the first one warms up
        if on_gpu:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            call()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after) / 1e3)
        else:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return min(times[1:])
