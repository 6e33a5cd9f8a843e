"""Exports a PyTorch module to plain ONNX with ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx

from stn_infer.errors import ExportError, UsageError, one_line
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import every_graph
from stn_infer.quiet import quiet

if TYPE_CHECKING:
    import torch
    from torch import nn

OPSET = 18
# The first opset with bfloat16 convolutions.
BF16_OPSET = 22
# onnxruntime 1.31 supports up to 13, TensorRT's parsers less; the exported files need at most 10.
IR_VERSION = 10
_BATCH = 2
_GROWTH = {3: 32, 4: 16}  # size step by rank without the batch axis: images, volumes


def sample_batch(shapes: Sequence[tuple[int, ...]], batch: int = _BATCH) -> tuple[torch.Tensor, ...]:
    """Returns normal random inputs [batch, *shape] in float32, with a fixed seed."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn((batch, *shape), generator=generator) for shape in shapes)


def other_shapes(input_shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Returns the input shapes with another image size: each axis of [C, H, W] and [C, D, H, W] grows differently.

    Sizes grow by multiples of 32 (volumes: 16), because networks that downsample by 2 repeatedly require that.
    """
    return tuple(
        (shape[0], *(size + _GROWTH[len(shape)] * axis for axis, size in enumerate(shape[1:], 1)))
        if len(shape) in _GROWTH
        else shape
        for shape in input_shapes
    )


def export_plain(
    module: nn.Module,
    input_shapes: Sequence[tuple[int, ...]],
    name: str = "model",
    dynamic_size: bool = False,
    *,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Exports a module with PyTorch's exporter and a dynamic batch: the baseline, and the fusion pass's input.

    Args:
        module: in evaluation mode, on the CPU, float32.
        input_shapes: one shape per input, without the batch.
        name: the model's name in messages.
        dynamic_size: export dynamic height and width (and depth) of images [C, H, W] and volumes [C, D, H, W];
            ``input_shapes`` are then examples.
        opset: 18, or a later one if a type requires it.

    Returns:
        A model of that opset. Its outputs are named by their keys if the module returns a dictionary, else ``output``,
        or ``output_0``, ``output_1``, … if there are several.

    Raises:
        UsageError: the module does not accept inputs of these shapes.
        ExportError: torch.onnx.export can't export the module, or not with a dynamic batch or size.
    """
    import torch

    arguments = sample_batch(input_shapes)
    outputs = _output_names(module, arguments, name)
    if dynamic_size:
        _try_other_sizes(module, input_shapes, name)
    axes = _dynamic_axes(input_shapes, dynamic_size)
    # The exporter allows an output name to shadow a tensor.
    unique = [f"stn_export_{index}" for index in range(len(outputs))]
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                opset_version=opset,
                output_names=unique,
                dynamic_shapes=_by_parameter(module, axes),
                verbose=False,
            )
    except Exception as error:  # the exporter wraps errors of its stages in several private types
        raise ExportError(f"{name}: torch.onnx.export cannot export it: {_reason(error)}") from error
    if program is None:
        raise ExportError(f"{name}: torch.onnx.export returned no program")
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    _name_outputs(model, outputs)
    _check_dynamic(model, name)
    if dynamic_size:
        _check_dynamic_size(model, axes, name)
    return model


def _dynamic_axes(input_shapes: Sequence[tuple[int, ...]], dynamic_size: bool) -> tuple[dict[int, Any], ...]:
    """The dynamic axes of each input; images of the same size share their symbols, because a network may join them."""
    from torch.export import Dim

    batch = Dim("batch")
    known: dict[tuple[int, ...], tuple[Any, ...]] = {}
    axes: list[dict[int, Any]] = []
    for shape in input_shapes:
        dynamic_axes: dict[int, Any] = {0: batch}
        if dynamic_size and len(shape) in _GROWTH:
            suffix = f"_{len(known)}" if known and shape[1:] not in known else ""
            names = ("depth", "height", "width")[-len(shape) + 1 :]
            symbols = known.setdefault(shape[1:], tuple(Dim(f"{name}{suffix}") for name in names))
            dynamic_axes |= dict(enumerate(symbols, 2))
        axes.append(dynamic_axes)
    return tuple(axes)


