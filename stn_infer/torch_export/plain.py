"""Exports a PyTorch module to plain ONNX with ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import process_time
from typing import TYPE_CHECKING, Any

import onnx

from stn_infer.errors import ExportError, ModelError, UsageError, batch_advice
from stn_infer.metadata import ModelMetadata
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import every_graph
from stn_infer.quiet import quiet
from stn_infer.sources.inputs import input_names
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.autocast import autocast_off
from stn_infer.torch_export.axes import count_from_the_front
from stn_infer.torch_export.batches import find_batch_axes, trial_inputs
from stn_infer.torch_export.capture import TiedBatch, brief, capture, reason
from stn_infer.torch_export.constants import fold_constants
from stn_infer.torch_export.decompositions import decompose
from stn_infer.torch_export.outputs import output_names, output_tensors, unique_names

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


def trace_inputs(loaded: LoadedModel, batch: int = _BATCH) -> tuple[torch.Tensor, ...]:
    """Returns inputs [batch, *shape] of a source: its examples, else random ones with a fixed seed."""
    import torch

    if loaded.examples or loaded.batch_axes or loaded.dtypes:
        return tuple(torch.from_numpy(value) for value in trial_inputs(loaded, batch))
    return sample_batch(loaded.input_shapes, batch)


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


@dataclass(frozen=True)
class PlainExport:
    """What ``torch.onnx.export`` made of a model.

    Attributes:
        model: plain ONNX.
        fixed_batch: the batch size that the model's code forces on the file; None if the batch is dynamic.
        notes: remarks for the user.
        torch_seconds: CPU time of PyTorch's exporter.
        batch_axes: the name of each input's axis 0 if they are not one batch; else empty.
    """

    model: onnx.ModelProto
    fixed_batch: int | None = None
    notes: tuple[str, ...] = ()
    torch_seconds: float = 0.0
    batch_axes: tuple[str, ...] = ()


def export_plain(
    module: nn.Module,
    input_shapes: Sequence[tuple[int, ...]],
    name: str = "model",
    dynamic_size: bool = False,
    *,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Exports a module as :func:`export_program` does a source, with float32 inputs and a dynamic batch.

    Args:
        module: in evaluation mode, on the CPU, float32.
        input_shapes: one shape per input, without the batch.
        name: the model's name in messages.
        dynamic_size: as for :func:`export_program`.
        opset: as for :func:`export_program`.

    Raises:
        UsageError, ExportError: as :func:`export_program`; or the model's code ties the batch to a constant.
    """
    shapes = tuple(tuple(shape) for shape in input_shapes)
    loaded = LoadedModel(name, module, shapes, ModelMetadata(), "factory")
    exported = export_program(loaded, dynamic_size, opset=opset)
    if exported.fixed_batch is not None:
        raise ExportError(f"{name}: {exported.notes[0]}")
    return exported.model


