"""What several tests need."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def nothing_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond ``size`` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def answers_of(processes: Sequence[subprocess.Popen[bytes]]) -> list[tuple[bytes, bytes]]:
    """Let processes that wait for a line start at once; the standard output and error of each at its end."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    return [process.communicate(timeout=120) for process in processes]
