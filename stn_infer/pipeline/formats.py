"""Predictions on disk: one file per shard, in csv, jsonl, parquet or npz.

A shard is written to a temporary file, flushed to disk and renamed atomically. The workers encode the rows that they
compute; writing a shard only concatenates them in order.
"""

from __future__ import annotations

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import MissingDependencyError, UsageError
from stn_infer.pipeline.decoder import Decoder

_SPECIAL = re.compile('[,"\r\n]')

FORMATS = ("csv", "jsonl", "parquet", "npz")


@dataclass(frozen=True)
class Rows:
    """Predicted samples.

    Attributes:
        names: the samples' names in the status file.
        outputs: by output name, [len(names), ...].
        classes: int64 [len(names)], the argmax of the first output; None if that output is not a vector of scores.
        decoded: by column, [len(names)]: texts and the sides of boxes.
    """

    names: tuple[str, ...]
    outputs: dict[str, Array]
    classes: NDArray[np.int64] | None
    decoded: dict[str, Array] = field(default_factory=dict)


class Format(ABC):
    """A file format for predictions. ``encode`` may run in any thread; ``write`` runs in one thread at a time.

    Args:
        outputs: the model's outputs, batch on axis 0.
        labels: the name of each class, or None.
        decoder: of the texts and boxes in the outputs.
        stored: the outputs that become columns themselves.
    """

    suffix: str

    def __init__(
        self,
        outputs: Sequence[TensorSpec],
        labels: Sequence[str] | None,
        decoder: Decoder | None = None,
        stored: Sequence[TensorSpec] | None = None,
    ) -> None:
        self.outputs = tuple(outputs)
        self.labels = None if labels is None else tuple(labels)
        self.decoder = decoder or Decoder((), (), outputs)
        self.stored = self.outputs if stored is None else tuple(stored)
        self.classifies = has_classes(outputs, self.decoder)
        self._prepare()

    def _prepare(self) -> None:  # noqa: B027 - most formats need nothing
        """Imports what the format needs.

        Raises:
            MissingDependencyError: it is not installed.
        """

    def rows(self, names: tuple[str, ...], outputs: dict[str, Array]) -> Rows:
        """Samples with their outputs [len(names), ...], classified and decoded."""
        classes = None
        if self.classifies:
            classes = outputs[self.outputs[0].name].argmax(axis=1) if names else np.zeros(0, np.int64)
        decoded = self.decoder(outputs)
        return Rows(names, {spec.name: outputs[spec.name] for spec in self.stored}, classes, decoded)

    @abstractmethod
    def encode(self, rows: Rows) -> Any:
        """``rows`` in the form that :meth:`write` takes."""

    @abstractmethod
    def write(self, path: Path, parts: Sequence[Any]) -> None:
        """Write the encoded ``parts`` of one shard, possibly none, to ``path``."""

    def empty(self) -> Rows:
        """Zero rows with the known output shapes, for a shard whose samples all failed."""
        outputs: dict[str, Array] = {
            spec.name: np.zeros((0, *(axis or 0 for axis in spec.shape[1:])), spec.dtype) for spec in self.outputs
        }
        return self.rows((), outputs)

    def label_of(self, row_class: int) -> str:
        """The label of a class; requires ``labels``.

        Raises:
            UsageError: there are fewer labels than ``row_class`` needs.
        """
        assert self.labels is not None
        if row_class >= len(self.labels):
            raise UsageError(f"the model predicts class {row_class}, but only {len(self.labels)} labels were given")
        return self.labels[row_class]


class CsvFormat(Format):
    """A header and one line per sample; floats have enough digits to restore their exact value."""

    suffix = "csv"

    def encode(self, rows: Rows) -> bytes:
        """Lines of UTF-8."""
        if not rows.names:
            return b""
        columns: list[Sequence[str]] = [quoted_all(rows.names)]
        if rows.classes is not None:
            classes = rows.classes.tolist()
            columns.append([*map(str, classes)])
            if self.labels is not None:
                labels = [quoted(label) for label in self.labels]
                columns.append([labels[index] for index in classes])
        columns += [[*map(_field, values)] for values in rows.decoded.values()]
        columns += [_joined(values.reshape(len(rows.names), -1)) for values in rows.outputs.values()]
        return ("\n".join(map(",".join, zip(*columns, strict=True))) + "\n").encode()

    def write(self, path: Path, parts: Sequence[bytes]) -> None:
        """The header and the lines."""
        columns = ["input", *(["prediction"] if self.classifies else [])]
        columns += ["label"] if self.classifies and self.labels is not None else []
        columns += [*self.decoder.columns, *(f"{spec.name}_{i}" for spec in self.stored for i in range(_width(spec)))]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(columns)
        with path.open("wb") as file:
            file.write(text.getvalue().encode())
            file.writelines(parts)


