"""``eval``: predict labeled samples and score the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.api.source import names_the_file
from stn_infer.arrays import Array
from stn_infer.backends.base import Backend, TensorSpec
from stn_infer.backends.batching import row_axis
from stn_infer.backends.embedded import taking_pictures
from stn_infer.budget import Budget
from stn_infer.data.labeled import Labeled, read_labeled
from stn_infer.data.loader import Loader, resolve_preprocess, tell_assumption
from stn_infer.decoding import Decoding
from stn_infer.errors import InputError, ModelError, UsageError
from stn_infer.json_text import json_text
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.formats import check_labels, has_classes
from stn_infer.pipeline.scores import BoxScore, Classification, SequenceScore
from stn_infer.pipeline.shards import Progress
from stn_infer.predictions import Classifier
from stn_infer.preprocess.rule import Preprocess
from stn_infer.printing import Printed
from stn_infer.sources.load import LoadedModel
from stn_infer.sources.reference import WeightsLike
from stn_infer.text_tables import Table, layout

if TYPE_CHECKING:
    from torch import nn

_SHOWN_FAILURES = 5
_ANY_WIDTH = 1000  # columns of a table that is not printed in a terminal


@dataclass(frozen=True)
class Evaluation:
    """The result of ``eval``.

    Attributes:
        samples: how many were given, ``scored`` + ``failed``.
        scored, failed: predicted and compared, or unreadable or without a prediction.
        failures: (input, error) of the first few that failed.
        backend: what ran the model.
        precision: of the model's file.
        classification, sequence, boxes: the scores that the labels and the model allow, otherwise None.
        model: the file or source; empty for an open backend.
        predicted: the predicted class or text of each sample, None where there is none; empty for boxes.
    """

    samples: int
    scored: int
    failed: int
    failures: tuple[tuple[str, str], ...]
    backend: str
    precision: str
    classification: Classification | None = None
    sequence: SequenceScore | None = None
    boxes: BoxScore | None = None
    model: str = ""
    predicted: tuple[str | None, ...] = field(default=(), repr=False)

    def to_json(self) -> str:
        """The evaluation as JSON, as the command prints with ``--json``."""
        return json_text(self)

    def json_content(self) -> dict[str, Any]:
        """The fields, without scores that are None and without predictions."""
        fields = asdict(self)
        del fields["predicted"]
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Change:
    """How predictions differ from those of another model or runtime, on samples that both predicted.

    Attributes:
        same: samples with the same prediction.
        lost: samples that only the other one has right.
        gained: samples that only this one has right.
    """

    same: int
    lost: int
    gained: int


@dataclass(frozen=True)
class Comparison(Printed):
    """Models and runtimes on the same samples.

    Attributes:
        evaluations: one for each model in each runtime, in the order given.
        changes: of each from the first; None for boxes, and for the first itself.
    """

    evaluations: tuple[Evaluation, ...]
    changes: tuple[Change | None, ...]

    def lines(self) -> list[str]:
        """A table, and what its columns mean."""
        return ["".join(line) for line in layout(self.table(), _ANY_WIDTH)] + self.remarks()

    def table(self) -> Table:
        """A row for each evaluation."""
        first = self.evaluations[0]
        top = "" if first.classification is None else first.classification.top_label
        rows = []
        for found, change in zip(self.evaluations, self.changes, strict=True):
            changed = ("", "", "") if change is None else tuple(map(str, (change.same, change.lost, change.gained)))
            rows.append((Path(found.model).name, found.backend, found.precision, *_numbers(found, top), *changed))
        headings = ("model", "backend", "precision", *_headings(first, top), "same", "lost", "gained")
        return Table(headings=headings, rows=rows, numbers=frozenset(range(3, len(headings))), optional=("precision",))

    def remarks(self) -> list[str]:
        """How many samples there were, and what the last columns mean."""
        failed = max(found.failed for found in self.evaluations)
        lines = [f"{self.evaluations[0].samples} samples" + (f", up to {failed} of them failed" if failed else "")]
        if any(change is not None for change in self.changes):
            lines.append("same: as in the first row; lost: right only there; gained: right only here")
        return lines

    def json_content(self) -> dict[str, Any]:
        """The evaluations, each with its ``change`` from the first."""
        rows = []
        for found, change in zip(self.evaluations, self.changes, strict=True):
            rows.append(found.json_content() | ({} if change is None else {"change": asdict(change)}))
        return {"evaluations": rows}


def _headings(found: Evaluation, top: str) -> tuple[str, ...]:
    if found.classification is not None:
        return ("accuracy", top) if top else ("accuracy",)
    return ("sequence error", "character error") if found.sequence is not None else ("mean IoU", "IoU > 0.5")


def _numbers(found: Evaluation, top: str) -> tuple[str, ...]:
    if found.classification is not None:
        accuracy, among = found.classification.accuracy, found.classification.top_k_accuracy
        return (f"{accuracy:.2%}", f"{among or 0:.2%}") if top else (f"{accuracy:.2%}",)
    if found.sequence is not None:
        return f"{found.sequence.error:.2%}", f"{found.sequence.character_error:.2%}"
    assert found.boxes is not None
    return f"{found.boxes.mean_iou:.3f}", f"{found.boxes.above_half:.2%}"


def compare(
    models: Sequence[str | Path | Backend], data: str | Path, *, backends: Sequence[str] = ("ort",), **options: Any
) -> Comparison:
    """Evaluate several models, in several runtimes, on the same samples.

    Args:
        models: as for :func:`evaluate`, such as a file in FP32, FP16 and INT8.
        data: as for :func:`evaluate`.
        backends: runtimes; each runs every model.
        options: as for :func:`evaluate`; ``weights`` and ``input_shapes`` apply to the first model.

    Raises:
        UsageError: there is no model or runtime, or the models predict different things.
        StnInferError: as for :func:`evaluate`.
    """
    if not models or not backends:
        raise UsageError("expected at least one model and one backend")
    given = read_labeled(data).labels
    found: list[Evaluation] = []
    for index, model in enumerate(models):
        own = options if index == 0 else {**options, "weights": None, "input_shapes": None}
        for backend in ("",) if isinstance(model, Backend) else backends:
            found.append(evaluate(model, data, backend=backend, **own))
            if _headings(found[-1], "") != _headings(found[0], ""):
                raise UsageError(f"{found[-1].model} and {found[0].model} predict different things")
    changes = [None if each is found[0] else _change(found[0], each, given) for each in found]
    return Comparison(tuple(found), tuple(changes))


def _change(first: Evaluation, other: Evaluation, truth: Sequence[str] | None) -> Change | None:
    if truth is None or not first.predicted or not other.predicted:
        return None
    rows = [row for row in zip(first.predicted, other.predicted, truth, strict=True) if None not in row]
    return Change(
        sum(one == another for one, another, _ in rows),
        sum(one == right != another for one, another, right in rows),
        sum(another == right != one for one, another, right in rows),
    )


@names_the_file
def evaluate(
    model: str | Path | nn.Module | LoadedModel | Backend,
    data: str | Path,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
    backend: str = "ort",
    device: str = "cpu",
    batch_size: int = 64,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    threads: int | None = None,
    strict: bool = False,
    top_k: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict labeled samples, and report accuracy, sequence error or IoU.

    The model's file says what its outputs are: a sequence or a box (:class:`~stn_infer.decoding.Decoding`), otherwise
    the first output has the scores of classes. A sample that cannot be read is counted as failed and not scored.

    Args:
        model: as for ``run``.
        data: a folder with one subfolder per class, or a CSV file, see :func:`~stn_infer.data.labeled.read_labeled`.
        weights, input_shapes, allow_code, budget, backend, device, batch_size, preprocess: as for ``run``.
        labels: the name of each class; None: those in the model's file, or else its number.
        threads: of the runtime; None: its default.
        strict: as for ``run``.
        top_k: also report how often the label is among so many best classes.
        progress: called with (samples done, total samples) after each batch.

    Raises:
        UsageError: options do not fit the model, or the model predicts neither classes, texts nor boxes.
        InputError: ``data`` has no samples, lacks labels, or has a class that the model does not know; or no sample
            could be scored.
        SourceError, ModelError, ExportError, MissingDependencyError: the model cannot be loaded or run.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is at least 1, not {batch_size}")
    given = read_labeled(data)
    with ExitStack() as stack:
        if not isinstance(model, Backend):
            from stn_infer.api.open import open_backend

            runner = open_backend(
                model,
                backend,
                device,
                threads,
                weights=weights,
                input_shapes=input_shapes,
                allow_code=allow_code,
                budget=budget,
            )
            stack.callback(runner.close)
        elif weights is not None or input_shapes is not None:
            raise UsageError("the backend is already open; pass weights and input shapes where it is opened")
        else:
            runner = model
        found = _evaluate(runner, given, str(data), batch_size, preprocess, labels, strict, top_k, progress)
        return replace(found, model=str(model) if isinstance(model, (str, Path)) else "")


@dataclass
class _Found:
    """The predictions so far, by the samples' positions."""

    classes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # best first
    texts: dict[int, str] = field(default_factory=dict)
    boxes: dict[int, Array] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Reader:
    """Which outputs are compared with what: class numbers, a text and a box, None for those that are not."""

    scores: TensorSpec | None
    decoder: Decoder
    text: Decoding | None
    box: Decoding | None
    classifier: Classifier

    def keep(self, found: _Found, rows: Sequence[int], outputs: dict[str, Array]) -> None:
        """Add the predictions of samples ``rows`` to ``found``."""
        names = {*([self.scores.name] if self.scores else []), *self.decoder.reads}
        good = np.ones(len(rows), bool)
        for name in names:
            if outputs[name].dtype.kind == "f":
                good &= ~np.isnan(outputs[name].reshape(len(rows), -1)).any(axis=1)
        for row in (rows[i] for i in np.flatnonzero(~good).tolist()):
            found.errors[row] = "the model's output contains NaN for this input"
        kept = [(i, rows[i]) for i in np.flatnonzero(good).tolist()]
        if self.scores is not None:
            order = self.classifier.rank(outputs[self.scores.name]).order.tolist()
            found.classes.update((row, tuple(order[i])) for i, row in kept)
        if self.text is not None:
            texts = self.decoder.texts(self.text, outputs)
            found.texts.update((row, texts[i]) for i, row in kept)
        if self.box is not None:
            boxes = self.decoder.boxes(self.box, outputs)
            found.boxes.update((row, boxes[i]) for i, row in kept)


