"""What a runtime, or what is known of it, says about a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stn_infer.lint_rules.report import Outcome


@dataclass(frozen=True)
class Reason:
    """Why a model is refused.

    Attributes:
        text: one clause, the parser's own where there is one.
        node: the node's name, or its first output's; "" if no node is concerned.
        within: where the node is, if it is not in the main graph: its If or the call of its function.
    """

    text: str
    node: str = ""
    within: str = ""


@dataclass(frozen=True)
class Judgment:
    """What is said about one model.

    Attributes:
        judge: who says it, such as ``TensorRT-RTX 1.7.1's parser``.
        reasons: why it is refused; empty if it is not.
        unjudged: operators of which nothing is known, with their numbers of nodes.
        note: why nothing could judge it as a whole; "" if that is not so.
    """

    judge: str
    reasons: tuple[Reason, ...] = ()
    unjudged: tuple[str, ...] = ()
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        """``refused`` if there is a reason, else ``not judged`` if something is left over."""
        return "refused" if self.reasons else "not judged" if self.unjudged or self.note else "supported"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Judgment:
        """The inverse of :meth:`to_dict`."""
        reasons = tuple(Reason(**reason) for reason in content["reasons"])
        return cls(content["judge"], reasons, tuple(content["unjudged"]), content["note"])
