"""What a pass hands on, and what it says of what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import onnx

Note = TypeVar("Note")


class NotRepairable(Exception):
    """Why a pass can't do its work: one clause."""


@dataclass(frozen=True)
class Repair:
    """One thing that was fixed, or that could not be.

    Attributes:
        code: of the finding that it answers.
        message: one clause: what was done; or why it was not.
        done: which of the two.
    """

    code: str
    message: str
    done: bool = True


@dataclass(frozen=True)
class PassResult(Generic[Note]):
    """What a pass made of a model.

    Attributes:
        model: a changed copy, or the given model itself.
        changed: which of the two.
        notes: what was done: repairs; of the fusion, a finding for each sampler.
    """

    model: onnx.ModelProto
    changed: bool = False
    notes: tuple[Note, ...] = ()
