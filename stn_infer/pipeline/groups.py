"""Runs a backend on the groups of a loaded batch, and puts their outputs in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend, BatchingBackend, PixelBackend
from stn_infer.data.loader import Group, LoadedBatch, Loader
from stn_infer.errors import ModelError
from stn_infer.printing import counted

# For each group of a batch: the outputs by name, or an error message.
Answers = list[dict[str, Array] | str]
# Takes a group's outputs of the model, and all that the backend returned.
Seen = Callable[[Mapping[str, Array], Mapping[str, Array]], None]


def waiting_threads(backend: Backend) -> int:
    """The number of threads that run the model on a GPU, which wait for it most of the time; 0 on a CPU."""
    if backend.device == "cpu":
        return 0
    return backend.in_flight if isinstance(backend, BatchingBackend) else 1


class GroupPredictor:
    """Runs a backend on groups of :meth:`~stn_infer.data.loader.Loader.read`; their memory is then used again.

    A backend for which each batch size has a cost gets the last batch padded by its last sample.

    Args:
        backend, loader: the model, and what made the groups.
        batch_size: of all batches but the last.
    """

    def __init__(self, backend: Backend, loader: Loader, batch_size: int) -> None:
        self._run, self._loader = backend.run, loader
        self._outputs = [spec.name for spec in backend.outputs]
        self._any_size = any(None in spec.shape[1:] for spec in backend.inputs)
        # one batch axis, and no other sizes, which come in smaller groups
        axes = {spec.batch if spec.shape[:1] == (None,) else None for spec in (*backend.inputs, *backend.outputs)}
        alike = len(axes) == 1 and None not in axes and not self._any_size
        full = isinstance(backend, BatchingBackend) and backend.full_batches and alike
        self._full = batch_size if full else 0
        self._run_pixels = backend.run_pixels if isinstance(backend, PixelBackend) and backend.takes_pixels else None

    def predict(self, group: Group) -> dict[str, Array]:
        """The model's outputs.

        Raises:
            ModelError, InputError: as for :meth:`stn_infer.backends.base.Backend.run`.
        """
        rows, group = len(group.rows), self._padded(group)
        pixels = None if self._run_pixels is None else self._loader.pixels_of(group)
        if pixels is not None and self._run_pixels is not None:
            assert self._loader.preprocess is not None
            used, outputs = group, self._run_pixels(pixels, self._loader.preprocess)
        else:
            used = self._loader.prepare(group)
            outputs = self._run(used.inputs)
        if rows < self._full:
            outputs = {name: output[:rows] for name, output in outputs.items()}
        outputs = {name: _apart(output, used) for name, output in outputs.items()}
        self._loader.release(used)
        return outputs

    def _padded(self, group: Group) -> Group:
        """The group with its last sample repeated, if the backend takes full batches."""
        missing = self._full - len(group.rows)
        if missing <= 0:
            return group
        more = {name: np.broadcast_to(array[-1:], (missing, *array.shape[1:])) for name, array in group.inputs.items()}
        padded = {name: np.concatenate([array, more[name]]) for name, array in group.inputs.items()}
        self._loader.release(group)
        return Group(group.rows, padded)

    def answers(self, loaded: LoadedBatch, watch: Callable[[Group], Seen] | None = None) -> Answers:
        """For each group the outputs, or why there are none: the model does not take images of their size.

        Args:
            loaded: the groups.
            watch: called with each group before it runs; what it returns is called with its outputs.

        Raises:
            ModelError: the runtime failed, and would on all other batches.
        """
        return [self._answer(group, None if watch is None else watch(group)) for group in loaded.groups]

    def _answer(self, group: Group, seen: Seen | None) -> dict[str, Array] | str:
        try:
            outputs = self.predict(group)
        except ModelError as error:
            if not self._any_size:  # all other batches would fail too
                raise
            return str(error)
        found = {name: outputs[name] for name in self._outputs}
        if seen is not None:
            seen(found, outputs)
        return found


def _apart(output: Array, group: Group) -> Array:
    """``output``, copied if it may be a part of an input, whose memory is used again."""
    shared = any(np.may_share_memory(output, array) for array in group.inputs.values())
    return output.copy() if shared else output


def merged(
    loaded: LoadedBatch, answers: Answers, errors: dict[int, str]
) -> list[tuple[Sequence[int], dict[str, Array]]]:
    """Positions of the predicted samples in the batch and their outputs, in order; adds ``errors`` for the others.

    One pair, or none; if inputs of different sizes gave outputs of different sizes, one for each stretch of samples
    of a group.
    """
    pieces: list[tuple[Sequence[int], dict[str, Array]]] = []
    for group, outputs in zip(loaded.groups, answers, strict=True):
        if isinstance(outputs, str):  # the network does not support this input size
            errors.update(dict.fromkeys(group.rows, outputs))
            continue
        good = answered(group.rows, outputs, errors)
        if good:
            everything = len(good) == len(group.rows)
            rows = group.rows if everything else [group.rows[i] for i in good]
            pieces.append((rows, outputs if everything else {name: values[good] for name, values in outputs.items()}))
    if len(pieces) <= 1:
        return pieces
    if all(sizes(outputs) == sizes(pieces[0][1]) for _, outputs in pieces):
        rows = [row for rows, _ in pieces for row in rows]
        order, outputs = np.argsort(rows), joined([outputs for _, outputs in pieces])
        return [(sorted(rows), {name: values[order] for name, values in outputs.items()})]
    places = sorted((row, number, i) for number, (rows, _) in enumerate(pieces) for i, row in enumerate(rows))
    stretches: list[tuple[Sequence[int], dict[str, Array]]] = []
    for number, members in groupby(places, key=itemgetter(1)):
        found = list(members)
        index = [i for _, _, i in found]
        outputs = {name: values[index] for name, values in pieces[number][1].items()}
        stretches.append(([row for row, _, _ in found], outputs))
    return stretches


def sizes(outputs: Mapping[str, Array]) -> list[tuple[int, ...]]:
    """Of one row of each output."""
    return [values.shape[1:] for values in outputs.values()]


def joined(pieces: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Outputs one after the other.

    Raises:
        ModelError: they have different sizes.
    """
    if len(pieces) == 1:
        return pieces[0]
    try:
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    except ValueError:
        raise ModelError(
            "inputs of different sizes gave outputs of different sizes; run each input size separately"
        ) from None


def answered(rows: Sequence[int], outputs: dict[str, Array], errors: dict[int, str]) -> Sequence[int]:
    """Positions in a group whose outputs contain no NaN; adds ``errors`` for the others."""
    bad: dict[int, str] = {}
    for name, values in outputs.items():
        if values.ndim == 0 or len(values) != len(rows):
            raise ModelError(
                f"output {name!r} has shape {list(values.shape)} for {counted(len(rows), 'sample')}; "
                "expected the batch on axis 0"
            )
        if values.dtype.kind == "f" and np.isnan(values).any():
            for i in np.flatnonzero(np.isnan(values.reshape(len(rows), -1)).any(axis=1)).tolist():
                bad.setdefault(i, f"the model's output {name!r} contains NaN for this input")
    errors.update({rows[i]: reason for i, reason in bad.items()})
    return [i for i in range(len(rows)) if i not in bad] if bad else range(len(rows))
