"""Read a pickle without running anything: tensors and plain data are built, everything else becomes a placeholder.

A pickle is a program for a small stack machine, three of whose instructions import and call what they name. Here a name
stays a :class:`Global`, and calling one gives an :class:`Inert` object that remembers the name and the arguments,
unless the name is one of the reader's own *builders*. No module is imported, no function of the file's choice is
called, no attribute is looked up or set, and nothing is hashed but texts, numbers and short tuples of them.
Source: the instructions are decoded by the standard library's :func:`pickletools.genops`.
"""

from __future__ import annotations

import pickletools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from stn_infer.budget import Budget

#: Bytes of instructions: about 100,000 tensors. The data of arrays and long texts are not among them.
LONGEST_INDEX = 8 << 20
TOO_SLOW = (
    "reading its list of tensors takes too long; if you trust it, raise the limit with STN_TRIAL_SECONDS (0: no limit)"
)
_BULK = 1 << 10  # from this many bytes on, what is read at once counts as data
_LONGEST_LINE = 1 << 16
_CHECKED = 4096  # instructions between two looks at the clock
_LARGEST_KEY = 1 << 53  # larger integers can be chosen so that all have the same hash

Builder = Callable[[tuple[Any, ...]], Any]


class PickleError(Exception):
    """A pickle is damaged, or contains instructions that no checkpoint needs."""


class UnsupportedError(PickleError):
    """A file that is not damaged cannot be read here; the message is a sentence that says why."""


class IndexTooLongError(PickleError):
    """A pickle has more instructions than :data:`LONGEST_INDEX` bytes."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """An object of a class that is not imported.

    Attributes:
        kind: the class or function that would have made it.
        arguments: what it would have been called with.
        state: what its attributes would have been set from; None if nothing.
    """

    __slots__ = ("arguments", "kind", "state")

    def __init__(self, kind: str, arguments: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.arguments = arguments
        self.state: Any = None


class Reader:
    """Reads pickles from a stream, one after the other.

    Args:
        stream: the file, at the start of a pickle; after each pickle it is at the next byte.
        builders: functions that build what a pickle's own would have, by their full name.
        persistent: gives what a persistent id, usually a tuple, stands for.
        size: of the stream, in bytes.
        budget: limits the thread's CPU time; 0 seconds: no limit.
    """

    def __init__(
        self,
        stream: BinaryIO,
        builders: Mapping[str, Builder],
        persistent: Callable[[Any], Any],
        size: int,
        budget: Budget,
    ) -> None:
        self._stream = _Counted(stream, size)
        self._builders = builders
        self._persistent = persistent
        self._deadline = time.thread_time() + budget.seconds if budget.seconds else float("inf")
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next pickle's content.

        Raises:
            UnsupportedError: it takes too long.
            PickleError: it is damaged, too long, or contains instructions that no checkpoint needs.
            RuntimeError, ValueError and others: of a builder that cannot build it.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("BinaryIO", self._stream))):
                if count % _CHECKED == 0 and time.thread_time() > self._deadline:
                    raise UnsupportedError(TOO_SLOW)
                if opcode.name == "STOP":
                    return self._stack.pop()
                if opcode.name in _PUSHED:
                    self._stack.append(argument)
                else:
                    action = _ACTIONS.get(opcode.name)
                    if action is None:
                        raise PickleError(f"a damaged pickle (instruction {opcode.name})")
                    action(self, argument)
        except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:  # of genops, or a wrong stack
            raise PickleError(f"a damaged pickle ({type(error).__name__})") from error
        raise PickleError("a damaged pickle")

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call of a global gives: what a builder builds, or a placeholder."""
        if not isinstance(arguments, tuple):
            raise PickleError("a damaged pickle (arguments)")
        if not isinstance(function, Global):
            return Inert("a call of an object", arguments)
        builder = self._builders.get(str(function))
        return Inert(str(function), arguments) if builder is None else builder(arguments)

    # ---- instructions --------------------------------------------------------------------------------------------

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _pop(self, argument: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Global(module, name))

    def _stack_global(self, argument: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise PickleError("a damaged pickle (name)")
        self._stack.append(Global(module, name))

    def _reduce(self, argument: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self.call(function, arguments))

    def _newobj_ex(self, argument: Any) -> None:
        _, arguments, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(self.call(kind, arguments))

    def _inst(self, argument: Any) -> None:
        arguments = tuple(self._since_mark())
        self._global(argument)
        self._stack.append(self.call(self._stack.pop(), arguments))

    def _obj(self, argument: Any) -> None:
        kind, *arguments = self._since_mark()
        self._stack.append(self.call(kind, tuple(arguments)))

    def _build(self, argument: Any) -> None:
        state = self._stack.pop()
        if isinstance(self._stack[-1], Inert):
            self._stack[-1].state = state
        # attributes of dictionaries and tensors, such as a state dict's version, are left out

    def _append(self, argument: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, argument: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)
        elif not isinstance(self._stack[-1], Inert):
            raise PickleError("a damaged pickle (list)")

    def _setitem(self, argument: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _setitems(self, argument: Any) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], dict):
            self._stack[-1].update(plain_pairs(zip(items[::2], items[1::2], strict=True)))
        elif not isinstance(self._stack[-1], Inert):
            raise PickleError("a damaged pickle (dictionary)")

    def _dict(self, argument: Any) -> None:
        items = self._since_mark()
        self._stack.append(plain_pairs(zip(items[::2], items[1::2], strict=True)))

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise PickleError("a damaged pickle (tuple)")
        items = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self._stack.append(items)

    def _put(self, argument: Any) -> None:
        self._memo[argument] = self._stack[-1]

    def _frozenset(self, argument: Any) -> None:
        self._stack.append(Inert("builtins.frozenset", tuple(self._since_mark())))

    def _persistent_id(self, argument: Any) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def plain_pairs(pairs: Any) -> dict[Any, Any]:
    """A dictionary of the pairs whose keys can be hashed without danger; the others are left out."""
    return {key: value for key, value in pairs if _is_plain(key)}


