"""Captures a module as a program with ``torch.export``, and explains in a sentence why it can't be."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stn_infer.errors import one_line
from stn_infer.torch_export.origin import node_of, source_line

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

_DATA_DEPENDENT = re.compile(r"data-dependent|DataDependent", re.IGNORECASE)


class TiedBatch(Exception):
    """The model's code ties the batch to a constant; the message is why."""


def capture(module: nn.Module, arguments: Sequence[torch.Tensor], axes: Any) -> ExportedProgram:
    """Captures ``module`` as ``torch.onnx.export`` does: without dynamo, or with it if that fails.

    If the batch is tied, then also without dynamo and with ``len(tensor)`` as a symbol.

    Args:
        module: in evaluation mode.
        arguments: example inputs.
        axes: the dynamic axes, in the structure of ``module.forward``'s parameters.

    Raises:
        Exception: torch's own, of the first attempt; see :func:`reason`. ``TiedBatch`` if it fails only for that.
    """
    import torch

    failures: list[Exception] = []
    for strict, lengths in ((False, False), (False, True), (True, False)):
        if lengths and not _ties_the_batch(failures[0]):
            continue
        try:
            with _as_the_onnx_exporter(), _symbolic_lengths() if lengths else contextlib.nullcontext():
                # dynamo's message has the line of the model's source without this option only
                options = {} if strict else _deferred_guards()
                return torch.export.export(module, tuple(arguments), dynamic_shapes=axes, strict=strict, **options)
        except Exception as error:  # torch has no common type for these
            failures.append(error)
            if _DATA_DEPENDENT.search(str(error)):  # dynamo cannot either, and takes its time
                break
    first = failures[0]
    if _ties_the_batch(first):
        place = next(filter(None, (source_line(str(each)) for each in failures)), "")
        why = "it makes the batch a number, as a loop over the samples or int(x.shape[0]) does"
        raise TiedBatch(place or why) from first
    raise first


def _ties_the_batch(error: Exception) -> bool:
    return _is_tied(str(error)) and re.search(r"\bbatch", str(error)) is not None


@contextlib.contextmanager
def _symbolic_lengths() -> Iterator[None]:
    """While it lasts, ``len`` of a tensor is its first size, which may be a symbol; Python's own makes it a number."""
    import torch

    plain = builtins.len

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else plain(value)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain


def _deferred_guards() -> dict[str, Any]:
    """The option of ``torch.onnx.export`` by which a condition such as "the batch is not 1" does not end a capture."""
    import torch

    name = "prefer_deferred_runtime_asserts_over_guards"
    return {name: True} if name in inspect.signature(torch.export.export).parameters else {}


@contextlib.contextmanager
def _as_the_onnx_exporter() -> Iterator[None]:
    """The settings of ``torch.onnx.export``: loops for recurrent layers, and sizes that may be 0 or 1."""
    from torch.fx.experimental import _config

    with contextlib.ExitStack() as stack:
        try:
            from torch.export import _patches as patches

            loops: tuple[str, ...] = ("lstm", "gru")
            for kind in loops:
                stack.enter_context(getattr(patches, f"register_{kind}_while_loop_decomposition")())
        except (ImportError, AttributeError):  # not in every version of torch
            pass
        if hasattr(_config, "backed_size_oblivious"):
            stack.enter_context(_config.patch(backed_size_oblivious=True))  # type: ignore[attr-defined]
        yield


def reason(error: BaseException, program: ExportedProgram | None = None) -> str:
    """Why an export failed, in one line: the innermost cause, and the line of the model's source if it is known."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    place = source_line(text)
    if _DATA_DEPENDENT.search(text):
        return (
            f"the code decides by the values of a tensor ({place or brief(error)}), and an ONNX file has one path for "
            "all; use torch.where, torch.clamp or torch.cond there"
        )
    unknown = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", text)
    if unknown is not None:
        operator = unknown[1].replace("::", ".")
        where = node_of(program, operator) if program is not None else ""
        return f"the operator {operator}{f' ({where})' if where else ''} has no ONNX form"
    if _is_tied(text) and re.search(r"\b(depth|height|width)(_\d+)?\b", text):
        fixed = re.findall(r"marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text)
        fixed = fixed or re.findall(r"^\s*(depth|height|width)\w* = (\d+)$", text, re.MULTILINE)
        sizes = ", ".join(f"{axis} = {size}" for axis, size in fixed)
        return (
            f"the model ties the image's size to constants ({sizes or one_line(text, 200)}), as "
            "affine_grid(theta, x.shape) does; give the grid a fixed size, or export it without a dynamic size"
        )
    if _is_tied(text) and "batch" in text:
        return (
            f"the model ties the batch to a constant ({brief(error)}); "
            "use x.shape[0] or -1 in its code instead of a number"
        )
    return brief(error)


def brief(error: BaseException) -> str:
    """The exception's type and first line; later lines are the exporter's advice."""
    first = next(filter(None, (line.strip() for line in str(error).splitlines())), "no message")
    return f"{type(error).__name__}: {one_line(first, 240)}"


def _is_tied(text: str) -> bool:
    return re.search(r"specializ|Constraints violated|marked .* as dynamic", text, re.IGNORECASE) is not None