def _evaluate(
    runner: Backend,
    given: Labeled,
    data: str,
    batch_size: int,
    preprocess: Preprocess | str | None,
    labels: Sequence[str] | None,
    strict: bool,
    top_k: int | None,
    progress: Progress | None,
) -> Evaluation:
    runner = taking_pictures(runner)
    reader = _reader(runner, given, data, top_k)
    names = _class_names(runner, reader, labels)
    truth = _class_numbers(given, names, data) if reader.scores else ()
    how = resolve_preprocess(runner.inputs, runner.metadata.preprocess, preprocess)
    loader = Loader(runner.inputs, how, row_axis(runner.inputs, runner.outputs), runner.device)
    found = _Found()
    told = False
    for start in range(0, len(given.samples), batch_size):
        samples = given.samples[start : start + batch_size]
        loaded = loader.load(samples)
        if not told and loader.has_pixels(samples):
            tell_assumption(how, runner.metadata.preprocess, preprocess, strict=strict)
            told = True
        found.errors.update((start + i, error) for i, error in loaded.errors.items())
        for group in loaded.groups:
            rows = [start + i for i in group.rows]
            try:
                reader.keep(found, rows, runner.run(group.inputs))
            except ModelError as error:
                if not any(None in spec.shape[1:] for spec in runner.inputs):  # all other batches would fail too
                    raise
                found.errors.update((row, str(error)) for row in rows)
        if progress is not None:
            progress(min(start + batch_size, len(given.samples)), len(given.samples))
    failures = tuple((given.samples[row].name, found.errors[row]) for row in sorted(found.errors))
    scored = [row for row in range(len(given.samples)) if row not in found.errors]
    if not scored:
        raise InputError(f"none of the {len(given.samples)} samples of {data} could be scored: {failures[0][1]}")
    return Evaluation(
        samples=len(given.samples),
        scored=len(scored),
        failed=len(failures),
        failures=failures[:_SHOWN_FAILURES],
        backend=runner.name,
        precision=runner.metadata.precision,
        classification=Classification.of(
            [truth[i] for i in scored], [found.classes[i] for i in scored], names, top_k=top_k
        )
        if reader.scores
        else None,
        sequence=SequenceScore.of([given.labels[i] for i in scored], [found.texts[i] for i in scored])
        if reader.text and given.labels is not None
        else None,
        boxes=BoxScore.of(
            np.array([given.boxes[i] for i in scored], np.float64), np.stack([found.boxes[i] for i in scored])
        )
        if reader.box and given.boxes is not None
        else None,
        predicted=tuple(_predicted(found, row, names) for row in range(len(given.samples))) if given.labels else (),
    )


