"""``benchmarks/sass``: machine code simulated without a GPU, single instructions and whole kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.sass import count, machine, program


@pytest.fixture
def sass() -> SimpleNamespace:
    return SimpleNamespace(program=program, machine=machine, count=count)


def run(sass: SimpleNamespace, *code: str, memory: Any = None, parameters: bytes = b"") -> Any:
    """A warp after some instructions in nvdisasm's format; a line that ends in a colon is a label."""
    lines, at = [], 0
    for text in (*code, "EXIT"):
        lines.append(text if text.endswith(":") else f"/*{at:04x}*/ {text} ;")
        at += 0 if text.endswith(":") else 16
    constants = bytes(sass.machine.PARAMETERS) + parameters
    warp = sass.machine.Warp(sass.program.Program(lines), constants, memory or sass.program.Memory(), (3, 0, 0), 32)
    warp.run()
    return warp


def integer(warp: Any, register: int) -> int:
    return int(warp.registers["R"][register][0])


def real(warp: Any, register: int) -> float:
    return float(warp.registers["R"][register].astype(np.uint32).view(np.float32)[0])


def test_integers_wrap_and_carry(sass: SimpleNamespace) -> None:
    warp = run(
        sass,
        "MOV R2, 0xffffffff",
        "MOV R3, 0x7",
        "IADD3 R4, P0, R2, 0x2, RZ",
        "IADD3.X R5, RZ, RZ, RZ, P0, !PT",
        "IMAD.WIDE.U32 R6, R2, R2, R2",  # + R2:R3
        "IMAD.WIDE R8, R2, 0x4, RZ",
        "LEA R10, P1, R2, 0x8, 0x2",
        "LEA.HI.X R11, R2, 0x1, RZ, 0x2, P1",
        "LOP3.LUT R12, R2, 0xf0, R3, 0x80, !PT",
        "SHF.R.S32.HI R13, RZ, 0x1f, R2",
        "IADD3 R14, -R3, RZ, RZ",
        "ISETP.GE.U32.AND P2, PT, R14, R3, PT",
        "SEL R15, R3, RZ, P2",
    )
    assert (integer(warp, 4), integer(warp, 5)) == (1, 1)
    product = 0xFFFFFFFF**2 + (7 << 32 | 0xFFFFFFFF)
    assert (integer(warp, 6), integer(warp, 7)) == (product & 0xFFFFFFFF, product >> 32 & 0xFFFFFFFF)
    assert (integer(warp, 8), integer(warp, 9)) == (0xFFFFFFFC, 0xFFFFFFFF)  # -1 * 4
    whole = (0xFFFFFFFF << 2) + 8 + (1 << 32)
    assert (integer(warp, 10), integer(warp, 11)) == (whole & 0xFFFFFFFF, whole >> 32)
    assert [integer(warp, number) for number in (12, 13, 14, 15)] == [0, 0xFFFFFFFF, 0xFFFFFFF9, 7]


def test_floats_round_in_each_mode_and_compare_with_nan(sass: SimpleNamespace) -> None:
    warp = run(
        sass,
        "FADD R1, RZ, -0.25",
        "FADD.RM R2, R1, 12582912",
        "FADD R3, R2, -12582912",
        "FFMA R4, R1, -R1, 1",
        "FADD R5, RZ, +QNAN",
        "FMNMX R6, R5, -2, !PT",
        "FSETP.GEU.AND P0, PT, R5, 1, PT",
        "FSETP.GE.AND P1, PT, R5, 1, PT",
        "FSEL R7, R1, RZ, P0",
        "FSEL R8, R1, RZ, P1",
        "F2FP.F16.F32.PACK_AB R9, RZ, R1",
        "HADD2.F32 R10, -RZ, R9.H0_H0",
        "F2I.TRUNC.NTZ R11, R1",
        "FADD R12, -|R1|, 1",
        "FSEL R13, R1, +QNAN , PT",
    )
    assert [real(warp, number) for number in (3, 4, 6, 7, 8, 10, 12, 13)] == [
        -1,
        0.9375,
        -2,
        -0.25,
        0,
        -0.25,
        0.75,
        -0.25,
    ]
    assert integer(warp, 11) == 0


def test_lanes_diverge_and_reconverge_and_requests_are_counted(sass: SimpleNamespace) -> None:
    memory = sass.program.Memory()
    values, answer = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    parameters = b"".join(memory.add(array).to_bytes(8, "little") for array in (values, answer))
    warp = run(
        sass,
        "S2R R0, SR_TID.X",
        "ULDC.64 UR4, c[0x0][0x210]",
        "LDC.64 R4, c[0x0][0x218]",
        "IMAD.WIDE R2, R0, 0x4, UR4",
        "IMAD.WIDE R4, R0, 0x4, R4",
        "LDG.E.CONSTANT R6, desc[UR6][R2.64+-0x80]",
        "ISETP.GE.AND P0, PT, R0, 0x30, PT",
        "@!P0 BRA `(.L_low)",
        "FADD R6, R6, 100",
        ".L_low:",
        "STG.E desc[UR6][R4.64], R6",
        memory=memory,
        parameters=parameters,
    )
    expected = np.where(np.arange(32) >= 16, np.arange(32) + 100, np.arange(32))
    np.testing.assert_array_equal(answer[32:], expected)
    assert answer[:32].sum() == 0
    assert warp.counts.issued["FADD"] == 1 and warp.counts.issued["STG"] == 1
    assert (warp.counts.requests, warp.counts.lines, warp.counts.lookups, len(warp.counts.read)) == (2, 2, 2, 4)


def test_an_invalid_access_or_unknown_instruction_is_an_error(sass: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match="outside of every array"):
        run(sass, "LDG.E R1, [R2.64]")
    with pytest.raises(NotImplementedError, match="SHFL"):
        run(sass, "SHFL.IDX PT, R1, R2, RZ, 0x1f")