def export_program(loaded: LoadedModel, dynamic_size: bool = False, *, opset: int = OPSET) -> PlainExport:
    """Exports a source with PyTorch's exporter and a dynamic batch: the baseline, and the fusion pass's input.

    Inverses, linear solutions and determinants of small matrices and uneven adaptive pooling become elementary
    operators; matrix functions of constants become constants; ``torch.autocast`` has no effect. A model whose code
    needs a fixed batch, such as one with a loop over its samples, is exported with a batch of 1.

    Args:
        loaded: the source; a fixed batch size in it is that of the file.
        dynamic_size: export dynamic height and width (and depth) of images [C, H, W] and volumes [C, D, H, W]; the
            shapes of ``loaded`` are then examples.
        opset: 18, or a later one if a type requires it.

    Returns:
        A model of that opset. Its outputs are named as :func:`~stn_infer.torch_export.outputs.output_names` does.

    Raises:
        UsageError: the module does not accept inputs of these shapes.
        ExportError: torch.onnx.export can't export the module, or not with a dynamic size.
    """
    name = loaded.name
    if loaded.fixed_batch is not None:
        try:
            tied = f"the .pt2 was saved for a batch of {loaded.fixed_batch}, and so is the file"
            notes = (tied,) if loaded.origin == "pt2" else ()
            return _export(loaded, dynamic_size, opset, loaded.fixed_batch, notes)
        except TiedBatch as tie:
            raise ExportError(f"{name}: its code does not take a batch of {loaded.fixed_batch}: {tie}") from tie
    axes = loaded.batch_axes or find_batch_axes(loaded, input_names(loaded.module, len(loaded.input_shapes)))
    if axes:
        with contextlib.suppress(ExportError, TiedBatch):  # else they share one
            return _export(replace(loaded, batch_axes=axes), dynamic_size, opset, None, ())
        loaded = replace(loaded, batch_axes=())
    try:
        return _export(loaded, dynamic_size, opset, None, ())
    except TiedBatch as tie:
        why = f"its code needs a fixed batch ({tie})"
        if dynamic_size:
            raise ExportError(f"{name}: {why}; export it without a dynamic size") from tie
        try:
            return _export(
                loaded,
                dynamic_size,
                opset,
                1,
                (f"{why}, so the file has a batch of 1; samples of a larger batch run one after the other",),
            )
        except TiedBatch as other:  # not at a batch of 1 either
            raise ExportError(f"{name}: {why}; use x.shape[0] or -1 in its code instead of a number") from other


def _export(
    loaded: LoadedModel, dynamic_size: bool, opset: int, fixed_batch: int | None, notes: tuple[str, ...]
) -> PlainExport:
    import torch

    module, name = loaded.module, loaded.name
    arguments = trace_inputs(loaded, fixed_batch or _BATCH)
    outputs = _named_outputs(module, arguments, name)
    if dynamic_size:
        _try_other_sizes(loaded)
    batches = () if fixed_batch is not None else loaded.axes
    symbols, names = _dynamic_axes(loaded.input_shapes, dynamic_size, batches)
    # The exporter allows an output name to shadow a tensor.
    unique = [f"stn_export_{index}" for index in range(len(outputs))]
    program = None
    begun = process_time()
    passes = 0.0
    try:
        with quiet(), torch.no_grad(), autocast_off() as types:
            program = capture(module, arguments, _by_parameter(module, symbols))
            started = process_time()
            folded = fold_constants(program)
            if folded is not None:
                program = capture(folded, arguments, symbols)
            program = decompose(program, name)
            passes = process_time() - started
            translated = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                output_names=unique,
                dynamic_shapes=names,
                verbose=False,
            )
    except (TiedBatch, ExportError):
        raise
    except Exception as error:  # the exporter wraps errors of its stages in several private types
        raise ExportError(f"{name}: torch.onnx.export cannot export it: {reason(error, program)}") from error
    seconds = process_time() - begun - passes
    if translated is None:
        raise ExportError(f"{name}: torch.onnx.export returned no program")
    model: onnx.ModelProto = translated.model_proto
    _strip(model)
    count_from_the_front(model)
    _name_outputs(model, outputs)
    if fixed_batch is None:
        _check_dynamic(model, name)
    else:
        _check_fixed(model, fixed_batch, name)
    if dynamic_size:
        _check_dynamic_size(model, symbols, name)
    if types:
        notes = (
            *notes,
            f"its code uses torch.autocast ({', '.join(dict.fromkeys(types))}); the file computes that part in float32",
        )
    if loaded.batch_axes:
        own = ", ".join(axis for axis in dict.fromkeys(loaded.batch_axes))
        notes = (*notes, f"the inputs have batches of their own: {own}")
    return PlainExport(model, fixed_batch, notes, seconds, loaded.batch_axes)