class JsonlFormat(Format):
    """One JSON object per line; each output is a list under its name, and numbers that are not finite are null."""

    suffix = "jsonl"

    def encode(self, rows: Rows) -> bytes:
        """Lines of UTF-8."""
        lines = []
        for i, name in enumerate(rows.names):
            text = f'{{"input": {json.dumps(name, ensure_ascii=False)}'
            if rows.classes is not None:
                text += f', "prediction": {rows.classes[i]}'
                if self.labels is not None:
                    text += f', "label": {json.dumps(self.label_of(int(rows.classes[i])), ensure_ascii=False)}'
            for column, decoded in rows.decoded.items():
                text += f", {json.dumps(column)}: {_json_value(decoded[i])}"
            for output, values in rows.outputs.items():
                text += f", {json.dumps(output)}: [{_json_numbers(values[i].reshape(-1))}]"
            lines.append(text + "}\n")
        return "".join(lines).encode()

    def write(self, path: Path, parts: Sequence[bytes]) -> None:
        """The lines."""
        with path.open("wb") as file:
            file.writelines(parts)


class ParquetFormat(Format):
    """The columns of csv, typed.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """

    suffix = "parquet"

    def _prepare(self) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise MissingDependencyError("--format parquet needs pyarrow; pip install 'stn-infer[parquet]'") from None
        self._pyarrow = pyarrow

    def encode(self, rows: Rows) -> Rows:
        """The rows, unchanged."""
        return rows

    def write(self, path: Path, parts: Sequence[Rows]) -> None:
        """One table."""
        arrow = self._pyarrow
        rows = parts or [self.empty()]
        columns: dict[str, Any] = {"input": arrow.array([name for part in rows for name in part.names], arrow.string())}
        if self.classifies:
            classes = _all_classes(rows)
            columns["prediction"] = arrow.array(classes)
            if self.labels is not None:
                labels = [self.label_of(index) for index in classes.tolist()]
                columns["label"] = arrow.array(labels, arrow.string())
        for column in self.decoder.columns:
            decoded = np.concatenate([part.decoded[column] for part in rows])
            columns[column] = arrow.array(decoded, arrow.string() if decoded.dtype == object else None)
        for output in rows[0].outputs:
            values = np.concatenate([part.outputs[output] for part in rows])
            flat = values.reshape(len(values), 1 if values.ndim == 1 else values.shape[1])
            for i in range(flat.shape[1]):
                columns[f"{output}_{i}"] = arrow.array(np.ascontiguousarray(flat[:, i]))
        arrow.parquet.write_table(arrow.table(columns), path)


class NpzFormat(Format):
    """Each output in its own shape under its name, with ``input``, ``prediction``, ``label`` and decoded columns."""

    suffix = "npz"

    def encode(self, rows: Rows) -> Rows:
        """The rows, unchanged."""
        return rows

    def write(self, path: Path, parts: Sequence[Rows]) -> None:
        """An uncompressed .npz without pickles; an output whose name is reserved gets the prefix ``output_``."""
        rows = parts or [self.empty()]
        arrays: dict[str, Any] = {"input": np.array([name for part in rows for name in part.names], np.str_)}
        if self.classifies:
            classes = _all_classes(rows)
            arrays["prediction"] = classes
            if self.labels is not None:
                arrays["label"] = np.array([self.label_of(index) for index in classes.tolist()], np.str_)
        for column in self.decoder.columns:
            decoded = np.concatenate([part.decoded[column] for part in rows])
            arrays[column] = decoded.astype(np.str_) if decoded.dtype == object else decoded
        for name in rows[0].outputs:
            key = f"output_{name}" if name in ("input", "prediction", "label", "file") else name
            arrays[key] = np.concatenate([part.outputs[name] for part in rows])
        with path.open("wb") as file:
            np.savez(file, **arrays)


_FORMATS: Mapping[str, type[Format]] = {
    "csv": CsvFormat,
    "jsonl": JsonlFormat,
    "parquet": ParquetFormat,
    "npz": NpzFormat,
}


