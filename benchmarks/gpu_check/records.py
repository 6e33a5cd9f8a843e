"""Results as lines of JSON, each in the file before the next is measured.

A line is appended by one write, so that it stays whole however the program ends that wrote it, and several programs
can write to one file. A line that is not whole all the same is ignored.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What a line tells: the machine, a step's end, a case's beginning, an omitted or failed case, a time, a ratio.
KINDS = ("head", "step", "begin", "note", "failure", "row", "figure", "end")
_CLOSING = ("note", "failure", "row")  # a case has ended


@dataclass(frozen=True)
class Record:
    """One line.

    Attributes:
        run: the run that wrote it; a file may have several.
        step: its step; empty if it is of the whole run.
        kind: one of :data:`KINDS`.
        case: what was measured; empty for other kinds.
        values: the rest, by name.
    """

    run: str
    step: str
    kind: str
    case: str
    values: Mapping[str, Any]


class Records:
    """The lines of one step of a run, or of a whole run.

    Args:
        path: the file; it and its folder are made for the first line.
        run: a name for the run, such as the time of its beginning.
        step: the step's name.
    """

    def __init__(self, path: Path, run: str, step: str = "") -> None:
        self.path, self.run, self.step = path, run, step

    def append(self, kind: str, case: str = "", **values: object) -> None:
        """Write a line.

        Raises:
            OSError: it cannot be written.
        """
        line = {"run": self.run, "step": self.step, "kind": kind, **({"case": case} if case else {}), **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps(line) + "\n").encode())
        finally:
            os.close(file)

    def of_step(self) -> list[Record]:
        """The lines of this step so far."""
        return [record for record in read(self.path) if (record.run, record.step) == (self.run, self.step)]

    def begun(self) -> set[str]:
        """The cases that this step has begun."""
        return {record.case for record in self.of_step() if record.kind == "begin"}

    def unfinished(self) -> list[str]:
        """The cases that this step has begun and not ended."""
        ended = {record.case for record in self.of_step() if record.kind in _CLOSING}
        return sorted(self.begun() - ended)


def read(path: Path) -> Iterator[Record]:
    """All lines of a file; none if it does not exist."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                values = json.loads(line)
                run, step, kind = (values.pop(name) for name in ("run", "step", "kind"))
                yield Record(run, step, kind, values.pop("case", ""), values)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue


def words_of(*names: str) -> str:
    """Names as a part of a file's name: ``NVIDIA H200`` is ``h200``."""
    words = (re.sub(r"[^a-z0-9.]+", "-", name.lower().replace("nvidia", "")).strip("-") for name in names)
    return "-".join(filter(None, words))
