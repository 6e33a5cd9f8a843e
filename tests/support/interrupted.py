"""The command line with one function of it that waits, so that a signal comes at a known place.

    python interrupted.py MODULE:FUNCTION WAIT DESCRIPTOR [ARGUMENT ...]

WAIT is ``python`` (instructions of Python), ``native`` (one call that never returns and releases Python's lock, as
onnxruntime's and TensorRT's do), or ``child`` (the function makes a context, and a process that this one started runs).
When the place is reached, a byte is written to the descriptor.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def main() -> None:
    """Replace the function, and run the command."""
    place, kind, descriptor = sys.argv[1], sys.argv[2], int(sys.argv[3])
    module, _, names = place.partition(":")
    *owners, name = names.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)

    def waits(*arguments: object, **named: object) -> None:
        if kind == "native":
            threading.Timer(0.2, os.write, (descriptor, b"!")).start()
            mutex = ctypes.create_string_buffer(256)
            while True:  # the second time for ever, whatever signals come
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        os.write(descriptor, b"!")
        while True:
            time.sleep(0.01)

    @contextmanager
    def started(*arguments: Any, **named: Any) -> Iterator[Any]:
        with original(*arguments, **named) as child:
            os.write(descriptor, b"!")
            yield child

    setattr(owner, name, started if kind == "child" else waits)
    from stn_infer.__main__ import main as command_line

    sys.argv[1:] = sys.argv[4:]
    command_line()


if __name__ == "__main__":
    main()
