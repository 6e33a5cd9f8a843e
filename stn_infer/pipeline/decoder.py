"""Texts and boxes from a model's outputs, as its :class:`~stn_infer.decoding.Decoding` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.decoding import Decoding
from stn_infer.errors import UsageError

Texts = NDArray[np.object_]


class Decoder:
    """Decodes the outputs of one model; safe to share between threads.

    Args:
        decodings: how they are read.
        inputs, outputs: of the model, batch on axis 0.

    Raises:
        UsageError: a decoding names an output that the model lacks or whose shape does not fit, or two columns have the
            same name.
    """

    def __init__(
        self, decodings: Sequence[Decoding], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.decodings = tuple(decodings)
        self._size = next(((spec.shape[2], spec.shape[3]) for spec in inputs if len(spec.shape) == 4), (None, None))
        specs = {spec.name: spec for spec in outputs}
        for decoding in self.decodings:
            for name in decoding.reads:
                if name not in specs:
                    raise UsageError(
                        f"decoding {decoding.name!r} reads output {name!r}, but the model has {', '.join(specs)}"
                    )
            self._check(decoding, specs)
        taken = ["input", "prediction", "label", "confidence", "predictions", "labels", "confidences", *specs]
        for column in self.columns:
            if column in taken:
                raise UsageError(f"a decoding's column {column!r} has the name of another one; rename the decoding")
            taken.append(column)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in order."""
        return tuple(column for decoding in self.decodings for column in decoding.columns)

    @property
    def reads(self) -> frozenset[str]:
        """All outputs that are read."""
        return frozenset(name for decoding in self.decodings for name in decoding.reads)

    def __call__(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The columns [N] by name: texts as objects, a box's sides as float32."""
        found: dict[str, Array] = {}
        for decoding in self.decodings:
            if decoding.kind == "sequence":
                found[decoding.name] = self.texts(decoding, outputs)
            else:
                found.update(zip(decoding.columns, self.boxes(decoding, outputs).T, strict=True))
        return found

    def texts(self, decoding: Decoding, outputs: Mapping[str, Array]) -> Texts:
        """The text [N] of each sample."""
        scores = [outputs[name] for name in decoding.outputs]
        if not len(scores[0]):
            return np.empty(0, object)
        stacked = scores[0] if scores[0].ndim == 3 else np.stack(scores, axis=1)  # [N, places, classes]
        classes = stacked.argmax(axis=2)
        places = np.arange(classes.shape[1])
        shown = np.ones(classes.shape, bool)
        if decoding.end is not None:
            shown &= np.cumsum(classes == decoding.end % stacked.shape[2], axis=1) == 0
        if decoding.length:
            shown &= places < outputs[decoding.length].argmax(axis=1)[:, None]
        symbols = decoding.symbols or tuple(map(str, range(stacked.shape[2])))
        texts = np.empty(len(classes), object)
        texts[:] = [
            "".join([symbols[index] for index, kept in zip(row, keep, strict=True) if kept])
            for row, keep in zip(classes.tolist(), shown.tolist(), strict=True)
        ]
        return texts

    def boxes(self, decoding: Decoding, outputs: Mapping[str, Array]) -> NDArray[np.float32]:
        """(left, top, right, bottom) [N, 4] in pixels of the input.

        The grid's coordinates -1 and 1 are the outer edges of the first and the last pixel.
        """
        values = outputs[decoding.outputs[0]].astype(np.float32, copy=False)
        if values.ndim == 2:
            return values
        corners = np.array([[-1, -1, 1, 1], [-1, 1, -1, 1], [1, 1, 1, 1]], np.float32)
        height, width = self._size
        assert height is not None and width is not None, "checked"
        placed = (values @ corners + 1) / 2 * np.array([[width], [height]], np.float32)  # [N, 2, 4]
        found: NDArray[np.float32] = np.concatenate([placed.min(axis=2), placed.max(axis=2)], axis=1)
        return found

    def _check(self, decoding: Decoding, specs: Mapping[str, TensorSpec]) -> None:
        def wrong(name: str, expected: str) -> UsageError:
            shape = ", ".join("?" if axis is None else str(axis) for axis in specs[name].shape[1:])
            return UsageError(f"decoding {decoding.name!r}: output {name!r} is [N, {shape}], expected {expected}")

        shapes = [specs[name].shape for name in decoding.outputs]
        if decoding.kind == "box":
            name, shape = decoding.outputs[0], tuple(shapes[0][1:])
            if shape not in ((4,), (2, 3)):
                raise wrong(name, "a box [N, 4] or theta [N, 2, 3]")
            if shape == (2, 3) and None in self._size:
                raise UsageError(
                    f"decoding {decoding.name!r}: a box from theta needs an image input of fixed height and width"
                )
            return
        rank = 3 if len(shapes) == 1 else 2
        expected = "[N, places, classes]" if rank == 3 else "[N, classes], one output per place"
        for name, shape in zip(decoding.outputs, shapes, strict=True):
            if len(shape) != rank or shape[-1] is None or shape[-1] != shapes[0][-1]:
                raise wrong(name, expected)
        count: Any = shapes[0][-1]
        if decoding.end is not None and not -count <= decoding.end < count:
            raise UsageError(f"decoding {decoding.name!r}: end is {decoding.end}, but there are {count} classes")
        if decoding.symbols and len(decoding.symbols) != count:
            given = len(decoding.symbols)
            raise UsageError(f"decoding {decoding.name!r} has {given} symbols for {count} classes")
        if decoding.length and len(specs[decoding.length].shape) != 2:
            raise wrong(decoding.length, "[N, lengths]")
