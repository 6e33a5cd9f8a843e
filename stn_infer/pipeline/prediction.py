"""What a model predicts for one sample, as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stn_infer.arrays import Array
from stn_infer.errors import of_input
from stn_infer.predictions import Candidate
from stn_infer.printing import Printed


@dataclass(frozen=True, eq=False, slots=True)
class Warp:
    """What one sampler did to one sample.

    Attributes:
        theta: [D, K], of the transformation; None for a sampler that reads any grid.
        warped: [C, *out], the result.
    """

    theta: Array | None
    warped: Array


@dataclass(frozen=True, eq=False, slots=True)
class Prediction(Printed):
    """The prediction for one sample.

    Attributes:
        input: the sample's name: its path, with ``[row]`` for a row of an array file, or its number in brackets.
        prediction: the number of the class with the highest score; None if the model gives no scores of classes.
        label: its name; None if the classes have no names.
        confidence: its probability, see ``activation``.
        candidates: the classes that are shown, best first: the best one, ``top_k`` of them, or with a sigmoid those
            above the threshold.
        decoded: texts and boxes by column, as the model's file defines them.
        outputs: every output of the model by name, without the batch.
        warps: what each sampler did, in the order of the graph; empty unless it was asked for.
        error: why there is no prediction; empty if there is one.
    """

    input: str
    prediction: int | None = None
    label: str | None = None
    confidence: float | None = None
    candidates: tuple[Candidate, ...] = ()
    decoded: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Array] = field(default_factory=dict)
    warps: tuple[Warp, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return not self.error

    def lines(self) -> list[str]:
        """One line: the classes, texts and boxes, or the error."""
        if self.error:
            return [f"failed: {of_input(self.input, self.error)}"]
        found = [each.describe() for each in self.candidates]
        found += [f"{name} {value}" for name, value in self.decoded.items()]
        if not found:
            shapes = (f"{name} {list(value.shape)}" for name, value in self.outputs.items())
            found = ["no class prediction" if self.prediction is None else "no class above the threshold", *shapes]
        return [f"{self.input}: {', '.join(found)}"]