def _dynamic_axes(
    input_shapes: Sequence[tuple[int, ...]], dynamic_size: bool, batches: Sequence[str]
) -> tuple[tuple[dict[int, Any], ...], tuple[dict[int, str], ...]]:
    """The dynamic axes of each input, as torch's symbols and by name.

    Images of the same size share their symbols, because a network may join them. ``batches`` names axis 0 of each
    input; empty: it is fixed.
    """
    from torch.export import Dim

    names: list[dict[int, str]] = []
    known: dict[tuple[int, ...], list[str]] = {}
    for index, shape in enumerate(input_shapes):
        dynamic: dict[int, str] = {0: batches[index]} if batches else {}
        if dynamic_size and len(shape) in _GROWTH:
            suffix = f"_{len(known)}" if known and shape[1:] not in known else ""
            own = [f"{axis}{suffix}" for axis in ("depth", "height", "width")[-len(shape) + 1 :]]
            dynamic |= dict(enumerate(known.setdefault(shape[1:], own), 2))
        names.append(dynamic)
    symbols = {name: Dim(name) for dynamic in names for name in dynamic.values()}
    return tuple({axis: symbols[name] for axis, name in dynamic.items()} for dynamic in names), tuple(names)


def _by_parameter(module: nn.Module, axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """``axes`` in the structure of ``module.forward``'s parameters: those that ``*args`` takes are one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return axes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:named], axes[named:]) if len(axes) > named else axes


def _try_other_sizes(loaded: LoadedModel) -> None:
    """Raises unless the module accepts images of another size."""
    import torch

    name, input_shapes = loaded.name, loaded.input_shapes
    others = other_shapes(input_shapes)
    if others == tuple(input_shapes):
        raise UsageError(f"{name} has no image input [C, H, W] or [C, D, H, W]; export it without a dynamic size")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded.module(*trace_inputs(replace(loaded, input_shapes=others, examples=())))
    except Exception as error:  # the user's forward may raise anything
        own, other = (_sizes(shapes) for shapes in (input_shapes, others))
        raise ExportError(
            f"{name}: the network accepts images of {own} but not of {other} ({brief(error)}); pool its features "
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


def _named_outputs(module: nn.Module, arguments: tuple[torch.Tensor, ...], name: str) -> list[str]:
    """Runs the module once to check that it accepts the inputs; returns the names of its outputs.

    Raises:
        TiedBatch: it accepts a batch of 1 only.
    """
    import torch

    shapes = "; ".join(",".join(str(size) for size in argument.shape[1:]) for argument in arguments)
    batch = len(arguments[0])
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            returned = module(*arguments)
    except Exception as error:  # the user's forward may raise anything
        if batch > 1 and _takes_one(module, arguments):
            raise TiedBatch(f"it accepts a batch of 1 but not of {batch}: {brief(error)}") from error
        raise UsageError(
            f"{name} cannot be run on an input of shape {shapes} (batch {batch}): {brief(error)}"
            + (batch_advice(argument.shape[1:] for argument in arguments) or "; check --input-shape and the model")
        ) from error
    try:
        tensors, names = output_tensors(returned), output_names(returned)
    except ModelError as error:
        raise ExportError(f"{name} {error}") from None
    if any(output.is_complex() for output in tensors):
        raise ExportError(f"{name}: complex outputs are not supported; return torch.view_as_real(...) of them instead")
    return names


def _takes_one(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> bool:
    import torch

    try:
        with torch.no_grad():
            module(*(argument[:1] for argument in arguments))
    except Exception:  # the model does not run at any batch size
        return False
    return True


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
    renamed: dict[str, str] = {}
    unique = unique_names(wanted, (value.name for value in model.graph.input))
    for value, name in zip(model.graph.output, unique, strict=True):
        renamed |= {name: names.fresh(name), value.name: name}
    for graph in every_graph(model.graph):
        for node in graph.node:
            node.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
            node.output[:] = [renamed.get(tensor, tensor) for tensor in node.output]
        for value in (*graph.output, *graph.value_info, *graph.initializer):
            value.name = renamed.get(value.name, value.name)


def _check_fixed(model: onnx.ModelProto, batch: int, name: str) -> None:
    for value in model.graph.output:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        if shape[:1] != [batch]:
            raise TiedBatch(f"output {value.name!r} has shape {shape} at a batch of {batch}")


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
