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
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import MissingDependencyError, UsageError
from stn_infer.extras import install
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.groups import joined
from stn_infer.predictions import Classifier, Ranked, label_of
from stn_infer.printing import counted

_SPECIAL = re.compile('[,"\r\n]')

FORMATS = ("csv", "jsonl", "parquet", "npz")
# An output of several axes has a column for each of its numbers up to so many.
_FEW = 64
# The lists of a sample's classes, best first.
_LISTS = ("predictions", "labels", "confidences")


@dataclass(frozen=True)
class Rows:
    """Predicted samples.

    Attributes:
        names: the samples' names in the status file.
        outputs: by output name, [len(names), ...].
        ranked: the classes with the highest scores in the first output; None if it is not a vector of scores.
        decoded: by column, [len(names)]: texts and the sides of boxes.
    """

    names: tuple[str, ...]
    outputs: dict[str, Array]
    ranked: Ranked | None
    decoded: dict[str, Array] = field(default_factory=dict)


class Format(ABC):
    """A file format for predictions. ``encode`` may run in any thread; ``write`` runs in one thread at a time.

    Args:
        outputs: the model's outputs, batch on axis 0.
        classifier: of the scores in the first output.
        decoder: of the texts and boxes in the outputs.
        stored: the outputs that become columns themselves.
    """

    suffix: str

    def __init__(
        self,
        outputs: Sequence[TensorSpec],
        classifier: Classifier,
        decoder: Decoder | None = None,
        stored: Sequence[TensorSpec] | None = None,
    ) -> None:
        self.outputs = tuple(outputs)
        self.classifier = classifier
        self.labels = classifier.labels
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
        """Samples with their outputs [len(names), ...], classified and decoded.

        Raises:
            UsageError: there are fewer labels than classes.
        """
        ranked = self.classifier.rank(outputs[self.outputs[0].name]) if self.classifies else None
        if ranked is not None and self.labels is not None and names:
            label_of(self.labels, int(ranked.order.max()))
        decoded = self.decoder(outputs)
        return Rows(names, {spec.name: outputs[spec.name] for spec in self.stored}, ranked, decoded)

    @abstractmethod
    def encode(self, rows: Rows) -> Any:
        """``rows`` in the form that :meth:`write` takes."""

    @abstractmethod
    def write(self, path: Path, parts: Sequence[Any]) -> None:
        """Write the encoded ``parts`` of one shard, possibly none, to ``path``.

        Raises:
            ModelError: a format that keeps the shapes of outputs, and they differ.
        """

    def empty(self) -> Rows:
        """Zero rows with the known output shapes, for a shard whose samples all failed."""
        outputs: dict[str, Array] = {
            spec.name: np.zeros((0, *(axis or 0 for axis in spec.shape[1:])), spec.dtype) for spec in self.outputs
        }
        return self.rows((), outputs)

    @property
    def class_columns(self) -> tuple[str, ...]:
        """The columns of the classes: the best one, and with ``top_k`` or a sigmoid the lists of all that are shown."""
        if not self.classifies:
            return ()
        kept = ("prediction", "label", "confidence", *(_LISTS if self.classifier.lists else ()))
        return tuple(name for name in kept if self.labels is not None or not name.startswith("label"))

    def key_of(self, output: str) -> str:
        """The name of an output where it must not be that of a column."""
        taken = {"input", "prediction", "label", *self.class_columns}
        return f"output_{output}" if output in taken else output


class CsvFormat(Format):
    """A header and one line per sample; floats have enough digits to restore their exact value."""

    suffix = "csv"

    def encode(self, rows: Rows) -> bytes:
        """Lines of UTF-8."""
        if not rows.names:
            return b""
        columns: list[Sequence[str]] = [quoted_all(rows.names)]
        if rows.ranked is not None:
            columns += self._classes(rows.ranked)
        columns += [[*map(_field, values)] for values in rows.decoded.values()]
        columns += [_joined(values.reshape(len(rows.names), -1)) for values in rows.outputs.values()]
        return ("\n".join(map(",".join, zip(*columns, strict=True))) + "\n").encode()

    def write(self, path: Path, parts: Sequence[bytes]) -> None:
        """The header and the lines."""
        columns = ["input", *self.class_columns]
        columns += [*self.decoder.columns, *(f"{spec.name}_{i}" for spec in self.stored for i in range(_width(spec)))]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(columns)
        with path.open("wb") as file:
            file.write(text.getvalue().encode())
            file.writelines(parts)

    def _classes(self, ranked: Ranked) -> list[Sequence[str]]:
        """The columns of the classes; what is in a list is joined by semicolons."""
        classes = ranked.classes.tolist()
        columns: list[Sequence[str]] = [[*map(str, classes)]]
        if self.labels is not None:
            labels = [quoted(label) for label in self.labels]
            columns.append([labels[index] for index in classes])
        columns.append(_joined(ranked.confidences[:, None]))
        if self.classifier.lists:
            shown = [row[:count] for row, count in zip(ranked.order.tolist(), ranked.counts.tolist(), strict=True)]
            columns.append([";".join(map(str, row)) for row in shown])
            if self.labels is not None:
                columns.append([quoted(";".join([self.labels[index] for index in row])) for row in shown])
            values = [line.split(",") for line in _joined(ranked.values)]
            columns.append([";".join(line[: len(row)]) for line, row in zip(values, shown, strict=True)])
        return columns


