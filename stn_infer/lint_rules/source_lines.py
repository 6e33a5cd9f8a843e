"""The lines of a model's source that the nodes of an ONNX file come from, as far as torch.onnx stored them."""

from __future__ import annotations

import re

import onnx

from stn_infer.proto.traversal import every_node

_TRACE = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "([^"\n]+)", line (\d{1,9})\b')
_LIBRARY = re.compile(r"(?:^|/)(?:site|dist)-packages/|(?:^|/)torch/|^<")
_LONGEST = 20_000  # characters of a trace that are read


def source_lines(model: onnx.ModelProto) -> dict[str, str]:
    """Lines such as ``models/net.py:7`` by the node's name, or by its first output's where it has no name."""
    found: dict[str, str] = {}
    for node in every_node(model):
        trace = next((entry.value for entry in node.metadata_props if entry.key == _TRACE), "")
        line = source_line(trace)
        if line and (node.name or node.output):
            found.setdefault(node.name or node.output[0], line)
    return found


def source_line(trace: str) -> str:
    """The innermost frame of a stack trace that is not a library's, as ``path:line``; "" without one."""
    own = [f"{file}:{line}" for file, line in _FRAME.findall(trace[-_LONGEST:]) if not _LIBRARY.search(file)]
    return own[-1] if own else ""
