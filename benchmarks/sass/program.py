"""A kernel's instructions as nvdisasm prints them, simulated memory, and the counts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?)(U?P[0-9T]+)\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;")


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly: a guard (negated, predicate), opcode, its modifiers, and operands as text."""

    at: int
    negated: bool
    guard: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]


@dataclass
class Counts:
    """The counts of one warp.

    Attributes:
        issued: instructions by opcode.
        requests: loads and stores of global memory.
        lines: 128-byte lines that requests touched, summed over requests.
        lookups: groups of up to four of a request's lines.
        read: the 32-byte sectors that loads touched, by number.
    """

    issued: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    lines: int = 0
    lookups: int = 0
    read: set[int] = field(default_factory=set)

    def add(self, other: Counts) -> None:
        """Add another warp's counts."""
        self.issued += other.issued
        self.requests += other.requests
        self.lines += other.lines
        self.lookups += other.lookups
        self.read |= other.read


class Program:
    """A kernel's instructions and labels.

    Args:
        lines: of nvdisasm's output, from the kernel's section.
    """

    def __init__(self, lines: list[str]) -> None:
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        for line in lines:
            text = line.strip()
            if text.endswith(":"):
                self.labels[text[:-1]] = len(self.instructions)
            elif match := _LINE.search(text):
                at, negated, guard, name, rest = match.groups()
                opcode, *modifiers = name.split(".")
                operands = tuple(part.strip() for part in rest.split(",") if part.strip())
                self.instructions.append(
                    Instruction(int(at, 16), bool(negated), guard or "", opcode, tuple(modifiers), operands)
                )
        self.by_address = {instruction.at: index for index, instruction in enumerate(self.instructions)}


class Memory:
    """Global memory: arrays at simulated addresses; an access outside of them is an error."""

    def __init__(self) -> None:
        self._arrays: list[tuple[int, NDArray[np.uint8]]] = []
        self._next = 0x7F0000000000

    def add(self, array: NDArray[np.generic]) -> int:
        """The address of an array's memory, aligned to 256 bytes."""
        address = self._next
        self._arrays.append((address, array.reshape(-1).view(np.uint8)))
        self._next += (array.nbytes + 511) // 256 * 256
        return address

    def find(self, address: int, size: int) -> NDArray[np.uint8]:
        """The bytes at an address."""
        for start, array in self._arrays:
            if start <= address and address + size <= start + array.size:
                return array[address - start : address - start + size]
        raise RuntimeError(f"{size} bytes at {address:#x} lie outside of every array")