class JsonlFormat(Format):
    """One JSON object per line; each output is a list under its name, and numbers that are not finite are null."""

    suffix = "jsonl"

    def encode(self, rows: Rows) -> bytes:
        """Lines of UTF-8."""
        lines = []
        for i, name in enumerate(rows.names):
            text = f'{{"input": {json.dumps(name, ensure_ascii=False)}'
            if rows.ranked is not None:
                text += self._classes(rows.ranked, i)
            for column, decoded in rows.decoded.items():
                text += f", {json.dumps(column)}: {_json_value(decoded[i])}"
            for output, values in rows.outputs.items():
                text += f", {json.dumps(self.key_of(output))}: [{_json_numbers(values[i].reshape(-1))}]"
            lines.append(text + "}\n")
        return "".join(lines).encode()

    def write(self, path: Path, parts: Sequence[bytes]) -> None:
        """The lines."""
        with path.open("wb") as file:
            file.writelines(parts)

    def _classes(self, ranked: Ranked, row: int) -> str:
        best = ranked.best(row)
        text = f', "prediction": {best.prediction}'
        if self.labels is not None:
            text += f', "label": {json.dumps(best.label, ensure_ascii=False)}'
        text += f', "confidence": {_json_value(ranked.confidences[row])}'
        if self.classifier.lists:
            shown = ranked.shown(row)
            text += f', "predictions": {json.dumps([each.prediction for each in shown])}'
            if self.labels is not None:
                text += f', "labels": {json.dumps([each.label for each in shown], ensure_ascii=False)}'
            text += f', "confidences": [{_json_numbers(ranked.values[row, : len(shown)])}]'
        return text


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
            raise MissingDependencyError(f"--format parquet needs pyarrow; {install('parquet')}") from None
        self._pyarrow = pyarrow

    def encode(self, rows: Rows) -> Rows:
        """The rows, unchanged."""
        return rows

    def write(self, path: Path, parts: Sequence[Rows]) -> None:
        """One table."""
        arrow = self._pyarrow
        rows = parts or [self.empty()]
        columns: dict[str, Any] = {"input": arrow.array([name for part in rows for name in part.names], arrow.string())}
        types = {
            "label": arrow.string(),
            "predictions": arrow.list_(arrow.int64()),
            "labels": arrow.list_(arrow.string()),
            "confidences": arrow.list_(arrow.float32()),
        }
        for column, values in _all_classes(self, rows).items():
            lists = column in _LISTS
            columns[column] = arrow.array(_ragged(rows, values) if lists else values, types.get(column))
        for column in self.decoder.columns:
            decoded = np.concatenate([part.decoded[column] for part in rows])
            columns[column] = arrow.array(decoded, arrow.string() if decoded.dtype == object else None)
        for output, values in joined([part.outputs for part in rows]).items():
            flat = values.reshape(len(values), prod(values.shape[1:]))
            for i in range(flat.shape[1]):
                columns[f"{output}_{i}"] = arrow.array(np.ascontiguousarray(flat[:, i]))
        arrow.parquet.write_table(arrow.table(columns), path)


class NpzFormat(Format):
    """Each output in its own shape under its name, with ``input``, the classes and decoded columns.

    Lists of classes are arrays [N, K], filled up with class -1, an empty label and confidence NaN.
    """

    suffix = "npz"

    def encode(self, rows: Rows) -> Rows:
        """The rows, unchanged."""
        return rows

    def write(self, path: Path, parts: Sequence[Rows]) -> None:
        """An uncompressed .npz without pickles; an output whose name is reserved gets the prefix ``output_``."""
        rows = parts or [self.empty()]
        arrays: dict[str, Any] = {"input": np.array([name for part in rows for name in part.names], np.str_)}
        for column, values in _all_classes(self, rows).items():
            arrays[column] = np.array(values, np.str_) if column.startswith("label") else values
        for column in self.decoder.columns:
            decoded = np.concatenate([part.decoded[column] for part in rows])
            arrays[column] = decoded.astype(np.str_) if decoded.dtype == object else decoded
        for name, values in joined([part.outputs for part in rows]).items():
            arrays[f"output_{name}" if name == "file" else self.key_of(name)] = values
        with path.open("wb") as file:
            np.savez(file, **arrays)


_FORMATS: Mapping[str, type[Format]] = {
    "csv": CsvFormat,
    "jsonl": JsonlFormat,
    "parquet": ParquetFormat,
    "npz": NpzFormat,
}


