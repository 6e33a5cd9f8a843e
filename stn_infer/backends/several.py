"""One model on several devices of a machine, as one backend: each batch goes where the fewest are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend, BatchingBackend, PixelBackend
from stn_infer.errors import UsageError
from stn_infer.preprocess.rule import Preprocess


class SeveralBackends:
    """Backends of the same model; a :class:`~stn_infer.backends.base.Backend`.

    Args:
        backends: at least one, on any devices; closed with this one.

    Raises:
        UsageError: they are not of one model in one runtime.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        first = backends[0]
        for other in backends[1:]:
            if (other.name, other.inputs, other.outputs) != (first.name, first.inputs, first.outputs):
                raise UsageError(f"expected one model in one runtime on all devices, given {first.name}, {other.name}")
        self.name, self.inputs, self.outputs, self.metadata = first.name, first.inputs, first.outputs, first.metadata
        self.device = ",".join(dict.fromkeys(backend.device for backend in backends))
        telling = [backend for backend in backends if isinstance(backend, BatchingBackend)]
        self.in_flight = sum(backend.in_flight for backend in telling) + len(backends) - len(telling)
        self.full_batches = any(backend.full_batches for backend in telling)
        self.takes_pixels = all(isinstance(backend, PixelBackend) and backend.takes_pixels for backend in backends)
        self._backends = list(backends)
        self._running = [0] * len(backends)
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`stn_infer.backends.base.Backend.run`.

        Raises:
            InputError, ModelError: as for that.
        """
        with self._least_busy() as backend:
            return backend.run(inputs)

    def run_pixels(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> dict[str, Array]:
        """See :meth:`stn_infer.backends.base.PixelBackend.run_pixels`; only where all of them take pixels.

        Raises:
            InputError, ModelError: as for that.
        """
        with self._least_busy() as backend:
            assert isinstance(backend, PixelBackend)
            return backend.run_pixels(pixels, preprocess)

    def describe(self) -> dict[str, str]:
        """The first backend's, with the devices of all."""
        return {**self._backends[0].describe(), "device": self.device}

    def close(self) -> None:
        """Close all of them."""
        for backend in self._backends:
            backend.close()

    @contextmanager
    def _least_busy(self) -> Iterator[Backend]:
        with self._lock:
            index = min(range(len(self._running)), key=self._running.__getitem__)
            self._running[index] += 1
        try:
            yield self._backends[index]
        finally:
            with self._lock:
                self._running[index] -= 1
