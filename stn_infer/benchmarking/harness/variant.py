"""What the harness needs of a variant: it is opened once per round, bound to inputs, and called."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stn_infer.arrays import Array
from stn_infer.benchmarking.record import SamplerPlacement, Stages


class Clock(Protocol):
    """Time, and waiting for it; tests turn their own."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def wait_until(self, moment: float) -> None:
        """Return at ``moment``, or at once where it has passed."""
        ...


class RealClock:
    """The processor's monotonic clock."""

    def now(self) -> float:
        """See :class:`Clock`."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """See :class:`Clock`; the last millisecond is waited awake, since sleeping is not that exact."""
        while (left := moment - time.perf_counter()) > 0:
            if left > 2e-3:
                time.sleep(left - 1e-3)


@dataclass(frozen=True)
class Inspection:
    """Where the samplers ran, and where the time goes; ``left_out`` gives the reason for what a runtime cannot tell.

    ``left_out`` has keys out of ``samplers``, ``stages`` and ``the grid's share``, and a phrase for each.
    """

    samplers: tuple[SamplerPlacement, ...] = ()
    stages: Stages | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


class BoundVariant(ABC):
    """A variant with its inputs: what is timed.

    Attributes:
        items: samples per call; None: the batch size.
        concurrent: whether several threads may call at once.
        alone: why they may not.
    """

    items: int | None = None
    concurrent: bool = False
    alone: str = "it takes one call at a time"

    @abstractmethod
    def call(self) -> object:
        """One call, from one side of the boundary to the other; complete when it returns."""

    @abstractmethod
    def outputs(self) -> Sequence[Array]:
        """The outputs of a call, in main memory, for verification."""

    def burst(self, count: int, clock: Clock) -> list[float]:
        """Times of ``count`` calls in a row, milliseconds."""
        times = []
        for _ in range(count):
            start = clock.now()
            self.call()
            times.append((clock.now() - start) * 1e3)
        return times

    def inspect(self) -> Inspection:
        """Where the samplers run for these inputs; outside all timing."""
        return Inspection(left_out=dict.fromkeys(("samplers", "stages"), "the variant does not report it"))

    def close(self) -> None:
        """Release the inputs' buffers."""
        return None


class OpenVariant(ABC):
    """One variant, opened."""

    @abstractmethod
    def bind(self, inputs: Sequence[Array]) -> BoundVariant:
        """Prepare to run these inputs, one array per input, [N, ...], float32."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What ran it: runtime and version, providers in use, threads, how copies are made."""

    def close(self) -> None:
        """Release everything."""
        return None


#: Opens a variant by its name; raises a StnInferError that says why where it is not available.
Opener = Callable[[str], OpenVariant]