def make_format(
    name: str,
    outputs: Sequence[TensorSpec],
    classifier: Classifier | None = None,
    decoder: Decoder | None = None,
    kept: Sequence[str] | None = None,
) -> Format:
    """The format called ``name`` for a model with these ``outputs``.

    If a ``decoder`` reads some of them, formats other than npz store its columns instead of what it reads, and leave
    out the others that are not one vector per sample.

    Args:
        name: of the format.
        outputs: the model's.
        classifier: of the scores in the first output.
        decoder: of the texts and boxes in the outputs.
        kept: the names of the outputs that are stored; None: all that the format can store.

    Raises:
        UsageError: no such format or output, an output that is not one vector per sample (for formats other than npz),
            labels whose number is not the number of classes, or options of a classifier without classes.
        MissingDependencyError: parquet without pyarrow.
    """
    if name not in _FORMATS:
        raise UsageError(f"a format is one of {', '.join(FORMATS)}, not {name!r}")
    classifier = classifier or Classifier()
    stored = list(outputs) if kept is None else _chosen(outputs, kept)
    if name != "npz":
        if decoder is not None and decoder.reads and kept is None:
            stored = [spec for spec in outputs if spec.name not in decoder.reads and _is_vector(spec)]
        for spec in stored:
            if not spec.shape:
                raise UsageError(f"output {spec.name!r} has no known shape; {name} cannot store it, use --format npz")
            if not _is_vector(spec) and not _is_small(spec):
                shape = ", ".join("?" if axis is None else str(axis) for axis in spec.shape[1:])
                raise UsageError(
                    f"output {spec.name!r} is [N, {shape}], not one vector of known length per sample; "
                    f"{name} cannot store it, use --format npz"
                )
    check_classes(outputs, classifier.labels, classifier.top_k, classifier.threshold, decoder=decoder)
    return _FORMATS[name](outputs, classifier, decoder, stored)


def _chosen(outputs: Sequence[TensorSpec], kept: Sequence[str]) -> list[TensorSpec]:
    known = [spec.name for spec in outputs]
    for name in kept:
        if name not in known:
            raise UsageError(f"the model has no output {name!r}; its outputs are {', '.join(known)}")
    return [spec for spec in outputs if spec.name in kept]


def check_classes(
    outputs: Sequence[TensorSpec],
    labels: Sequence[str] | None = None,
    *options: object,
    decoder: Decoder | None = None,
) -> None:
    """Raises UsageError unless labels and other ``options`` of a classifier, where not None, fit the first output."""
    if labels is not None and has_classes(outputs, decoder):
        check_labels(labels, outputs[0])
    elif labels is not None:
        raise UsageError("labels were given, but the model's first output is not a vector of class scores")
    elif any(option is not None for option in options) and not has_classes(outputs, decoder):
        raise UsageError("the model's first output is not a vector of class scores, which can be ranked")


def check_labels(labels: Sequence[str], scores: TensorSpec) -> None:
    """Raises UsageError unless there is one label for each of the scores [N, classes]."""
    classes = scores.shape[1]
    if classes not in (None, len(labels)):
        raise UsageError(f"{counted(len(labels), 'label')} given for the {classes} classes of output {scores.name!r}")


def has_classes(outputs: Sequence[TensorSpec], decoder: Decoder | None = None) -> bool:
    """Whether the first output is a vector of at least two scores, whose argmax is the predicted class.

    An output that ``decoder`` reads is a part of a text or a box.
    """
    first = outputs[0]
    scores = len(first.shape) == 2 and first.shape[1] != 1 and first.dtype.kind in "fiu"
    return scores and (decoder is None or first.name not in decoder.reads)


def _is_vector(spec: TensorSpec) -> bool:
    return 0 < len(spec.shape) <= 2 and None not in spec.shape[1:]


def _is_small(spec: TensorSpec) -> bool:
    """Whether an output has several axes and few numbers per sample, such as theta [N, 2, 3]: one column for each."""
    return None not in spec.shape[1:] and prod(axis or 0 for axis in spec.shape[1:]) <= _FEW


def _field(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def _json_value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value) if np.isfinite(value) else "null"


def _all_classes(format: Format, parts: Sequence[Rows]) -> dict[str, Any]:
    """The columns of the classes by name; lists are [N, K], with class -1 and confidence NaN after their end."""
    ranked = [part.ranked for part in parts if part.ranked is not None]
    if not ranked:
        return {}
    classes = np.concatenate([each.classes for each in ranked])
    found: dict[str, Any] = {"prediction": classes}
    found["confidence"] = np.concatenate([each.confidences for each in ranked])
    if format.labels is not None:
        found["label"] = [format.labels[number] for number in classes.tolist()]
    if format.classifier.lists:
        found["predictions"] = np.concatenate([each.padded(each.order, -1) for each in ranked])
        found["confidences"] = np.concatenate([each.padded(each.values, np.nan) for each in ranked])
        if format.labels is not None:
            names = [*format.labels, ""]  # class -1 has the last one
            found["labels"] = [[names[number] for number in row] for row in found["predictions"].tolist()]
    return {name: found[name] for name in format.class_columns}


def _ragged(parts: Sequence[Rows], values: Any) -> list[Any]:
    """Rows of [N, K] up to their ends."""
    counts = [count for part in parts if part.ranked is not None for count in part.ranked.counts.tolist()]
    rows = values if isinstance(values, list) else values.tolist()
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


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
    import orjson  # npz and parquet need none

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
    return prod(axis or 0 for axis in spec.shape[1:])
