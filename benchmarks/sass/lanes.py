"""A warp's registers and predicates, and the operands of machine code."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from benchmarks.sass.program import Instruction

LANES = 32

Words = NDArray[np.uint64]  # one value per lane, below 2^32 in registers
Mask = NDArray[np.bool_]
WORD = np.uint64(0xFFFFFFFF)

FLOATS = {"+INF": np.inf, "-INF": -np.inf, "INF": np.inf, "+QNAN": np.nan, "-QNAN": np.nan, "QNAN": np.nan}


class Lanes:
    """The registers of thirty-two threads; uniform registers and predicates have the same value in each lane.

    Args:
        constants: the constant bank 0.
    """

    def __init__(self, constants: bytes) -> None:
        self.constants = constants
        self.registers = {"R": np.zeros((257, LANES), np.uint64), "UR": np.zeros((257, LANES), np.uint64)}
        self.predicates = {"P": np.zeros((8, LANES), bool), "UP": np.zeros((8, LANES), bool)}
        for predicates in self.predicates.values():
            predicates[7] = True

    def _predicate(self, text: str) -> Mask:
        inverted = text.startswith("!")
        name = text.lstrip("!")
        kind, number = ("UP", name[2:]) if name.startswith("U") else ("P", name[1:])
        value = self.predicates[kind][7 if number == "T" else int(number)]
        found: Mask = ~value if inverted else value.copy()
        return found

    def _set_predicate(self, text: str, value: Mask, mask: Mask) -> None:
        kind, number = ("UP", text[2:]) if text.startswith("U") else ("P", text[1:])
        if number != "T":
            row = self.predicates[kind][int(number)]
            row[mask] = value[mask]

    def _register(self, text: str) -> tuple[str, int]:
        match = re.fullmatch(r"(U?R)(Z|\d+)", text)
        if match is None:
            raise NotImplementedError(f"operand {text}")
        return match[1], 256 if match[2] == "Z" else int(match[2])

    def _raw(self, text: str, offset: int = 0) -> Words:
        """The bits of an operand; ``offset`` 1: those of the second register of a pair."""
        if match := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", text):
            start = int(match[1], 16) + 4 * offset
            return np.full(LANES, int.from_bytes(self.constants[start : start + 4], "little"), np.uint64)
        if re.fullmatch(r"-?0x[0-9a-f]+", text):
            value = int(text, 16)
            return np.full(LANES, (value >> 32 * offset) & 0xFFFFFFFF, np.uint64)
        kind, number = self._register(text)
        found: Words = self.registers[kind][number if number == 256 else number + offset].copy()
        return found

    def _int(self, text: str, offset: int = 0) -> Words:
        """An integer operand: R5, -R5, ~R5, 0x10, c[..]; a negated value is 2^32 - x, also for x = 0."""
        text = text.removesuffix(".reuse")
        if text.startswith("-") and not text.startswith("-0x"):
            return np.uint64(1 << 32) - self._raw(text[1:], offset)
        if text.startswith("~"):
            return WORD - self._raw(text[1:], offset)
        return self._raw(text, offset)

    def _pair(self, text: str) -> Words:
        text = text.removesuffix(".reuse")
        if text.startswith("-") and not text.startswith("-0x"):
            return np.uint64(0) - self._pair(text[1:])
        return self._raw(text) | self._raw(text, 1) << np.uint64(32)

    def _float(self, text: str) -> NDArray[np.float64]:
        text = text.removesuffix(".reuse")
        if text in FLOATS:
            return np.full(LANES, FLOATS[text])
        if re.fullmatch(r"-?[0-9.]+(e[+-]?\d+)?", text):
            return np.full(LANES, np.float64(np.float32(text)))
        negative = text.startswith("-")
        text = text.removeprefix("-")
        absolute = text.startswith("|")
        text = text.strip("|")
        half = re.fullmatch(r"(.*)\.H([01])_H[01]", text)
        if half:
            bits = (self._raw(half[1].removesuffix(".reuse")) >> np.uint64(16 * int(half[2]))).astype(np.uint16)
            value = bits.view(np.float16).astype(np.float64)
        else:
            value = self._raw(text).astype(np.uint32).view(np.float32).astype(np.float64)
        value = np.abs(value) if absolute else value
        return -value if negative else value

    def _set(self, text: str, value: Words, mask: Mask) -> None:
        kind, number = self._register(text)
        if number != 256:
            self.registers[kind][number][mask] = (value & WORD)[mask]

    def _set_pair(self, text: str, value: Words, mask: Mask) -> None:
        kind, number = self._register(text)
        self._set(text, value, mask)
        if number != 256:
            self._set(f"{kind}{number + 1}", value >> np.uint64(32), mask)

    def _set_float(self, text: str, value: NDArray[np.float64], mask: Mask) -> None:
        self._set(text, value.astype(np.float32).view(np.uint32).astype(np.uint64), mask)

    def _results(self, i: Instruction) -> tuple[list[str], list[str]]:
        """(predicates that are written in addition to the first operand, operands that are read)."""
        written = 1
        while written < len(i.operands) and re.fullmatch(r"U?P[0-9T]", i.operands[written]):
            written += 1
        return list(i.operands[1:written]), list(i.operands[written:])
