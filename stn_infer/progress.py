"""What is being done, told to whoever shows it: the command line's status line, or lines with ``--verbose``.

Long-running functions name their steps; nothing is printed here, and without a listener nothing happens. Steps of other
threads than the listener's are not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    """Shows what is told."""

    def step(self, text: str) -> None:
        """A step begins; the one before it is over."""

    def detail(self, text: str) -> None:
        """A fact for those who ask for more, such as a runtime's own message."""


_LISTENER: ContextVar[Listener | None] = ContextVar("_LISTENER", default=None)


@contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """A block whose steps and details ``listener`` is told."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def step(text: str) -> None:
    """Say what is done from now on, such as ``exporting with PyTorch``."""
    listener = _LISTENER.get()
    if listener is not None:
        listener.step(text)


def detail(text: str) -> None:
    """Say a fact that is shown only to those who ask for more."""
    listener = _LISTENER.get()
    if listener is not None:
        listener.detail(text)