def _is_plain(key: object) -> bool:
    """Whether a key is a text, a number, or a short tuple of them: hashing deep tuples overflows the C stack."""
    if isinstance(key, tuple):
        return len(key) <= 8 and not any(isinstance(item, tuple) for item in key) and all(map(_is_plain, key))
    if isinstance(key, int):
        return abs(key) < _LARGEST_KEY
    return key is None or isinstance(key, (str, bytes))


class _Counted:
    """A stream that raises once its instructions, in contrast to long data, exceed :data:`LONGEST_INDEX` bytes."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._read = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; memory is taken for what there is, not for what is claimed."""
        content = self._stream.read(min(size, self._size))
        if len(content) < _BULK:
            self._count(len(content))
        return content

    def readline(self) -> bytes:
        """The next line; a longer one than names and numbers are is an error."""
        line = self._stream.readline(_LONGEST_LINE)
        self._count(len(line))
        return line

    def _count(self, size: int) -> None:
        self._read += size
        if self._read > LONGEST_INDEX:
            raise IndexTooLongError


#: Instructions whose argument is a value.
_PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)

_ACTIONS: dict[str, Callable[[Reader, Any], None]] = {
    "PROTO": lambda reader, argument: None,
    "FRAME": lambda reader, argument: None,
    "NONE": lambda reader, argument: reader._stack.append(None),
    "NEWTRUE": lambda reader, argument: reader._stack.append(True),
    "NEWFALSE": lambda reader, argument: reader._stack.append(False),
    "EMPTY_LIST": lambda reader, argument: reader._stack.append([]),
    "EMPTY_DICT": lambda reader, argument: reader._stack.append({}),
    "EMPTY_TUPLE": lambda reader, argument: reader._stack.append(()),
    "EMPTY_SET": lambda reader, argument: reader._stack.append(Inert("builtins.set")),
    "MARK": lambda reader, argument: reader._marks.append(len(reader._stack)),
    "POP": Reader._pop,
    "POP_MARK": lambda reader, argument: reader._since_mark().clear(),
    "DUP": lambda reader, argument: reader._stack.append(reader._stack[-1]),
    "LIST": lambda reader, argument: reader._stack.append(reader._since_mark()),
    "DICT": Reader._dict,
    "TUPLE": lambda reader, argument: reader._stack.append(tuple(reader._since_mark())),
    "TUPLE1": lambda reader, argument: reader._tuple_of(1),
    "TUPLE2": lambda reader, argument: reader._tuple_of(2),
    "TUPLE3": lambda reader, argument: reader._tuple_of(3),
    "FROZENSET": Reader._frozenset,
    "APPEND": Reader._append,
    "APPENDS": Reader._appends,
    "ADDITEMS": Reader._appends,
    "SETITEM": Reader._setitem,
    "SETITEMS": Reader._setitems,
    "GLOBAL": Reader._global,
    "STACK_GLOBAL": Reader._stack_global,
    "REDUCE": Reader._reduce,
    "NEWOBJ": Reader._reduce,
    "NEWOBJ_EX": Reader._newobj_ex,
    "INST": Reader._inst,
    "OBJ": Reader._obj,
    "BUILD": Reader._build,
    "BINPERSID": Reader._persistent_id,
    "MEMOIZE": lambda reader, argument: reader._put(len(reader._memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Reader._put),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda reader, argument: reader._stack.append(reader._memo[argument])
    ),
}
