"""The device of a backend, parsed from ``cpu``, ``cuda`` or ``cuda:N``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from stn_infer.errors import UsageError


@dataclass(frozen=True)
class Device:
    """A device: ``kind`` and, for CUDA, the index among the visible GPUs."""

    kind: Literal["cpu", "cuda"]
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """The device that ``text`` names.

        Raises:
            UsageError: ``text`` is neither ``cpu`` nor ``cuda`` nor ``cuda:N``.
        """
        match = re.fullmatch(r"cpu|cuda(?::(\d+))?", text)
        if match is None:
            raise UsageError(f"a device is 'cpu', 'cuda' or 'cuda:N', not {text!r}")
        return cls("cpu") if text == "cpu" else cls("cuda", int(match[1] or 0))

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"
