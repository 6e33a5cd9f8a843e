"""PyTorch module to plain ONNX, opset 18, through ``torch.onnx.export(dynamo=True)``: the only torch in graph/."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx

from stn_infer.errors import ExportError, UsageError, one_line
from stn_infer.quiet import quiet

if TYPE_CHECKING:
    import torch
    from torch import nn

OPSET = 18
# onnxruntime 1.31 reads up to 13, TensorRT's parsers less; nothing here needs more than 10.
IR_VERSION = 10
_BATCH = 2


def sample_batch(shapes: Sequence[tuple[int, ...]], batch: int = _BATCH) -> tuple[torch.Tensor, ...]:
    """Normal random inputs [batch, *shape] in float32, the same each time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn((batch, *shape), generator=generator) for shape in shapes)


def export_plain(module: nn.Module, input_shapes: Sequence[tuple[int, ...]], name: str = "model") -> onnx.ModelProto:
    """What PyTorch itself exports, with a dynamic batch: the baseline, and the pass' input.

    Args:
        module: in evaluation mode, on the CPU, float32.
        input_shapes: one shape an input, without the batch.
        name: what messages call the model.

    Returns:
        A model of opset 18. Its outputs are named by their keys where the module returns a dictionary, else ``output``,
        or ``output_0``, ``output_1``, … where there are several.

    Raises:
        UsageError: the module does not take inputs of these shapes.
        ExportError: torch.onnx.export can't export it, or not with a dynamic batch.
    """
    import torch

    arguments = sample_batch(input_shapes)
    outputs = _output_names(module, arguments, name)
    batch = torch.export.Dim("batch")
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                output_names=outputs,
                dynamic_shapes=tuple({0: batch} for _ in arguments),
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever its stages raise, in several private types
        raise ExportError(f"{name}: torch.onnx.export cannot export it: {_reason(error)}") from error
    if program is None:
        raise ExportError(f"{name}: torch.onnx.export returned no program")
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    _check_dynamic(model, name)
    return model


def _output_names(module: nn.Module, arguments: tuple[torch.Tensor, ...], name: str) -> list[str]:
    """Run the module once, to see that it takes the inputs and what it returns."""
    import torch
    from torch.utils import _pytree as pytree

    shapes = "; ".join(",".join(str(size) for size in argument.shape[1:]) for argument in arguments)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            returned = module(*arguments)
    except Exception as error:  # the user's forward may raise anything
        if _takes_one(module, arguments):
            raise ExportError(
                f"{name}: the model takes a batch of 1 and not of {_BATCH} ({_one_line(error)}); "
                "write it with x.shape[0] or -1 instead of a number"
            ) from error
        raise UsageError(
            f"{name} cannot be run on an input of shape {shapes} (batch {_BATCH}): {_one_line(error)}; "
            "check --input-shape and the model"
        ) from error
    outputs = pytree.tree_leaves(returned)
    if not outputs or not all(isinstance(output, torch.Tensor) for output in outputs):
        kinds = ", ".join(sorted({type(output).__name__ for output in outputs})) or "nothing"
        raise ExportError(f"{name}: expected a model that returns tensors, it returns {kinds}")
    if isinstance(returned, dict) and len(returned) == len(outputs):
        return [str(key) for key in returned]
    return ["output"] if len(outputs) == 1 else [f"output_{index}" for index in range(len(outputs))]


def _takes_one(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> bool:
    import torch

    try:
        with torch.no_grad():
            module(*(argument[:1] for argument in arguments))
    except Exception:  # it does not run at all, then
        return False
    return True


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: the exporter's own text is a page of advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if "batch" in text and re.search(r"specializ|Constraints violated|marked .* as dynamic", text, re.IGNORECASE):
        return (
            f"the model ties the batch to a constant ({_one_line(error)}); "
            "write it with x.shape[0] or -1 instead of a number"
        )
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    """The exception's type and first line; the lines after it are the exporter's advice."""
    first = next(filter(None, (line.strip() for line in str(error).splitlines())), "no message")
    return f"{type(error).__name__}: {one_line(first, 240)}"


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's debugging notes: stack traces with the paths of the machine it ran on."""
    model.ir_version = min(model.ir_version, IR_VERSION)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _check_dynamic(model: onnx.ModelProto, name: str) -> None:
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if not dimensions or dimensions[0].dim_value:
            raise ExportError(
                f"{name}: input {value.name!r} came out with a fixed batch; write the model with x.shape[0] or -1"
            )
    for value in model.graph.output:
        dimensions = value.type.tensor_type.shape.dim
        if not dimensions or dimensions[0].dim_value:
            shape = [dimension.dim_param or dimension.dim_value for dimension in dimensions]
            raise ExportError(f"{name}: output {value.name!r} has shape {shape}; expected the batch on axis 0")
