"""The inputs of every variant: the user's samples, or handwritten digits for images and uniform noise for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.printing import counted
from stn_infer.reference.samples import bench_inputs

if TYPE_CHECKING:
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
        return f"{counted(self._own.samples, 'sample')} of your own"

    def batch(self, size: int) -> tuple[Array, ...]:
        """One array an input, [size, ...], float32; the user's samples in their order, and from the first again.

        Raises:
            InputError: the user's samples cannot be read.
        """
        if self._sources is None:
            return bench_inputs(self._rule, size, self._seed)[0]
        rows = np.arange(size) % len(self._pool[0])
        return tuple(values[rows] for values in self._pool)

    def samples(self, size: int) -> tuple[Array, ...]:
        """INT8 calibration data: all of the user's samples, else as many as the largest batch, from 64 to 1,024."""
        return self.batch(min(max(size, _FEWEST), _MOST)) if self._sources is None else self._pool

    def calibration(self, size: int, *, made_up: bool) -> Calibration | None:
        """The user's samples as ``export --calibrate`` reads them; where there are none, :meth:`samples` or None."""
        from stn_infer.data.batches import Calibration

        if self._sources is not None:
            return self._own
        if not made_up:
            return None
        samples = self.samples(size)
        names = (f"input_{index}" for index in range(len(samples)))
        return Calibration((dict(zip(names, samples, strict=True)),), len(samples[0]), ())

    @property
    def repeats_one(self) -> bool:
        """Whether batches are one sample over and over."""
        return self._sources is not None and self._own.samples == 1

    def notes(self, largest: int) -> list[str]:
        """What a reader must know about them, ``largest`` being the largest batch."""
        if self._sources is None:
            return []
        found = list(self._own.notes)
        if self._own.samples < largest:
            found.append(f"{counted(self._own.samples, 'sample')}, fewer than batch {largest}: repeated in it")
        return found

    @cached_property
    def _own(self) -> Calibration:
        from stn_infer.backends.base import TensorSpec
        from stn_infer.data.batches import load_calibration, load_for_file
        from stn_infer.data.loader import resolve_preprocess
        from stn_infer.proto.load import read_graph
        from stn_infer.proto.traversal import given_inputs
        from stn_infer.sources.inputs import input_names

        rule = self._rule
        if rule.metadata.embedded is not None and self._file is not None:
            own = rule.metadata.preprocess
            return load_for_file(self._sources or (), read_graph(self._file), own, most=_MOST)
        names = input_names(rule.module, len(rule.input_shapes))
        if self._file is not None:
            names = [value.name for value in given_inputs(read_graph(self._file).graph)]
        shapes = zip(names, rule.input_shapes, strict=True)
        specs = [TensorSpec(name, (None, *shape), np.dtype(np.float32)) for name, shape in shapes]
        preprocess = resolve_preprocess(specs, rule.metadata.preprocess, None)
        return load_calibration(self._sources or (), specs, preprocess, what="input")

    @cached_property
    def _pool(self) -> tuple[Array, ...]:
        batches = [tuple(batch.values()) for batch in self._own.batches]
        return tuple(np.concatenate(values) for values in zip(*batches, strict=True))
