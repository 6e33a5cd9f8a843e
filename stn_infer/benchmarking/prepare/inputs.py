"""The inputs of every variant: the user's samples, or handwritten digits for images and uniform noise for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.batching import is_batched
from stn_infer.printing import counted
from stn_infer.reference.samples import bench_inputs
from stn_infer.sources.inputs import random_values

if TYPE_CHECKING:
    from stn_infer.backends.base import TensorSpec
    from stn_infer.data.batches import Calibration
    from stn_infer.sources.load import LoadedModel

_FEWEST, _MOST = 64, 1024  # samples of INT8 calibration data


class Feeds:
    """Inputs of any batch size, the same for the same size.

    Args:
        rule: the model: its inputs' shapes, and how pixels become inputs.
        file: the ONNX file that was given, whose inputs' names array files may go by.
        sources: files, folders, patterns or array files of the user's; None: the package's digits, or noise.
        seed: of noise.
    """

    def __init__(self, rule: LoadedModel, file: Path | None, sources: Sequence[str] | None, seed: int) -> None:
        self._rule, self._file, self._sources, self._seed = rule, file, sources, seed

    @property
    def described(self) -> str:
        """What they are, in words."""
        if self._sources is None:
            return bench_inputs(self._rule, 1, self._seed)[1]
        return f"{counted(self._rows, 'sample')} of your own"

    def batch(self, size: int) -> tuple[Array, ...]:
        """One array an input, [size, ...], float32; the user's samples in their order, and from the first again.

        Raises:
            InputError: the user's samples cannot be read.
        """
        if self._sources is None:
            return self._made_up(size)
        rows = np.arange(size) % self._rows
        return tuple(values if name in self._own.shared else values[rows] for name, values in self._pool.items())

    def _made_up(self, size: int) -> tuple[Array, ...]:
        values = bench_inputs(self._rule, size, self._seed)[0]
        if self._file is None or self._rule.metadata.embedded is not None:
            return values
        generator = np.random.default_rng(self._seed)
        return tuple(
            value
            if is_batched(spec)
            else random_values(generator, [size for size in spec.shape if size is not None], value.dtype)
            for value, spec in zip(values, self._specs()[0], strict=True)
        )

    def samples(self, size: int) -> tuple[Array, ...]:
        """INT8 calibration data: all of the user's samples, else as many as the largest batch, from 64 to 1,024."""
        return self.batch(_calibrated_on(size)) if self._sources is None else tuple(self._pool.values())

    def calibration(self, size: int, *, made_up: bool) -> Calibration | None:
        """The user's samples as ``export --calibrate`` reads them; where there are none, :meth:`samples` or None."""
        from stn_infer.data.batches import Calibration

        if self._sources is not None:
            return self._own
        if not made_up:
            return None
        samples = self.samples(size)
        names = (f"input_{index}" for index in range(len(samples)))
        return Calibration((dict(zip(names, samples, strict=True)),), _calibrated_on(size), ())

    @property
    def repeats_one(self) -> bool:
        """Whether batches are one sample over and over."""
        return self._sources is not None and self._rows == 1

    def notes(self, largest: int) -> list[str]:
        """What a reader must know about them, ``largest`` being the largest batch."""
        if self._sources is None:
            return []
        found = list(self._own.notes)
        if self._rows < self._own.samples:
            others = ", ".join(sorted(self._own.shared))
            found.append(f"only {self._rows} of {self._own.samples} samples are fed: the others have another {others}")
        if self._rows < largest:
            found.append(f"{counted(self._rows, 'sample')}, fewer than batch {largest}: repeated in it")
        return found

    @cached_property
    def _own(self) -> Calibration:
        from stn_infer.data.batches import load_calibration, load_for_file
        from stn_infer.data.loader import resolve_preprocess
        from stn_infer.proto.load import read_graph

        rule = self._rule
        if rule.metadata.embedded is not None and self._file is not None:
            own = rule.metadata.preprocess
            return load_for_file(self._sources or (), read_graph(self._file), own, most=_MOST)
        specs, outputs = self._specs()
        preprocess = resolve_preprocess(specs, rule.metadata.preprocess, None)
        return load_calibration(self._sources or (), specs, preprocess, outputs=outputs, what="input")

    def _specs(self) -> tuple[list[TensorSpec], Sequence[TensorSpec]]:
        """The inputs, with the sizes that are measured and the batch axis of each, and the outputs."""
        from stn_infer.backends.eager import EagerBackend
        from stn_infer.data.batches import input_specs, output_specs
        from stn_infer.proto.load import read_graph

        outputs: Sequence[TensorSpec]
        if self._file is not None:
            graph = read_graph(self._file)
            inputs, outputs = input_specs(graph), output_specs(graph)
        else:
            backend = EagerBackend(self._rule)
            inputs, outputs = list(backend.inputs), backend.outputs
        pairs = zip(inputs, self._rule.input_shapes, strict=True)
        sized = [replace(spec, shape=(*spec.shape[:1], *shape)) if spec.shape else spec for spec, shape in pairs]
        return sized, outputs

    @cached_property
    def _pool(self) -> dict[str, Array]:
        """The samples that can be in one batch: those with the same arrays for all samples as the first."""
        first, *others = self._own.batches
        shared = self._own.shared
        same = [batch for batch in others if all(np.array_equal(batch[name], first[name]) for name in shared)]
        return {
            name: values if name in shared else np.concatenate([values, *(batch[name] for batch in same)])
            for name, values in first.items()
        }

    @property
    def _rows(self) -> int:
        """The number of samples that can be in one batch."""
        return next((len(values) for name, values in self._pool.items() if name not in self._own.shared), 1)


def _calibrated_on(size: int) -> int:
    """The number of samples that INT8 is calibrated on where the user gives none; ``size`` is the largest batch."""
    return min(max(size, _FEWEST), _MOST)
