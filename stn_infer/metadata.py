"""A model's pre-processing, labels, activation and decodings, and how they are stored in an ONNX file.

They are stored as JSON in ``metadata_props`` under keys that start with ``stn_infer.``, so that a file copied to
another machine still describes its inputs. This module imports neither torch nor onnx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from stn_infer.activation import Scores
from stn_infer.decoding import Decoding, decodings_from_json, decodings_to_json
from stn_infer.errors import UsageError
from stn_infer.json_text import json_text
from stn_infer.preprocess.rule import Embedded, Preprocess
from stn_infer.printing import Printed

PREFIX = "stn_infer."
_SHOWN = 10  # labels

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: How spatial transformers are written: as ops of domain ``stn`` with functions, or as plain operators.
Functions = Literal["keep", "inline"]
FUNCTIONS: tuple[Functions, ...] = get_args(Functions)


#: What :attr:`ModelMetadata.weights` says of weights that nobody trained.
RANDOM = "random"


@dataclass(frozen=True)
class ModelMetadata(Printed):
    """Metadata stored with a model; as text, what the command ``metadata`` prints.

    Attributes:
        preprocess: how images become inputs; None when unknown.
        labels: one name per class, in the order of the first output's last axis; None when unknown.
        source: the shipped model's name, or the SOURCE of a loaded model; empty when unknown. A file stores only the
            name of a shipped model: a factory or a path has no meaning on another machine.
        precision: the precision of the file's weights and features.
        batch_dependent: the outputs of a sample that depend on the other samples of its batch, as far as export found.
        decodings: the texts and boxes that its outputs encode.
        weights: which part of the checkpoint its weights are; ``random``: none; empty where there was nothing
            to choose from.
        scores: what the scores of the classes are; None when unknown.
        embedded: whether the graph does the preprocessing itself; None: it does not.
    """

    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None
    source: str = ""
    precision: Precision = "fp32"
    batch_dependent: tuple[str, ...] = ()
    decodings: tuple[Decoding, ...] = ()
    weights: str = ""
    scores: Scores | None = None
    embedded: Embedded | None = None

    def lines(self) -> list[str]:
        """One line per field that a user may want to see."""
        lines = [f"preprocess: {self.preprocess.describe() if self.preprocess else 'unknown'}"]
        if self.embedded is not None:
            size = self.embedded.size
            which = f"of {size[0]}x{size[1]} pixels" if size else "that the caller has resized and cropped"
            lines.append(f"  in the graph: the input is uint8 [N, H, W, C], pictures {which}")
        if self.labels is None:
            lines.append("labels: unknown")
        else:
            more = "" if len(self.labels) <= _SHOWN else f", ... ({len(self.labels)} in all)"
            lines.append(f"labels: {', '.join(self.labels[:_SHOWN])}{more}")
        lines.append(f"activation: {self.scores.describe() if self.scores else 'unknown'}")
        lines.append(f"precision: {self.precision}")
        if self.source:
            lines.append(f"source: {self.source}")
        if self.weights:
            lines.append(f"weights: {self.weights}")
        if self.batch_dependent:
            lines.append(f"batch-dependent outputs: {', '.join(self.batch_dependent)}")
        lines += [f"{each.kind}: {each.name}, from {', '.join(each.reads)}" for each in self.decodings]
        return lines

    def to_json(self) -> str:
        """One JSON object; its layout is stable."""
        fields = asdict(self)
        fields["text"] = None if self.preprocess is None else self.preprocess.describe()
        return json_text(fields)

    def to_props(self) -> dict[str, str]:
        """The ``metadata_props`` of an ONNX file, string to string."""
        props: dict[str, str] = {}
        if self.preprocess is not None:
            props[PREFIX + "preprocess"] = json.dumps(asdict(self.preprocess))
        if self.labels is not None:
            props[PREFIX + "labels"] = json.dumps(list(self.labels))
        if self.source:
            props[PREFIX + "source"] = self.source
        if self.precision != "fp32":
            props[PREFIX + "precision"] = self.precision
        if self.batch_dependent:
            props[PREFIX + "batch_dependent"] = json.dumps(list(self.batch_dependent))
        if self.decodings:
            props[PREFIX + "decodings"] = json.dumps(decodings_to_json(self.decodings))
        if self.weights:
            props[PREFIX + "weights"] = self.weights
        if self.scores is not None:
            props[PREFIX + "scores"] = json.dumps(asdict(self.scores))
        if self.embedded is not None:
            props[PREFIX + "embedded"] = json.dumps(asdict(self.embedded))
        return props

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> ModelMetadata:
        """Reads what :meth:`to_props` wrote; ignores all other keys.

        Raises:
            UsageError: an ``stn_infer.`` key holds a value that this version does not write.
        """
        preprocess, labels = props.get(PREFIX + "preprocess"), props.get(PREFIX + "labels")
        scores, embedded = props.get(PREFIX + "scores"), props.get(PREFIX + "embedded")
        precision = next((name for name in PRECISIONS if name == props.get(PREFIX + "precision", "fp32")), None)
        try:
            if precision is None:
                raise ValueError(f"precision {props[PREFIX + 'precision']!r}")
            return cls(
                None if preprocess is None else Preprocess.from_json(json.loads(preprocess)),
                None if labels is None else _labels_from_json(json.loads(labels)),
                props.get(PREFIX + "source", ""),
                precision,
                _labels_from_json(json.loads(props.get(PREFIX + "batch_dependent", "[]"))),
                decodings_from_json(json.loads(props.get(PREFIX + "decodings", "[]"))),
                props.get(PREFIX + "weights", ""),
                None if scores is None else Scores.from_json(json.loads(scores)),
                None if embedded is None or preprocess is None else Embedded.from_json(json.loads(embedded)),
            )
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, UsageError) as error:
            raise UsageError(f"the file's stn_infer metadata is damaged ({error}); export it again") from None


def _labels_from_json(labels: object) -> tuple[str, ...]:
    if not isinstance(labels, list) or any(isinstance(label, list | dict) for label in labels):
        raise ValueError("expected a list of names")
    return tuple(map(str, labels))
