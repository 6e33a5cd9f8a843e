"""Runs a model as if ``torch.autocast`` were not in its code.

A file has one type for each tensor, and runtimes have no bfloat16 operators on CPUs. What a forward computes under
autocast is therefore exported in float32, which is also what it is compared with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def autocast_off() -> Iterator[list[str]]:
    """A context in which ``torch.autocast`` has no effect; yields the types that it would have had, in order."""
    import torch

    original: Any = torch.autocast.__enter__
    seen: list[str] = []

    def enter(self: Any) -> Any:
        enabled = self._enabled
        if enabled:
            seen.append(str(self.fast_dtype).removeprefix("torch."))
        self._enabled = False
        try:
            return original(self)
        finally:
            self._enabled = enabled

    torch.autocast.__enter__ = enter  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        torch.autocast.__enter__ = original  # type: ignore[method-assign]
