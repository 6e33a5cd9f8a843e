"""A model in your own Ray Data pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stn_infer.api.predictor import Predictor
from stn_infer.arrays import Array
from stn_infer.errors import UsageError
from stn_infer.pipeline.prediction import Prediction


class BatchPredictor:
    """Predicts batches of columns: a class for ``ray.data.Dataset.map_batches``, which opens it once in each worker.

    Each batch keeps its columns, and gets ``prediction`` int64 (-1 where there is none), ``label`` and ``error``
    (texts, possibly empty), ``confidence`` float32, the columns of decoded texts and boxes, and ``outputs``.
    Predictions are those of :class:`~stn_infer.Predictor`; a row that cannot be predicted has an ``error``, and the
    others are not affected.

    Args:
        model: as for :class:`~stn_infer.Predictor`; a file must be on every node.
        column: the column of the pictures: uint8 arrays [H, W] or [H, W, C], the bytes of image files, or paths.
        outputs: the model's outputs that become columns; a row with an error has NaN there, or 0.
        workers: threads; one for each of the worker's CPUs.
        options: other arguments of :class:`~stn_infer.Predictor`, such as ``device`` or ``preprocess``.

    Raises:
        UsageError: there is no such output, or ``errors`` or ``warps`` are given.
        StnInferError: as for :class:`~stn_infer.Predictor`.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        column: str = "image",
        outputs: Sequence[str] = (),
        workers: int = 1,
        **options: Any,
    ) -> None:
        for name in ("errors", "warps"):
            if name in options:
                raise UsageError(f"a batch has a column of errors and no warps; omit {name}")
        self._predictor = Predictor(model, workers=workers, errors="return", **options)
        specs = {spec.name: spec for spec in self._predictor.outputs}
        for name in outputs:
            if name not in specs:
                raise UsageError(f"the model has no output {name!r}; its outputs are {', '.join(specs)}")
        self._column = column
        self._outputs = {name: specs[name] for name in outputs}

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The batch with the columns of its predictions.

        Raises:
            UsageError: it has no column of this name.
        """
        if self._column not in batch:
            raise UsageError(f"expected a column {self._column!r} of pictures, found {', '.join(batch)}")
        pictures = [value.item() if isinstance(value, np.bytes_ | np.str_) else value for value in batch[self._column]]
        found = list(self._predictor(pictures)) if pictures else []
        columns: dict[str, Any] = {
            **batch,
            "prediction": np.array([-1 if each.prediction is None else each.prediction for each in found], np.int64),
            "label": np.array([each.label or "" for each in found], object),
            "confidence": np.array([_or_nan(each.confidence) for each in found], np.float32),
            "error": np.array([each.error for each in found], object),
        }
        for name in next((tuple(each.decoded) for each in found if each.ok), ()):
            columns[name] = np.array([each.decoded.get(name) for each in found], object)
        for name in self._outputs:
            columns[name] = self._stacked(name, found)
        return columns

    def _stacked(self, name: str, found: Sequence[Prediction]) -> Array:
        spec = self._outputs[name]
        rows = [each.outputs[name] if each.ok else None for each in found]
        shape = next((row.shape for row in rows if row is not None), tuple(axis or 0 for axis in spec.shape[1:]))
        missing = np.full(shape, np.nan if spec.dtype.kind == "f" else 0, spec.dtype)
        return np.array([missing if row is None else row for row in rows], spec.dtype).reshape(len(rows), *shape)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