def _predicted(found: _Found, row: int, names: Sequence[str]) -> str | None:
    """What is compared with a sample's label."""
    if row in found.errors:
        return None
    return names[found.classes[row][0]] if row in found.classes else found.texts.get(row)


def _reader(runner: Backend, given: Labeled, data: str, top_k: int | None) -> _Reader:
    """What of the model's outputs the labels are compared with."""
    decodings = runner.metadata.decodings
    decoder = Decoder(decodings, runner.inputs, runner.outputs)
    text = next((each for each in decodings if each.kind == "sequence"), None) if given.labels is not None else None
    box = next((each for each in decodings if each.kind == "box"), None) if given.boxes is not None else None
    first = runner.outputs[0]
    compared = given.labels is not None and text is None
    scores = first if compared and has_classes(runner.outputs, decoder) else None
    if given.boxes is not None and box is None:
        raise UsageError(f"{data} has boxes, but the model's file does not say which output is a box")
    if given.labels is not None and scores is None and text is None:
        wanted = ": its outputs are boxes, so give a CSV file with path, left, top, right, bottom" if decodings else ""
        raise UsageError(f"{data} has labels, but the model predicts neither classes nor a text{wanted}")
    if top_k is not None and scores is None:
        raise UsageError("top_k is for classes, which are not what is compared")
    return _Reader(scores, decoder, text, box, Classifier(top_k=top_k))


def _class_names(runner: Backend, reader: _Reader, labels: Sequence[str] | None) -> tuple[str, ...]:
    if reader.scores is None:
        if labels is not None:
            raise UsageError("labels were given, but classes are not what is compared")
        return ()
    count = reader.scores.shape[1]
    names = runner.metadata.labels if labels is None else tuple(labels)
    if names is None:
        if count is None:
            raise UsageError("the number of classes is unknown; give their names with --labels FILE")
        return tuple(map(str, range(count)))
    check_labels(names, reader.scores)
    if len(set(names)) != len(names):
        raise UsageError("two classes have the same label; give other names with --labels FILE")
    return names


def _class_numbers(given: Labeled, names: Sequence[str], data: str) -> tuple[int, ...]:
    assert given.labels is not None
    numbers = {name: index for index, name in enumerate(names)}
    for sample, label in zip(given.samples, given.labels, strict=True):
        if label not in numbers:
            known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise InputError(
                f"{data}: {sample.name} has the unknown class {label!r}; the model's classes are {known} "
                "(--labels FILE names them otherwise)"
            )
    return tuple(numbers[label] for label in given.labels)
