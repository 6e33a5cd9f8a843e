"""What turns a model's scores of classes into probabilities. Imports nothing that is slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from stn_infer.errors import UsageError

Activation = Literal["softmax", "sigmoid", "none"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
#: A note where nothing says what the scores are.
ASSUMED_SCORES = (
    "confidences assume a softmax, because nothing says what the scores are; give --activation softmax, sigmoid or "
    "none, or store it: stn-infer metadata FILE --activation ..."
)


@dataclass(frozen=True)
class Scores:
    """What a model's scores are.

    Attributes:
        activation: ``softmax``: one class is right; ``sigmoid``: any number of classes are; ``none``: the values are
            shown as they are.
        applied: whether the model itself ends in it, so that its output has probabilities.

    Raises:
        UsageError: there is no such activation, or ``none`` is applied.
    """

    activation: Activation = "softmax"
    applied: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        if self.applied and self.activation == "none":
            raise UsageError("the activation none cannot be a part of the model")

    def describe(self) -> str:
        """For people."""
        return f"{self.activation}, which the model applies itself" if self.applied else self.activation

    @classmethod
    def from_json(cls, stored: object) -> Scores:
        """What ``dataclasses.asdict`` returned.

        Raises:
            ValueError, TypeError, UsageError: it is something else.
        """
        if not isinstance(stored, dict) or not isinstance(stored.get("applied", False), bool):
            raise ValueError("the activation is not an object")
        return cls(**stored)


def resolve_scores(known: Scores | None, given: str | None) -> Scores:
    """What the scores of a model are.

    Args:
        known: what the model's file says, or its graph; None: neither says it, and a softmax is assumed.
        given: the user's activation; None: what is known.

    Raises:
        UsageError: there is no such activation, or the model ends in another one.
    """
    if given is None:
        return known or Scores()
    chosen = Scores(given)  # type: ignore[arg-type]  # checked there
    if known is None or not known.applied or given == "none":
        return chosen
    own = known.activation
    if given != own:
        raise UsageError(f"the model itself ends in a {own}, so the activation is {own} or none, not {given}")
    return known
