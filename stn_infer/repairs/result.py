"""The result of a repair pass."""

from __future__ import annotations

from dataclasses import dataclass

import onnx


class NotRepairable(Exception):
    """A pass can't run or can't repair the model; the message is one clause."""


@dataclass(frozen=True)
class Repair:
    """One repair, done or not.

    Attributes:
        code: the code of the finding that it fixes.
        message: one clause: what was fixed, or why it could not be fixed.
        done: whether it was fixed.
    """

    code: str
    message: str
    done: bool = True


@dataclass(frozen=True)
class PassResult:
    """The result of one or more repair passes.

    Attributes:
        model: a changed copy, or the given model itself.
        changed: whether it is a changed copy.
        notes: the repairs that were done or that could not be done.
    """

    model: onnx.ModelProto
    changed: bool = False
    notes: tuple[Repair, ...] = ()
