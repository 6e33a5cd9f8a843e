"""How outputs are read as a text or a box. A model's file stores it, so that ``run`` and ``eval`` need no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from stn_infer.errors import UsageError

Kind = Literal["sequence", "box"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Decoding:
    """A text or a box that outputs encode.

    A sequence is the most probable class of each place, until the first ``end`` class or up to the predicted length. A
    box is (left, top, right, bottom) in pixels of the model's input, not clipped to it.

    Attributes:
        name: of the column; a box has the columns NAME_left, NAME_top, NAME_right and NAME_bottom.
        kind: ``sequence`` or ``box``.
        outputs: sequence: one output [N, places, classes], or one output [N, classes] per place. box: one output [N, 4]
            in pixels, or theta [N, 2, 3] of a spatial transformer, whose box holds the four corners of its grid.
        end: sequence: the class that ends it, from the back if negative; None: there is none.
        length: sequence: the output [N, L] of the scores of the lengths 0 to L - 1; empty: there is none.
        symbols: sequence: the text of each class; empty: its number.

    Raises:
        UsageError: a field is missing, or of the other kind.
    """

    name: str
    kind: Kind
    outputs: tuple[str, ...]
    end: int | None = None
    length: str = ""
    symbols: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise UsageError(f"a decoding has a name, not {self.name!r}")
        if self.kind not in KINDS:
            raise UsageError(f"decoding {self.name!r}: kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        if not self.outputs or not all(isinstance(output, str) and output for output in self.outputs):
            raise UsageError(f"decoding {self.name!r}: outputs are names of the model's outputs, not {self.outputs!r}")
        if self.kind == "box" and (len(self.outputs) > 1 or self.end is not None or self.length or self.symbols):
            raise UsageError(f"decoding {self.name!r}: a box has one output, and no end, length or symbols")
        if self.end is not None and type(self.end) is not int:
            raise UsageError(f"decoding {self.name!r}: end is the number of a class, not {self.end!r}")
        if not isinstance(self.length, str) or not all(isinstance(symbol, str) for symbol in self.symbols):
            raise UsageError(f"decoding {self.name!r}: length is the name of an output, symbols are texts")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns."""
        return tuple(f"{self.name}_{side}" for side in SIDES) if self.kind == "box" else (self.name,)

    @property
    def reads(self) -> tuple[str, ...]:
        """All outputs that it reads."""
        return (*self.outputs, self.length) if self.length else self.outputs


def decodings_to_json(decodings: Sequence[Decoding]) -> list[dict[str, Any]]:
    """For a file's metadata."""
    return [asdict(decoding) for decoding in decodings]


def decodings_from_json(found: object) -> tuple[Decoding, ...]:
    """What :func:`decodings_to_json` returned.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(found, list):
        raise UsageError("decodings are a list")
    return tuple(decoding_from(entry) for entry in found)


def decoding_from(entry: object) -> Decoding:
    """A decoding from a table of its fields, in which lists stand for tuples.

    Raises:
        UsageError: a field is unknown, missing or malformed.
    """
    if not isinstance(entry, Mapping):
        raise UsageError(f"a decoding is a table, not {entry!r}")
    known = {each.name for each in fields(Decoding)}
    if unknown := sorted(set(entry) - known):
        raise UsageError(f"a decoding has no field {unknown[0]!r}; expected {', '.join(sorted(known))}")
    if missing := sorted({"name", "kind", "outputs"} - set(entry)):
        raise UsageError(f"a decoding needs {missing[0]!r}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    for key in ("outputs", "symbols"):
        if not isinstance(values.get(key, ()), tuple):
            raise UsageError(f"decoding {entry['name']!r}: {key} is a list, not {values[key]!r}")
    return Decoding(**values)
