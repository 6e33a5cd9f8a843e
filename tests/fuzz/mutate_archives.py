"""Mutations of archives and pickles: members of a zip, opcodes of a pickle, the header of a safetensors file."""

from __future__ import annotations

import io
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable

from tests.fuzz.mutate_bytes import integer, mutate_bytes, text

_GLOBALS = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nload\n",
)
_VALUES = (
    b"N",
    b"]",
    b"}",
    b")",
    b"K\x05",
    b"J\xff\xff\xff\x7f",
    b"I123456789012345678901234567890\n",
    b"X\x01\0\0\0a",
    b"\x88",
    b"G\x7f\xf8\0\0\0\0\0\0",
)


def mutate_pickle(data: bytes, generator: random.Random, other: bytes = b"") -> bytes | None:
    """A pickle with opcodes changed, removed, repeated or replaced; None if ``data`` is not one."""
    try:
        found = [position for _, _, position in pickletools.genops(data) if position is not None]
    except Exception:
        return None
    ends = [*found[1:], data.rfind(b".") + 1 or len(data)]
    pieces = [data[start:end] for start, end in zip(found, ends, strict=True)]
    rest = data[ends[-1] :]
    at = generator.randrange(len(pieces))
    match generator.randrange(7):
        case 0:
            del pieces[at]
        case 1:
            pieces.insert(at, pieces[generator.randrange(len(pieces))])
        case 2:
            there = generator.randrange(len(pieces))
            pieces[at], pieces[there] = pieces[there], pieces[at]
        case 3:
            pieces[at] = generator.choice(_VALUES)
        case 4:
            named = [index for index, piece in enumerate(pieces) if piece[:1] in b"c\x93"] or [at]
            pieces[generator.choice(named)] = generator.choice(_GLOBALS)
        case 5:
            numbers = [index for index, piece in enumerate(pieces) if piece[:1] in b"KMJ"] or [at]
            pieces[generator.choice(numbers)] = b"J" + struct.pack("<I", integer(generator) % 2**32)
        case _:
            strings = [index for index, piece in enumerate(pieces) if piece[:1] == b"X"] or [at]
            encoded = text(generator).encode()
            pieces[generator.choice(strings)] = b"X" + struct.pack("<I", len(encoded)) + encoded
    return b"".join(pieces) + rest


def mutate_zip(
    data: bytes, generator: random.Random, mutate: Callable[[str, bytes, random.Random], bytes]
) -> bytes | None:
    """A zip file with a member changed by ``mutate``, renamed, removed or repeated; None if ``data`` is not one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return None
    if not members:
        return None
    at = generator.randrange(len(members))
    name, content = members[at]
    compression = zipfile.ZIP_STORED
    match generator.randrange(9):
        case 0:
            del members[at]
        case 1:
            folder = name.rpartition("/")[0]
            members[at] = (
                generator.choice((text(generator) or "x", f"{folder}/{text(generator)}", members[-1][0])),
                content,
            )
        case 2:
            members.append((name, mutate(name, content, generator)))
        case 3:
            members[at] = (
                name,
                content * generator.choice((0, 2, 50)) if len(content) < 10_000 else content[: len(content) // 2],
            )
        case 4:
            compression = zipfile.ZIP_DEFLATED
            members[at] = (name, mutate(name, content, generator))
        case _:
            members[at] = (name, mutate(name, content, generator))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name.replace("\0", "0") or "empty")
            info.compress_type = compression
            archive.writestr(info, content)
    changed = bytearray(out.getvalue())
    if generator.random() < 0.15:  # sizes, offsets and methods that lie
        for signature, fields in (
            (b"PK\x01\x02", (8, 10, 16, 20, 24, 28, 42)),
            (b"PK\x05\x06", (8, 10, 12, 16)),
            (b"PK\x03\x04", (6, 8, 18, 22, 26)),
        ):
            start = changed.find(signature)
            if start >= 0 and generator.random() < 0.5:
                field = start + generator.choice(fields)
                changed[field : field + 2] = struct.pack("<H", integer(generator) % 2**16)
    return bytes(changed)


def mutate_safetensors(
    data: bytes, generator: random.Random, mutate_json: Callable[[bytes, random.Random], bytes | None]
) -> bytes | None:
    """A safetensors file with its header's length or JSON changed; None if ``data`` is not one."""
    if len(data) < 8 or data[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", data[:8])
    header, content = data[8 : 8 + length], data[8 + length :]
    if generator.random() < 0.15:
        return struct.pack("<Q", integer(generator, length) % 2**64) + data[8:]
    changed = mutate_json(header, generator) or mutate_bytes(header, generator)
    if generator.random() < 0.2:
        content = content[: generator.randrange(len(content) + 1)]
    return struct.pack("<Q", len(changed)) + changed + content
