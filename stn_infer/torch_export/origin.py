"""The calls in an exported program, and the lines of the model's source that they come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stn_infer.errors import one_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (\w+)(?:\n\s*(\S[^\n]*))?')
_MATRICES = re.compile(
    r"linalg_(?!vector_norm|norm|cross|vecdot|diagonal|matmul|multi_dot)"
    r"|^_?(inverse|det|logdet|slogdet|pinverse|svd|cholesky|qr|lu_|triangular_solve|matrix_exp|lstsq|geqrf|ormqr|eig)"
)


def calls(program: ExportedProgram) -> Iterator[Node]:
    """The calls in a program, those in its subgraphs included."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.op == "call_function":
                yield node


def is_matrix_function(node: Any) -> bool:
    """Whether a node calls an inverse, a factorization or another function of matrices that ONNX lacks."""
    return _MATRICES.search(function_of(node)) is not None


def function_of(node: Any) -> str:
    """The name of the operator that a node calls, such as ``linalg_inv``; empty if it calls none."""
    packet = getattr(node.target, "overloadpacket", None)
    return getattr(packet, "__name__", "") if node.op == "call_function" else ""


def place_of(node: Node) -> str:
    """The line of the model's source that a node comes from, in brackets after a space; empty if unknown."""
    place = source_line(node.meta.get("stack_trace") or "")
    return f" ({place})" if place else ""


def node_of(program: ExportedProgram, function: str) -> str:
    """The line of the model's source that calls an operator, such as ``aten.linalg_svd.default``; empty if unknown."""
    wanted = function.removeprefix("aten.").partition(".")[0].strip("_")
    for node in calls(program):
        # a function may call another one, as linalg_svdvals calls _linalg_svd
        if wanted and function_of(node).strip("_").startswith(wanted):
            return source_line(node.meta.get("stack_trace") or "")
    return ""


def source_line(trace: str) -> str:
    """The innermost frame of a stack trace that is the model's own code, such as ``net.py, line 7: y = x.item()``."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    library = str(Path(spec.origin).parent) if spec is not None and spec.origin else "torch"
    own = [frame for frame in _FRAME.findall(trace) if not frame[0].startswith((library, "<"))]
    if not own:
        return ""
    file, line, _, code = own[-1]
    return f"{Path(file).name}, line {line}" + (f": {one_line(code, 90)}" if code else "")