def make_format(
    name: str, outputs: Sequence[TensorSpec], labels: Sequence[str] | None, decoder: Decoder | None = None
) -> Format:
    """The format called ``name`` for a model with these ``outputs``.

    If a ``decoder`` reads some of them, formats other than npz store its columns instead of what it reads, and leave
    out the others that are not one vector per sample.

    Raises:
        UsageError: no such format, an output that is not one vector per sample (for formats other than npz), or
            labels whose number is not the number of classes.
        MissingDependencyError: parquet without pyarrow.
    """
    if name not in _FORMATS:
        raise UsageError(f"a format is one of {', '.join(FORMATS)}, not {name!r}")
    stored = list(outputs)
    if name != "npz":
        if decoder is not None and decoder.reads:
            stored = [spec for spec in outputs if spec.name not in decoder.reads and _is_vector(spec)]
        for spec in stored:
            if not spec.shape:
                raise UsageError(f"output {spec.name!r} has no known shape; {name} cannot store it, use --format npz")
            if not _is_vector(spec):
                shape = ", ".join("?" if axis is None else str(axis) for axis in spec.shape[1:])
                raise UsageError(
                    f"output {spec.name!r} is [N, {shape}], not one vector of known length per sample; "
                    f"{name} cannot store it, use --format npz"
                )
    if labels is not None:
        if not has_classes(outputs, decoder):
            raise UsageError("labels were given, but the model's first output is not a vector of class scores")
        check_labels(labels, outputs[0])
    return _FORMATS[name](outputs, labels, decoder, stored)


def check_labels(labels: Sequence[str], scores: TensorSpec) -> None:
    """Raises UsageError unless there is one label for each of the scores [N, classes]."""
    classes = scores.shape[1]
    if classes not in (None, len(labels)):
        raise UsageError(f"{len(labels)} labels were given for the {classes} classes of output {scores.name!r}")


def has_classes(outputs: Sequence[TensorSpec], decoder: Decoder | None = None) -> bool:
    """Whether the first output is a vector of at least two scores, whose argmax is the predicted class.

    An output that ``decoder`` reads is a part of a text or a box.
    """
    first = outputs[0]
    scores = len(first.shape) == 2 and first.shape[1] != 1 and first.dtype.kind in "fiu"
    return scores and (decoder is None or first.name not in decoder.reads)


def _is_vector(spec: TensorSpec) -> bool:
    return 0 < len(spec.shape) <= 2 and None not in spec.shape[1:]


def _field(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def _json_value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value) if np.isfinite(value) else "null"


def _all_classes(parts: Sequence[Rows]) -> NDArray[np.int64]:
    return np.concatenate([part.classes for part in parts if part.classes is not None])


def quoted(text: str) -> str:
    """``text`` as a csv field, quoted if necessary."""
    if _SPECIAL.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text


def quoted_all(texts: Sequence[str]) -> Sequence[str]:
    """Each of ``texts`` as a csv field."""
    return [quoted(text) for text in texts] if _SPECIAL.search("".join(texts)) else texts


def printable_names(names: Sequence[str]) -> Sequence[str]:
    """Each of ``names`` as valid Unicode, see :func:`printable`."""
    return names if "".join(names).isascii() else [printable(name) for name in names]


def printable(name: str) -> str:
    """A file name as valid Unicode; bytes that are not UTF-8 become escapes."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _joined(values: Array) -> list[str]:
    """Each row's numbers, comma-separated, with the fewest digits that restore them in their own type."""
    if values.dtype.char not in "fdil" or not values.size:
        line = ",".join([_number(values.dtype)] * values.shape[1])
        return [line % tuple(row) for row in values.tolist()]
    # orjson takes a tenth of the time of formatting in Python, but JSON has no infinity
    finite = np.isfinite(values)
    known = values if finite.all() else np.where(finite, values, values.dtype.type(0))
    text = orjson.dumps(np.ascontiguousarray(known), option=orjson.OPT_SERIALIZE_NUMPY)
    lines = text[2:-2].decode().split("],[")
    for row in np.flatnonzero(~finite.all(axis=1)).tolist():
        numbers = lines[row].split(",")
        for column in np.flatnonzero(~finite[row]).tolist():
            numbers[column] = str(float(values[row, column]))
        lines[row] = ",".join(numbers)
    return lines


def _number(dtype: np.dtype[Any]) -> str:
    """A printf format that restores a number of this type exactly."""
    if dtype.kind != "f":
        return "%d"
    return f"%.{ {2: 5, 4: 9, 8: 17}[dtype.itemsize] }g"


def _json_numbers(values: Array) -> str:
    number = _number(values.dtype)
    finite = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    pairs = zip(values.tolist(), finite.tolist(), strict=True)
    return ", ".join(number % value if good else "null" for value, good in pairs)


def _width(spec: TensorSpec) -> int:
    return 1 if len(spec.shape) == 1 else spec.shape[1] or 0
