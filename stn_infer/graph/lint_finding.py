"""What ``lint`` reports, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class LintFinding:
    """One thing that will be slow or wrong, or that is worth knowing.

    Attributes:
        code: what kind of finding it is; stable between releases.
        severity: ``error``: a runtime gives wrong values or can't run it; ``warning``: slow, imprecise, or refused by
            some runtime; ``info``: good to know.
        node: the node's name (or its output's); "" where it is about the whole file.
        tensor: the tensor it is about; "" where there is none.
        message: what, why it matters, what to do.
        fixable: whether ``stn-infer optimize`` mends it.
    """

    code: str
    severity: Severity
    node: str
    tensor: str
    message: str
    fixable: bool = False
