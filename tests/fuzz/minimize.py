"""A smaller file that still shows a finding: parts are removed as long as it is the same."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx
from google.protobuf.message import DecodeError, Message

Same = Callable[[bytes], bool]


def minimize(data: bytes, same: Same, *, seconds: float) -> bytes:
    """``data`` without most of what is not needed for ``same(data)``.

    Args:
        data: a file for which ``same`` is true.
        same: whether a changed file still shows the finding.
        seconds: of wall time; what was reached by then is returned.
    """
    deadline = time.monotonic() + seconds
    try:
        model = onnx.ModelProto.FromString(data)
        if model.HasField("graph"):
            data = _fields(data, same, deadline)
    except DecodeError:
        pass
    return _spans(data, same, deadline)


def _spans(data: bytes, same: Same, deadline: float) -> bytes:
    size = max(1, len(data) // 2)
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(data) and time.monotonic() < deadline:
            shorter = data[:at] + data[at + size :]
            if same(shorter):
                data = shorter
            else:
                at += size
        size //= 2
        if size < 4 and len(data) > 4000:
            break
    return data


def _fields(data: bytes, same: Same, deadline: float) -> bytes:
    """Fields and list entries of the protobuf removed, the outer and the last ones first."""
    path_index = 0
    while time.monotonic() < deadline:
        model = onnx.ModelProto.FromString(data)
        paths = _paths(model)
        if path_index >= len(paths):
            return data
        _remove(model, paths[path_index])
        try:
            shorter = model.SerializeToString()
        except ValueError:
            shorter = data
        if shorter != data and same(shorter):
            data = shorter
        else:
            path_index += 1
    return data


def _paths(message: Message, prefix: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    waiting = [(message, prefix)]
    while waiting and len(found) < 3000:
        current, path = waiting.pop(0)
        for field, value in current.ListFields():
            if not isinstance(value, (str, bytes, int, float, Message)):
                for index in reversed(range(len(value))):
                    found.append((*path, field.name, index))
                    if isinstance(value[index], Message):
                        waiting.append((value[index], (*path, field.name, index)))
            else:
                found.append((*path, field.name))
                if isinstance(value, Message):
                    waiting.append((value, (*path, field.name)))
    return found


def _remove(message: Message, path: tuple[object, ...]) -> None:
    current: object = message
    for part in path[:-1]:
        current = current[part] if isinstance(part, int) else getattr(current, str(part))  # type: ignore[index]
    if isinstance(path[-1], int):
        del current[path[-1]]  # type: ignore[attr-defined]
    else:
        current.ClearField(path[-1])  # type: ignore[attr-defined]
