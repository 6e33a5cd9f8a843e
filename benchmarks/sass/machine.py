"""Simulate NVIDIA machine code (sm_90, as nvdisasm prints it) one warp at a time, and count its instructions.

Only the instructions of kernels without barriers and exchange between lanes are implemented; shared memory holds
threads' own values. An unknown instruction raises NotImplementedError with its name. Results equal the hardware's,
except for the last bit of ``MUFU``.
Diverged lanes reconverge because those furthest behind run first.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.sass.lanes import FLOATS, LANES, WORD, Lanes, Mask, Words
from benchmarks.sass.program import Counts, Instruction, Memory, Program

PARAMETERS = 0x210
"""The offset of a kernel's parameters in its constant bank, on sm_90."""


class Warp(Lanes):
    """Thirty-two threads of one block.

    Args:
        program: the kernel.
        constants: its constant bank 0.
        memory: global memory.
        block: blockIdx (x, y, z).
        first: of its threads in the block, which is one-dimensional.
    """

    def __init__(
        self, program: Program, constants: bytes, memory: Memory, block: tuple[int, int, int], first: int
    ) -> None:
        super().__init__(constants)
        self.program, self.memory = program, memory
        lane = np.arange(LANES, dtype=np.uint64)
        self.special = {"SR_TID.X": first + lane, "SR_TID.Y": lane * 0, "SR_TID.Z": lane * 0}
        self.special |= {"SRZ": lane * 0, "SR_CgaCtaId": lane * 0}
        for axis, index in zip("XYZ", block, strict=True):
            self.special[f"SR_CTAID.{axis}"] = lane * 0 + np.uint64(index)
        self.at = np.zeros(LANES, np.int64)
        self.alive = np.ones(LANES, bool)
        self.shared: dict[int, int] = {}  # words by address
        self.counts = Counts()

    def run(self, limit: int = 1_000_000) -> Counts:
        """Run until every lane has ended.

        Raises:
            NotImplementedError: an instruction that is not known here.
            RuntimeError: an access outside of every array, or more than ``limit`` instructions.
        """
        with np.errstate(all="ignore"):
            for _ in range(limit):
                if not self.alive.any():
                    return self.counts
                self._step()
        raise RuntimeError(f"no end after {limit} instructions")

    def _step(self) -> None:
        here = int(self.at[self.alive].min())
        instruction = self.program.instructions[here]
        active = self.alive & (self.at == here)
        self.counts.issued[instruction.opcode] += 1
        mask = active.copy()
        if instruction.guard:
            mask &= self._predicate(instruction.guard) ^ instruction.negated
        self.at[active] = here + 1
        opcode = instruction.opcode
        if opcode.startswith("U") and opcode not in ("UNDEF",):
            # uniform instruction: every lane has the same value, and the guard is a uniform predicate
            opcode = opcode[1:]
            mask = np.full(LANES, bool(mask.any()))
        action: Callable[[Instruction, Mask], None] | None = getattr(self, f"_{opcode.lower()}", None)
        if action is None:
            raise NotImplementedError(f"{instruction.opcode}.{'.'.join(instruction.modifiers)}")
        action(instruction, mask)

    # ---------------------------------------------------------------------------------------------------- integers

    def _mov(self, i: Instruction, mask: Mask) -> None:
        self._set(i.operands[0], self._int(i.operands[1]), mask)

    def _imad(self, i: Instruction, mask: Mask) -> None:
        carries, (a, b, c, *more) = self._results(i)
        unsigned = "U32" in i.modifiers
        if "WIDE" in i.modifiers:
            product = self._extended(a, unsigned) * self._extended(b, unsigned)
            total = product + self._pair(c)
            for predicate in carries:
                self._set_predicate(predicate, total < product, mask)
            self._set_pair(i.operands[0], total, mask)
        elif "HI" in i.modifiers:
            product = self._extended(a, unsigned) * self._extended(b, unsigned)
            self._set(i.operands[0], (product + self._pair(c)) >> np.uint64(32), mask)
        else:
            carry = self._predicate(more[0]).astype(np.uint64) if more and "X" in i.modifiers else np.uint64(0)
            self._set(i.operands[0], (self._int(a) * self._int(b) + self._int(c) + carry) & WORD, mask)

    def _extended(self, text: str, unsigned: bool) -> Words:
        value = self._int(text) & WORD
        return value if unsigned else value.astype(np.uint32).view(np.int32).astype(np.int64).view(np.uint64)

    def _iadd3(self, i: Instruction, mask: Mask) -> None:
        carries, (a, b, c, *more) = self._results(i)
        total = self._int(a) + self._int(b) + self._int(c)
        if "X" in i.modifiers:
            for predicate in more:
                total = total + self._predicate(predicate).astype(np.uint64)
        for number, predicate in enumerate(carries):
            self._set_predicate(predicate, total >> np.uint64(32) > number, mask)
        self._set(i.operands[0], total, mask)

    def _iabs(self, i: Instruction, mask: Mask) -> None:
        value = self._signed(self._int(i.operands[1]), unsigned=False)
        self._set(i.operands[0], np.abs(value).view(np.uint64), mask)

    def _viadd(self, i: Instruction, mask: Mask) -> None:
        self._set(i.operands[0], self._int(i.operands[1]) + self._int(i.operands[2]), mask)

    def _signed(self, value: Words, unsigned: bool) -> NDArray[np.int64]:
        value = value & WORD
        return value.astype(np.int64) if unsigned else value.astype(np.uint32).view(np.int32).astype(np.int64)

    def _least_or_most(self, i: Instruction, a: Words, b: Words, which: str, mask: Mask) -> None:
        x, y = (self._signed(value, "U32" in i.modifiers) for value in (a, b))
        least = self._predicate(which)
        self._set(i.operands[0], np.where(least, np.minimum(x, y), np.maximum(x, y)).view(np.uint64), mask)

    def _vimnmx(self, i: Instruction, mask: Mask) -> None:
        _, a, b, which = i.operands
        self._least_or_most(i, self._int(a), self._int(b), which, mask)

    def _imnmx(self, i: Instruction, mask: Mask) -> None:
        self._vimnmx(i, mask)

    def _viaddmnmx(self, i: Instruction, mask: Mask) -> None:
        _, a, b, c, which = i.operands
        self._least_or_most(i, self._int(a) + self._int(b), self._int(c), which, mask)

    def _isetp(self, i: Instruction, mask: Mask) -> None:
        first, second, a, b, combined, *extended = i.operands
        x, y = (self._signed(self._int(text), "U32" in i.modifiers) for text in (a, b))
        result = _compare(i.modifiers[0], x, y)
        if "EX" in i.modifiers:
            low = self._predicate(extended[0])
            if i.modifiers[0] == "NE":
                result = result | low
            elif i.modifiers[0] == "EQ":
                result = result & low
            else:
                result = np.where(x == y, low, result)
        self._combine(i, first, second, result, combined, mask)

    def _combine(self, i: Instruction, first: str, second: str, result: Mask, other: str, mask: Mask) -> None:
        with_other = self._predicate(other)
        join = np.logical_or if "OR" in i.modifiers else np.logical_and
        self._set_predicate(first, join(result, with_other), mask)
        self._set_predicate(second, join(~result, with_other), mask)

    def _lea(self, i: Instruction, mask: Mask) -> None:
        carries, operands = self._results(i)
        carry = np.zeros(LANES, np.uint64)
        if "X" in i.modifiers:
            carry = self._predicate(operands.pop()).astype(np.uint64)
        if "HI" in i.modifiers:
            if "SX32" in i.modifiers:
                a, b, shift = operands
                wide = self._extended(a, unsigned=False)
            else:
                a, b, c, shift = operands
                wide = (self._int(a) & WORD) | (self._int(c) & WORD) << np.uint64(32)
            shifted = wide << np.uint64(int(shift, 16)) >> np.uint64(32)
        else:
            a, b, shift = operands
            shifted = (self._int(a) << np.uint64(int(shift, 16))) & WORD
        total = shifted + self._int(b) + carry
        for predicate in carries:
            self._set_predicate(predicate, total >> np.uint64(32) > 0, mask)
        self._set(i.operands[0], total, mask)

    def _lop3(self, i: Instruction, mask: Mask) -> None:
        written = list(i.operands)
        predicate = written.pop(0) if re.fullmatch(r"U?P[0-9T]", written[0]) else None
        target, a, b, c, table, *_ = written
        value = _table(int(table, 16), *(self._int(text) & WORD for text in (a, b, c))) & WORD
        if predicate is not None:
            self._set_predicate(predicate, value != 0, mask)
        self._set(target, value, mask)

    def _plop3(self, i: Instruction, mask: Mask) -> None:
        first, second, a, b, c, table, other = i.operands
        bits = [self._predicate(text).astype(np.uint64) * WORD for text in (a, b, c)]
        self._set_predicate(first, _table(int(table, 16), *bits) & WORD != 0, mask)
        self._set_predicate(second, _table(int(other, 16), *bits) & WORD != 0, mask)

    def _shf(self, i: Instruction, mask: Mask) -> None:
        target, a, by, c = i.operands
        shift = self._int(by) & WORD
        wide = (self._int(a) & WORD) | (self._int(c) & WORD) << np.uint64(32)
        if "W" in i.modifiers:
            shift = shift & np.uint64(31)
        shift = np.minimum(shift, np.uint64(63))
        if "L" in i.modifiers:
            if "U64" not in i.modifiers and "HI" not in i.modifiers:
                wide &= WORD
            value = wide << shift
        elif "S32" in i.modifiers or "S64" in i.modifiers:
            value = (wide.view(np.int64) >> shift.astype(np.int64)).view(np.uint64)
        else:
            value = wide >> shift
        self._set(target, value >> np.uint64(32) if "HI" in i.modifiers else value, mask)

    def _prmt(self, i: Instruction, mask: Mask) -> None:
        target, a, selector, c = i.operands
        wide = (self._int(a) & WORD) | (self._int(c) & WORD) << np.uint64(32)
        select, value = self._int(selector), np.zeros(LANES, np.uint64)
        for byte in range(4):
            choice = select >> np.uint64(4 * byte) & np.uint64(15)
            picked = wide >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(255)
            picked = np.where(choice > 7, np.where(picked > 127, 255, 0), picked).astype(np.uint64)
            value |= picked << np.uint64(8 * byte)
        self._set(target, value, mask)

    def _sel(self, i: Instruction, mask: Mask) -> None:
        target, a, b, which = i.operands
        self._set(target, np.where(self._predicate(which), self._int(a), self._int(b)), mask)

    def _cs2r(self, i: Instruction, mask: Mask) -> None:
        write = self._set if "32" in i.modifiers else self._set_pair
        write(i.operands[0], self.special[i.operands[1]], mask)

    def _s2r(self, i: Instruction, mask: Mask) -> None:
        self._set(i.operands[0], self.special[i.operands[1]], mask)

    def _s2ur(self, i: Instruction, mask: Mask) -> None:
        self._s2r(i, np.ones(LANES, bool))

    def _r2ur(self, i: Instruction, mask: Mask) -> None:
        *_, target, source = i.operands
        value = self._int(source)
        self._set(target, np.full(LANES, value[int(np.flatnonzero(mask)[0])]), np.ones(LANES, bool))

    def _ldc(self, i: Instruction, mask: Mask) -> None:
        target, source = i.operands
        if "U8" in i.modifiers or "U16" in i.modifiers or "S8" in i.modifiers:
            start = int(source.split("[")[2].rstrip("]"), 16)
            size = 2 if "U16" in i.modifiers else 1
            value = int.from_bytes(self.constants[start : start + size], "little")
            self._set(target, np.full(LANES, value, np.uint64), mask)
        elif "64" in i.modifiers:
            self._set_pair(target, self._pair(source), mask)
        else:
            self._set(target, self._int(source), mask)

    # ------------------------------------------------------------------------------------------------------ floats

    def _fadd(self, i: Instruction, mask: Mask) -> None:
        target, a, b = i.operands
        self._set_float(target, _round(self._float(a) + self._float(b), i), mask)

    def _fmul(self, i: Instruction, mask: Mask) -> None:
        target, a, b = i.operands
        self._set_float(target, _round(self._float(a) * self._float(b), i), mask)

    def _ffma(self, i: Instruction, mask: Mask) -> None:
        target, a, b, c = i.operands
        self._set_float(target, _round(self._float(a) * self._float(b) + self._float(c), i), mask)

    def _fmnmx(self, i: Instruction, mask: Mask) -> None:
        target, a, b, which = i.operands
        x, y = self._float(a), self._float(b)
        self._set_float(target, np.where(self._predicate(which), np.fmin(x, y), np.fmax(x, y)), mask)

    def _fsel(self, i: Instruction, mask: Mask) -> None:
        target, a, b, which = i.operands
        self._set_float(target, np.where(self._predicate(which), self._float(a), self._float(b)), mask)

    def _fsetp(self, i: Instruction, mask: Mask) -> None:
        first, second, a, b, combined = i.operands
        x, y = self._float(a), self._float(b)
        name = i.modifiers[0]
        unordered = np.isnan(x) | np.isnan(y)
        if name == "NUM" or name == "NAN":
            result = unordered if name == "NAN" else ~unordered
        elif name.endswith("U"):
            result = _compare(name[:-1], x, y) | unordered
        else:
            result = _compare(name, x, y) & ~unordered
        self._combine(i, first, second, result, combined, mask)

    def _fchk(self, i: Instruction, mask: Mask) -> None:
        target, a, b = i.operands
        x, y = np.abs(self._float(a)), np.abs(self._float(b))
        plain = (y > 1e-37) & (y < 1e37) & (x < 1e37) & ((x == 0) | (x > 1e-30))
        self._set_predicate(target, ~plain, mask)

    def _mufu(self, i: Instruction, mask: Mask) -> None:
        target, a = i.operands
        x = self._float(a)
        if i.modifiers[0] not in ("RCP", "RSQ"):
            raise NotImplementedError(f"MUFU.{i.modifiers[0]}")
        self._set_float(target, 1 / x if i.modifiers[0] == "RCP" else 1 / np.sqrt(x), mask)

    def _frnd(self, i: Instruction, mask: Mask) -> None:
        self._set_float(i.operands[0], _to_whole(self._float(i.operands[1]), i), mask)

    def _f2i(self, i: Instruction, mask: Mask) -> None:
        value = np.nan_to_num(_to_whole(self._float(i.operands[1]), i), nan=0.0)
        low, high = (0.0, 2.0**32 - 1) if "U32" in i.modifiers else (-(2.0**31), 2.0**31 - 1)
        self._set(i.operands[0], np.clip(value, low, high).astype(np.int64).view(np.uint64), mask)

    def _i2f(self, i: Instruction, mask: Mask) -> None:
        unsigned = "U32" in i.modifiers
        value = self._signed(self._int(i.operands[1]), unsigned).astype(np.float64)
        self._set_float(i.operands[0], _round(value, i), mask)

    def _i2fp(self, i: Instruction, mask: Mask) -> None:
        self._i2f(i, mask)

    def _hadd2(self, i: Instruction, mask: Mask) -> None:
        if "F32" not in i.modifiers:
            raise NotImplementedError("HADD2 in half precision")
        target, a, b = i.operands
        self._set_float(target, self._float(a) + self._float(b), mask)

    def _hfma2(self, i: Instruction, mask: Mask) -> None:
        # the compiler's form of a constant: -0 * 0 + (high half, low half)
        target, a, b, high, low = i.operands
        if (a, b) != ("-RZ", "RZ"):
            raise NotImplementedError("HFMA2 of registers")
        bits = [int(np.float16(FLOATS.get(text, text)).view(np.uint16)) for text in (high, low)]
        self._set(target, np.full(LANES, bits[0] << 16 | bits[1], np.uint64), mask)

    def _f2fp(self, i: Instruction, mask: Mask) -> None:
        target, high, low = i.operands
        halves = []
        for text in (high, low):
            value = self._float(text).astype(np.float32)
            if "BF16" in i.modifiers:
                bits = value.view(np.uint32).astype(np.uint64)
                halves.append((bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16))
            else:
                halves.append(value.astype(np.float16).view(np.uint16).astype(np.uint64))
        self._set(target, halves[0] << np.uint64(16) | halves[1], mask)

    # ---------------------------------------------------------------------------------------------- memory, control

    def _addresses(self, text: str) -> Words:
        inside = text.split("[")[-1].rstrip("]")
        total = np.zeros(LANES, np.uint64)
        for sign, part in re.findall(r"([+-]?)([^+-]+)", inside):
            if part.endswith(".64"):
                value = self._pair(part[:-3])
            elif part.startswith("UR"):
                value = self._pair(part)
            elif part.startswith("0x"):
                value = np.full(LANES, int(part, 16), np.uint64)
            else:
                value = self._raw(part.removesuffix(".U32"))
            total = total - value if sign == "-" else total + value
        return total

    def _size(self, i: Instruction) -> int:
        sizes = {"U8": 1, "S8": 1, "8": 1, "U16": 2, "S16": 2, "16": 2, "64": 8, "128": 16}
        return next((sizes[name] for name in i.modifiers if name in sizes), 4)

    def _touch(self, addresses: Words, size: int, mask: Mask) -> set[int]:
        """Count a request; returns the sectors that it touches."""
        ends = np.concatenate([addresses[mask], addresses[mask] + np.uint64(size - 1)])
        lines = len(np.unique(ends // np.uint64(128)))
        self.counts.requests += 1
        self.counts.lines += lines
        self.counts.lookups += (lines + 3) // 4
        return {int(sector) for sector in ends // np.uint64(32)}

    def _ldg(self, i: Instruction, mask: Mask) -> None:
        target, source, *_ = i.operands
        addresses, size = self._addresses(source), self._size(i)
        kind, number = self._register(target)
        for lane in np.flatnonzero(mask):
            data = self.memory.find(int(addresses[lane]), size).tobytes()
            for word in range((size + 3) // 4):
                value = int.from_bytes(data[4 * word : 4 * word + 4], "little")
                self.registers[kind][number + word][lane] = value
        if mask.any():
            self.counts.read |= self._touch(addresses, size, mask)

    def _stg(self, i: Instruction, mask: Mask) -> None:
        target, source, *_ = i.operands
        addresses, size = self._addresses(target), self._size(i)
        words = [self._raw(source, word) for word in range((size + 3) // 4)]
        for lane in np.flatnonzero(mask):
            data = b"".join(int(word[lane]).to_bytes(4, "little") for word in words)[:size]
            self.memory.find(int(addresses[lane]), size)[:] = np.frombuffer(data, np.uint8)
        if mask.any():
            self._touch(addresses, size, mask)

    def _lds(self, i: Instruction, mask: Mask) -> None:
        target, source = i.operands
        addresses = self._addresses(source)
        kind, number = self._register(target)
        for word in range((self._size(i) + 3) // 4):
            row = self.registers[kind][number + word]
            row[mask] = [self.shared[int(address) + 4 * word] for address in addresses[mask]]

    def _sts(self, i: Instruction, mask: Mask) -> None:
        target, source = i.operands
        addresses = self._addresses(target)
        for word in range((self._size(i) + 3) // 4):
            values = self._raw(source, word)
            for lane in np.flatnonzero(mask):
                self.shared[int(addresses[lane]) + 4 * word] = int(values[lane])

    def _bra(self, i: Instruction, mask: Mask) -> None:
        for condition in i.operands[:-1]:
            mask = mask & self._predicate(condition)
        self.at[mask] = self.program.labels[i.operands[-1].removeprefix("`(").rstrip(")")]

    def _call(self, i: Instruction, mask: Mask) -> None:
        self._bra(i, mask)

    def _ret(self, i: Instruction, mask: Mask) -> None:
        back = self._raw(i.operands[0])
        for lane in np.flatnonzero(mask):
            self.at[lane] = self.program.by_address[int(back[lane])]

    def _exit(self, i: Instruction, mask: Mask) -> None:
        self.alive[mask] = False

    def _nothing(self, i: Instruction, mask: Mask) -> None:
        """Do nothing: lanes reconverge by address, and there is nothing to wait for."""

    _bssy = _bsync = _nop = _warpsync = _yield = _nothing


def _compare(name: str, x: NDArray[np.generic], y: NDArray[np.generic]) -> Mask:
    operators = {
        "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal, "EQ": np.equal,
        "NE": np.not_equal, "LTU": np.less,
    }  # fmt: skip
    return np.asarray(operators[name](x, y), bool)


def _table(table: int, a: Words, b: Words, c: Words) -> Words:
    """The bitwise function of three operands with this truth table."""
    result = np.zeros(LANES, np.uint64)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def _round(value: NDArray[np.float64], i: Instruction) -> NDArray[np.float64]:
    """Round to float32 in an instruction's rounding mode."""
    nearest = value.astype(np.float32)
    if "RM" in i.modifiers:
        nearest = np.where(nearest > value, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    elif "RP" in i.modifiers:
        nearest = np.where(nearest < value, np.nextafter(nearest, np.float32(np.inf)), nearest)
    elif "RZ" in i.modifiers:
        nearest = np.where(np.abs(nearest) > np.abs(value), np.nextafter(nearest, np.float32(0)), nearest)
    return nearest.astype(np.float64)


def _to_whole(value: NDArray[np.float64], i: Instruction) -> NDArray[np.float64]:
    for name, function in (("FLOOR", np.floor), ("CEIL", np.ceil), ("TRUNC", np.trunc)):
        if name in i.modifiers:
            return np.asarray(function(value))
    return np.rint(value)