def _by_parameter(module: nn.Module, axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """``axes`` in the structure of ``module.forward``'s parameters: those that ``*args`` takes are one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return axes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:named], axes[named:]) if len(axes) > named else axes


def _try_other_sizes(module: nn.Module, input_shapes: Sequence[tuple[int, ...]], name: str) -> None:
    """Raises unless the module accepts images of another size."""
    import torch

    others = other_shapes(input_shapes)
    if others == tuple(input_shapes):
        raise UsageError(f"{name} has no image input [C, H, W] or [C, D, H, W]; export it without a dynamic size")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(*sample_batch(others))
    except Exception as error:  # the user's forward may raise anything
        own, other = (_sizes(shapes) for shapes in (input_shapes, others))
        raise ExportError(
            f"{name}: the network accepts images of {own} but not of {other} ({_one_line(error)}); pool its features "
            "to a fixed size, or export it without a dynamic size"
        ) from error


def _check_dynamic_size(model: onnx.ModelProto, axes: Sequence[Mapping[int, Any]], name: str) -> None:
    """Raises if the exporter silently baked in a size as a constant."""
    for value, wanted in zip(model.graph.input, axes, strict=False):
        dimensions = value.type.tensor_type.shape.dim
        fixed = [dimensions[axis].dim_value for axis in wanted if axis and dimensions[axis].dim_value]
        if fixed:
            raise ExportError(
                f"{name}: the exporter baked in the size {'x'.join(map(str, fixed))} of input {value.name!r} as a "
                "constant, as it does for affine_grid(theta, x.shape) and int(x.shape[2]); give the grid a fixed size, "
                "or export the model without a dynamic size"
            )


def _sizes(shapes: Sequence[tuple[int, ...]]) -> str:
    return "; ".join("x".join(map(str, shape[1:])) for shape in shapes if len(shape) in _GROWTH)


def _output_names(module: nn.Module, arguments: tuple[torch.Tensor, ...], name: str) -> list[str]:
    """Runs the module once to check that it accepts the inputs; returns the names of its outputs."""
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
                f"{name}: the model accepts a batch of 1 but not of {_BATCH} ({_one_line(error)}); "
                "use x.shape[0] or -1 in its code instead of a number"
            ) from error
        raise UsageError(
            f"{name} cannot be run on an input of shape {shapes} (batch {_BATCH}): {_one_line(error)}; "
            "check --input-shape and the model"
        ) from error
    outputs = pytree.tree_leaves(returned)
    if not outputs or not all(isinstance(output, torch.Tensor) for output in outputs):
        kinds = ", ".join(sorted({type(output).__name__ for output in outputs})) or "nothing"
        raise ExportError(f"{name}: expected a model that returns tensors, got {kinds}")
    if any(output.is_complex() for output in outputs):
        raise ExportError(f"{name}: complex outputs are not supported; return torch.view_as_real(...) of them instead")
    if isinstance(returned, dict) and len(returned) == len(outputs):
        return [str(key) or f"output_{index}" for index, key in enumerate(returned)]
    return ["output"] if len(outputs) == 1 else [f"output_{index}" for index in range(len(outputs))]


def _takes_one(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> bool:
    import torch

    try:
        with torch.no_grad():
            module(*(argument[:1] for argument in arguments))
    except Exception:  # the model does not run at any batch size
        return False
    return True


def _reason(error: BaseException) -> str:
    """The innermost cause in one line, without the exporter's long advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    ties = re.search(r"specializ|Constraints violated|marked .* as dynamic", text, re.IGNORECASE)
    if ties and re.search(r"\b(depth|height|width)(_\d+)?\b", text):
        constraint = re.search(r"^\s*(?:-\s*)?(.*\b(?:depth|height|width)\b.*)$", text, re.MULTILINE)
        return (
            f"the model ties the image's size to constants ({one_line(constraint[1] if constraint else text, 200)}); "
            "export it without a dynamic size"
        )
    if ties and "batch" in text:
        return (
            f"the model ties the batch to a constant ({_one_line(error)}); "
            "use x.shape[0] or -1 in its code instead of a number"
        )
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    """The exception's type and first line; later lines are the exporter's advice."""
    first = next(filter(None, (line.strip() for line in str(error).splitlines())), "no message")
    return f"{type(error).__name__}: {one_line(first, 240)}"


def _strip(model: onnx.ModelProto) -> None:
    """Removes the exporter's debugging data: stack traces with paths of the exporting machine."""
    model.ir_version = min(model.ir_version, IR_VERSION)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _name_outputs(model: onnx.ModelProto, wanted: Sequence[str]) -> None:
    """Renames the outputs to ``wanted``; a tensor or weight with such a name is renamed, an input keeps its name."""
    names = Names(model.graph)
    kept = {value.name for value in model.graph.input}
    renamed: dict[str, str] = {}
    for value, name in zip(model.graph.output, wanted, strict=True):
        while name in kept:
            name += "_out"
        kept.add(name)
        renamed |= {name: names.fresh(name), value.name: name}
    for graph in every_graph(model.graph):
        for node in graph.node:
            node.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
            node.output[:] = [renamed.get(tensor, tensor) for tensor in node.output]
        for value in (*graph.output, *graph.value_info, *graph.initializer):
            value.name = renamed.get(value.name, value.name)


def _check_dynamic(model: onnx.ModelProto, name: str) -> None:
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if not dimensions or dimensions[0].dim_value:
            raise ExportError(
                f"{name}: the exporter fixed the batch size of input {value.name!r}; use x.shape[0] or -1 in the model"
            )
    for value in model.graph.output:
        dimensions = value.type.tensor_type.shape.dim
        if not dimensions or dimensions[0].dim_value:
            shape = [dimension.dim_param or dimension.dim_value for dimension in dimensions]
            raise ExportError(f"{name}: output {value.name!r} has shape {shape}; expected the batch on axis 0")
