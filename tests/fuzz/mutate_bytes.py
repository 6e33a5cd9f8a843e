"""Mutations of bytes of any kind, and the numbers and strings that programs trip over."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

INTEGERS = (
    *(0, 1, -1, 2, 3, 4, 7, 8, 16, 17, 64, 127, 128, 255, 256, 1000, 65535, 65536, 10**6, 10**9, 10**12),
    *(2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**62, 2**63 - 1, -(2**63), -2, -3, -128),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e30, -1e30, 3.4e38, float("inf"), float("-inf"), float("nan"), 1e308)
STRINGS = (
    *(
        "",
        " ",
        "x",
        "0",
        "-1",
        "1e999",
        "nan",
        "name\nerror: forged",
        "\x1b[31mred\x1b[0m",
        "\u202eabc",
        "a\0b",
        "é\U0001f600",
    ),
    *("../secret", "/etc/passwd", "/dev/zero", "..", ".", "a/b", "%s%n", "{0}", "=1+1", "<b>bold</b>", "x" * 300),
    *(
        "float",
        "main",
        "ai.onnx",
        "com.microsoft",
        "stn",
        "GridSample",
        "SpatialTransformer",
        "Loop",
        "If",
        "os:system",
    ),
)
_WIDTHS = ("<b", "<h", "<i", "<q", ">h", ">i", ">q")


def integer(generator: random.Random, near: int | None = None) -> int:
    """A number that programs trip over, or a neighbor of ``near``."""
    if near is not None and generator.random() < 0.5:
        return generator.choice((near + 1, near - 1, -near, near * 2, near * 1000, near // 2, near ^ 1))
    return generator.choice(INTEGERS)


def text(generator: random.Random, others: Sequence[str] = ()) -> str:
    """A string that programs trip over, or one of ``others``."""
    if others and generator.random() < 0.6:
        return generator.choice(others)
    return generator.choice(STRINGS)


def mutate_bytes(data: bytes, generator: random.Random, other: bytes = b"") -> bytes:
    """``data`` with one change: bits flipped, a number set, a span removed, repeated, moved or taken from ``other``."""
    if not data:
        return generator.choice((b"\0", b"\x80", b"PK\x03\x04", other[:64]))
    at = generator.randrange(len(data))
    span = min(len(data) - at, generator.choice((1, 1, 2, 4, 8, 16, 64, 256, 1024)))
    match generator.randrange(9):
        case 0 | 1:
            changed = bytearray(data)
            for _ in range(generator.choice((1, 1, 2, 8))):
                changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            return bytes(changed)
        case 2:
            width = generator.choice(_WIDTHS)
            size = struct.calcsize(width)
            limit = 1 << (8 * size)
            number = generator.choice(INTEGERS) % limit
            packed = struct.pack(width, number - limit if number >= limit // 2 else number)
            return data[:at] + packed + data[at + size :]
        case 3:
            return data[:at] + data[at + span :]
        case 4:
            return data[: at + span] + data[at:]
        case 5:
            return data[:at]
        case 6:
            return data[:at] + generator.randbytes(span) + data[at + generator.choice((0, span)) :]
        case 7:
            there = generator.randrange(len(data))
            return data[:at] + data[there : there + span] + data[at + span :]
        case _:
            if not other:
                return data + data[:span]
            there = generator.randrange(len(other))
            return data[:at] + other[there : there + span] + data[at + generator.choice((0, span)) :]
