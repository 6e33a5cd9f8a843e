"""Suppresses what libraries print, such as PyTorch's exporters about optional packages and future deprecations."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator

_STDERR = threading.RLock()  # two threads that put it back in another order would lose it for ever


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context without warnings, log messages, or output on stderr."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def no_stderr() -> Iterator[None]:
    """A context in which what native libraries write to stderr is lost too; one thread after the other."""
    if sys.stderr is None:  # closed; the descriptor may be that of another file
        yield
        return
    with _STDERR:
        sys.stderr.flush()
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
