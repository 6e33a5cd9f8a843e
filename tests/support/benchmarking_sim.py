"""Backends whose latencies are known, on a clock that only their calls move, for the whole benchmark harness."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stn_infer.benchmarking.harness.processes import Crashed
from stn_infer.benchmarking.harness.round import RoundReport, RoundTask, run_round
from stn_infer.benchmarking.harness.session import measure
from stn_infer.benchmarking.harness.variant import BoundVariant, Inspection, OpenVariant
from stn_infer.benchmarking.machine.monitor import Reading
from stn_infer.benchmarking.record import SamplerPlacement
from stn_infer.benchmarking.request import Case, Method, Request
from stn_infer.benchmarking.result import BenchResult, Model
from stn_infer.errors import StnInferError
from stn_infer.reference.comparison import Expected

#: (number of the call since the backend was opened, random numbers) to milliseconds.
Latency = Callable[[int, np.random.Generator], float]


class Clock:
    """A clock in seconds that moves when a call takes time, or when somebody waits."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


@dataclass
class Simulated:
    """A backend: what it takes, what it gives and where it says that it ran."""

    latency: Latency
    load_s: float = 0.5
    first_call_ms: float = 0.0
    off_by: float = 0.0
    place: str = "CPUExecutionProvider"
    error: StnInferError | None = None
    crashes_in_round: int | None = None


class Quiet:
    """A machine on which nothing happens, but for moments at which it throttles."""

    def __init__(self, throttled: Callable[[float], bool] = lambda at: False) -> None:
        self._throttled = throttled

    def read(self, at_s: float) -> Reading:
        return Reading(at_s, gpu_throttle=("hardware slowdown",) if self._throttled(at_s) else ())


@dataclass
class Simulation:
    """Workers for rounds (see stn_infer.benchmarking.harness.session) without processes or runtimes."""

    backends: Mapping[str, Simulated]
    batch_sizes: tuple[int, ...] = (4,)
    seed: int = 0
    round_factor: Callable[[int, np.random.Generator], float] = lambda number, generator: 1.0
    monitor: Quiet = field(default_factory=Quiet)
    device: str = "cpu"
    stop_after: int | None = None
    rounds_run: list[int] = field(default_factory=list)
    processes: list[tuple[str, ...]] = field(default_factory=list)
    others: float = 0.0
    elapsed: float = 0.0  # seconds of all rounds so far

    def prepare(self, request: Request, say: Callable[[str], None]) -> tuple[Model, ...]:
        hashes = {str(batch): f"inputs {batch}" for batch in self.batch_sizes}
        return tuple(
            Model(
                name=case.model,
                case=case,
                input_shapes=((3,),),
                inputs="random",
                inputs_sha256=hashes,
                reference="float64 eager",
                tolerance=1e-5,
                sha256={"weights": "w"},
                build_s={},
            )
            for case in request.cases
        )

    def run(self, case: int, task: RoundTask, say: Callable[[str], None]) -> RoundReport:
        number = task.number
        if self.stop_after is not None and len(self.rounds_run) >= self.stop_after:
            raise KeyboardInterrupt
        for name in task.variants:
            if self.backends[name].crashes_in_round == number:
                raise Crashed(name, "signal 11")
        self.rounds_run.append(number)
        self.processes.append(task.variants)
        generator = np.random.default_rng([self.seed, number])
        factor = self.round_factor(number, generator)
        clock = Clock()

        def opener(name: str) -> OpenVariant:
            backend = self.backends[name]
            if backend.error is not None:
                raise backend.error
            clock.time += backend.load_s
            return _Opened(
                backend, clock, factor, np.random.default_rng([self.seed, number, zlib.crc32(name.encode())])
            )

        expected = {batch: expectation(batch) for batch in self.batch_sizes}
        report = run_round(task, expected, opener, clock, self.monitor, say)
        self.elapsed += clock.time
        return report

    def disturbance(self) -> tuple[float, int]:
        return self.others, 0

    def go(self, method: Method, earlier: BenchResult | None = None, **extra: object) -> BenchResult:
        """The whole benchmark by ``method``."""
        case = Case("simulated", batch_sizes=self.batch_sizes)
        request = Request(
            cases=(case,),
            variants=tuple(self.backends),
            device=self.device,
            threads=1,
            tolerance=None,
            method=method,
        )
        return measure(request, self, earlier=earlier, **extra)  # type: ignore[arg-type]


def expectation(batch: int) -> Expected:
    values = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)
    return Expected((values,), (values.astype(np.float64) * 2,), may_flip=False)


class _Opened(OpenVariant):
    def __init__(self, backend: Simulated, clock: Clock, factor: float, generator: np.random.Generator) -> None:
        self.backend, self.clock, self.factor, self.generator = backend, clock, factor, generator
        self.calls = 0

    def bind(self, inputs: Sequence[NDArray[np.float32]]) -> BoundVariant:
        return _Called(self, inputs)

    def describe(self) -> dict[str, str]:
        return {"runtime": "simulated"}


class _Called(BoundVariant):
    def __init__(self, opened: _Opened, inputs: Sequence[NDArray[np.float32]]) -> None:
        self._opened, self._inputs = opened, inputs
        self.items = len(inputs[0])

    def call(self) -> object:
        it = self._opened
        taken = it.backend.latency(it.calls, it.generator) * it.factor
        if it.calls == 0:
            taken += it.backend.first_call_ms
        it.calls += 1
        it.clock.time += taken / 1e3
        return None

    def outputs(self) -> Sequence[NDArray[np.float64]]:
        return [self._inputs[0].astype(np.float64) * 2 + self._opened.backend.off_by]

    def inspect(self) -> Inspection:
        return Inspection((SamplerPlacement("sampler_0", "GridSample", self._opened.backend.place),))


def fixed(milliseconds: float) -> Latency:
    return lambda index, generator: milliseconds


def noisy(milliseconds: float, share: float = 0.03) -> Latency:
    """Log-normal noise of about ``share`` on every call."""
    return lambda index, generator: milliseconds * float(np.exp(generator.normal(0, share)))


__all__ = ["Clock", "Quiet", "Simulated", "Simulation", "expectation", "fixed", "noisy", "replace"]
