"""Mutations of array and image files: the header of an .npy file, chunks of a PNG, segments of a JPEG."""

from __future__ import annotations

import random
import re
import struct
import zlib

from tests.fuzz.mutate_bytes import integer, mutate_bytes

_DTYPES = (
    *(
        "<f4",
        "<f8",
        "<f2",
        "|u1",
        "<i8",
        ">f4",
        "|b1",
        "<c8",
        "|O",
        "<U4",
        "|S3",
        "<M8[s]",
        "|V4",
        "<f16",
        "x",
        "<f4,<i4",
    ),
    "[('a', '<f4')]",
)


def mutate_npy(data: bytes, generator: random.Random) -> bytes | None:
    """An .npy file with its header changed; None if ``data`` is not one."""
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        return None
    (length,) = struct.unpack("<H", data[8:10])
    header, content = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    version = data[6:8]
    match generator.randrange(8):
        case 0 | 1 | 2:
            numbers = [it.span() for it in re.finditer(r"\d+(?=[,)])", header)]
            if numbers:
                start, end = generator.choice(numbers)
                header = header[:start] + str(integer(generator, int(header[start:end]))) + header[end:]
        case 3:
            dtype = generator.choice(_DTYPES)
            quoted = dtype if dtype.startswith("[") else repr(dtype)
            header = re.sub(r"'descr': '[^']*'", lambda _: f"'descr': {quoted}", header)
        case 4:
            shape = tuple(integer(generator) for _ in range(generator.choice((0, 1, 3, 5, 40))))
            header = re.sub(r"\([^)]*\)", str(shape), header, count=1)
        case 5:
            header = header.replace("False", generator.choice(("True", "1", "None", "[]")))
        case 6:
            version = bytes(generator.choice(((2, 0), (3, 0), (1, 9), (0, 0), (255, 255))))
        case _:
            header = mutate_bytes(header.encode("latin1"), generator).decode("latin1")
    encoded = header.encode("latin1")
    size = len(encoded) if generator.random() < 0.9 else integer(generator)
    packed = struct.pack("<I", size % 2**32) if version[0] in (2, 3) else struct.pack("<H", size % 2**16)
    return data[:6] + version + packed + encoded + content


def mutate_png(data: bytes, generator: random.Random) -> bytes | None:
    """A PNG with a chunk changed, most with the right checksum; None if ``data`` is not one."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    chunks, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    index = generator.randrange(len(chunks))
    kind, content = chunks[index]
    match generator.randrange(7):
        case 0:
            start = generator.choice((0, 4))
            size = struct.pack(">I", integer(generator) % 2**32)
            chunks[0] = (chunks[0][0], chunks[0][1][:start] + size + chunks[0][1][start + 4 :])
        case 1:
            changed = bytearray(chunks[0][1])
            if len(changed) > 12:
                changed[generator.randrange(8, 13)] = generator.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = (chunks[0][0], bytes(changed))
        case 2:
            del chunks[index]
        case 3:
            chunks.insert(index, chunks[generator.randrange(len(chunks))])
        case 4:
            chunks[index] = (
                generator.choice((b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"zTXt", b"eXIf", b"acTL")),
                content,
            )
        case 5:
            chunks.insert(1, (b"zTXt", b"k\0\0" + zlib.compress(b"x" * generator.choice((10, 10**7)))))
        case _:
            chunks[index] = (kind, mutate_bytes(content, generator))
    out = data[:8]
    for kind, content in chunks:
        length = len(content) if generator.random() < 0.97 else integer(generator) % 2**32
        checksum = zlib.crc32(kind + content) if generator.random() < 0.95 else 0
        out += struct.pack(">I", length) + kind + content + struct.pack(">I", checksum)
    return out


def mutate_jpeg(data: bytes, generator: random.Random) -> bytes | None:
    """A JPEG with a segment's length, marker or content changed; None if ``data`` is not one."""
    if data[:2] != b"\xff\xd8":
        return None
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        segments.append((at, length))
        at += 2 + length
    if not segments:
        return None
    start, length = generator.choice(segments)
    changed = bytearray(data)
    match generator.randrange(4):
        case 0:
            changed[start + 2 : start + 4] = struct.pack(">H", integer(generator, length) % 2**16)
        case 1:
            changed[start + 1] = generator.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xFE, 0xD9))
        case 2:
            del changed[start : start + 2 + length]
        case _:
            inside = mutate_bytes(bytes(changed[start + 4 : start + 2 + length]), generator)
            changed[start + 4 : start + 2 + length] = inside
    return bytes(changed)
