"""How each tensor's shape depends on the file's dynamic sizes: the batch, and other sizes that its inputs name.

Shape inference determines most shapes. The others (old exporters, contrib operators) are observed in a run of only the
nodes involved, from tensors of known shape, at two batch sizes. An axis with the same length in both is static; an axis
that grows in proportion carries the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from stn_infer.arrays import Array
from stn_infer.budget import too_large
from stn_infer.errors import ModelError
from stn_infer.fusion.dataflow import GraphView
from stn_infer.proto.inputs import Shapes, plausible_shapes
from stn_infer.proto.retype import FLOAT_TYPES
from stn_infer.proto.session import Stored, open_session
from stn_infer.proto.traversal import names_read, producers, walk_back


@dataclass(frozen=True)
class Sizes:
    """One choice of the dynamic sizes: the batch, and which of two trial values the other dynamic axes have."""

    batch: int
    variant: int = 0


#: Two batch sizes, then the other trial values of the dynamic axes.
SETTINGS = (Sizes(2), Sizes(3), Sizes(3, 1))
_TRIAL = (32, 48)
_SHAPE_OF = "stn_shape_of_"
# From this many unknown shapes on, it is faster to observe the first ones and infer the others than to observe all.
_MANY = 32
_ROUNDS = 4
_LARGE = 2**16


@dataclass(frozen=True)
class Axis:
    """An axis's length: ``factor``, times the batch size if the axis carries the batch.

    ``varied`` is the factor at the second trial value of the dynamic sizes; None if it equals ``factor``.
    """

    factor: int
    batch: bool = False
    varied: int | None = None

    def at(self, sizes: Sizes) -> int:
        """The length at ``sizes``."""
        factor = self.varied if sizes.variant and self.varied is not None else self.factor
        return factor * sizes.batch if self.batch else factor


SymbolicShape = tuple[Axis, ...]
SINGLE = Axis(1)


@dataclass(frozen=True)
class Observation:
    """What is known about a graph's tensors.

    Attributes:
        shapes: name -> the shape as a function of the dynamic sizes; tensors whose shape has no such rule are absent.
        dtypes: name -> ONNX's name of the type, in lower case.
        constants: name -> value, for constants that the reference operators may not be able to compute.
        settings: the trial sizes: all of ``SETTINGS``, or fewer if the file has fewer dynamic sizes.
        batches: number of different names of the inputs' first axes; such batch sizes may differ at run time.
    """

    shapes: Mapping[str, SymbolicShape]
    dtypes: Mapping[str, str]
    constants: Mapping[str, Array]
    settings: tuple[Sizes, ...]
    batches: int


class Symbols:
    """The names of a model's dynamic input axes, and their trial lengths."""

    def __init__(self, inputs: Sequence[onnx.ValueInfoProto], shapes: Sequence[Shapes], frozen: bool) -> None:
        self._trials: dict[str, tuple[int, int]] = {}
        self._made: dict[str | None, Axis] = {}
        self._shapes: dict[str, list[int | str]] = {}
        batches: set[str] = set()
        named: set[str] = set()
        for value in inputs:
            tensor = value.type.tensor_type
            if not tensor.HasField("shape"):
                continue
            shape: list[int | str] = []
            for axis, dim in enumerate(tensor.shape.dim):
                if dim.dim_value > 0:
                    shape.append(dim.dim_value)
                elif axis == 0 and frozen:
                    shape.append(1)
                else:
                    name = dim.dim_param or f"{value.name}/{axis}"
                    shape.append(name)
                    (named if axis else batches).add(name)
                    given = [chosen[value.name] for chosen in shapes if len(chosen.get(value.name, ())) >= axis > 0]
                    if given or name not in self._trials:
                        self._trials[name] = (given[0][axis - 1], given[-1][axis - 1]) if given else _TRIAL
            self._shapes[value.name] = shape
        self._batches = batches
        # An unnamed axis counts as the common batch.
        self.batches = len({name if "/" not in name else "" for name in batches})
        self.open = bool(named - batches)

    @property
    def settings(self) -> tuple[Sizes, ...]:
        """The trial sizes."""
        if not self._batches:
            return (Sizes(1), Sizes(1, 1)) if self.open else (Sizes(1),)
        return SETTINGS if self.open else SETTINGS[:2]

    def shape(self, name: str) -> list[int | str] | None:
        """An input's shape, every dynamic axis named. None if the file gives no rank."""
        return self._shapes.get(name)

    def name(self, axis: Axis) -> int | str:
        """A dimension (number or symbol) that denotes an axis."""
        if axis == Axis(axis.factor):
            return axis.factor
        if axis == Axis(1, batch=True):
            return min(self._batches)
        name = f"stn_axis_{axis.factor}_{axis.batch}_{axis.varied}"
        self._made[name] = axis
        return name

    def axis(self, dim: int | str | None) -> Axis | None:
        """The axis of an inferred dimension. None if it is neither a number nor a known symbol."""
        if isinstance(dim, int):
            return Axis(dim)
        if dim in self._made:
            return self._made[dim]
        if dim is None or dim not in self._trials:
            return None
        return Axis(1, batch=True) if dim in self._batches else Axis(self._trials[dim][0], varied=self._trials[dim][1])


def observe(
    view: GraphView, tensors: Iterable[str], needed: Callable[[str], bool], shapes: Sequence[Shapes] = ()
) -> Observation:
    """Determines the shapes of ``tensors``.

    Args:
        view: the graph.
        tensors: names.
        needed: whether a constant's value should be computed by a run.
        shapes: two choices of sizes, by input name and without the batch, for inputs with dynamic sizes besides the
            batch. If empty, plausible sizes are tried.

    Raises:
        ModelError: onnxruntime rejects the nodes involved, or they fail at every size tried.
    """
    wanted = list(dict.fromkeys(tensors))
    error: ModelError | None = None
    choices: list[Sequence[Shapes]] = [shapes] if shapes else [*plausible_shapes(view.scope.model)] or [()]
    for frozen in (False, True):
        for choice in choices:
            observer = _Observer(view, Symbols(list(view.scope.model.graph.input), choice, frozen))
            try:
                return observer.observe(wanted, needed)
            except ModelError as failure:
                error = error or failure
    assert error is not None
    raise error


class _Observer:
    def __init__(self, view: GraphView, symbols: Symbols) -> None:
        self._view, self.symbols = view, symbols
        self._scope = view.scope
        self._shapes: dict[str, SymbolicShape] = {}
        self._types: dict[str, int] = {}
        self._known: dict[str, SymbolicShape] = {}

    def observe(self, wanted: Sequence[str], needed: Callable[[str], bool]) -> Observation:
        self._infer()
        initializers = self._scope.initializers
        values = {
            name
            for name in wanted
            if name not in initializers and (name not in self._types or (name in self._view.producer and needed(name)))
        }
        shapes = {name for name in wanted if name not in self._shapes and name not in values}
        settings = self.symbols.settings
        for _ in range(_ROUNDS):
            if len(shapes) < _MANY:
                break
            # One unknown length makes all later shapes unknown; observe it, and infer the others.
            shapes = self._infer_behind(self._first_of(shapes), shapes, settings)
        constants: dict[str, Array] = {}
        if values or shapes:
            runs = self._run(values, shapes, settings)
            for name in sorted(values):
                found = [run[name] for run in runs]
                self._learn(name, [value.shape for value in found], settings)
                self._types[name] = _type_number(found[0].dtype)
                if name not in self._view.varying and all(
                    np.array_equal(found[0], value, equal_nan=value.dtype.kind == "f") for value in found[1:]
                ):
                    constants[name] = found[0]
            for name in sorted(shapes):
                self._learn(name, [tuple(map(int, run[_SHAPE_OF + name])) for run in runs], settings)
        dtypes = {name: _type_name(number) for name, number in self._types.items() if number}
        return Observation(self._shapes, dtypes, constants, settings, self.symbols.batches)

    def _first_of(self, shapes: set[str]) -> set[str]:
        """Tensors of unknown shape that are computed from tensors of known shape, and that ``shapes`` depend on."""

        def unknown(name: str) -> list[str]:
            node = self._view.node_of(name)
            return [] if node is None else [need for need in names_read(node) if need not in self._shapes]

        reached = [name for name in walk_back(shapes, unknown) if name in self._view.producer]
        return {name for name in reached if name in self._types and not unknown(name)}

    def _infer_behind(self, first: set[str], shapes: set[str], settings: Sequence[Sizes]) -> set[str]:
        """Observes the shapes of ``first`` and infers again. Returns those of ``shapes`` that are still unknown."""
        if first:
            runs = self._run(set(), first, settings)
            for name in sorted(first):
                self._learn(name, [tuple(map(int, run[_SHAPE_OF + name])) for run in runs], settings)
            self._known |= {name: self._shapes[name] for name in first if name in self._shapes}
            self._infer()
        return {name for name in shapes if name not in self._shapes}

    def _learn(self, name: str, lengths: Sequence[tuple[int, ...]], settings: Sequence[Sizes]) -> None:
        shape = _symbolic_shape(lengths, settings)
        self._shapes.pop(name, None)
        if shape is not None:
            self._shapes[name] = shape

    def _infer(self) -> None:
        """Shapes and types that onnx's shape inference derives from the inputs."""
        for name, tensor in self._scope.initializers.items():
            self._shapes[name] = tuple(Axis(int(size)) for size in tensor.dims)
            self._types[name] = tensor.data_type
        skeleton = self._skeleton()
        try:
            graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
        except Exception:  # a run reports the error more clearly
            graph = skeleton.graph
        for value in (*graph.input, *graph.value_info):
            tensor_type = value.type.tensor_type
            if value.name in self._scope.initializers or not value.type.HasField("tensor_type"):
                continue
            if tensor_type.elem_type:
                self._types[value.name] = tensor_type.elem_type
            if tensor_type.HasField("shape"):
                axes = [self.symbols.axis(_dimension(dim)) for dim in tensor_type.shape.dim]
                if all(axis is not None for axis in axes):
                    self._shapes[value.name] = tuple(axis for axis in axes if axis is not None)

    def _skeleton(self) -> onnx.ModelProto:
        """The scope as a model for inference: without large data, with named dynamic axes."""
        model = self._empty()
        initializers = self._scope.initializers
        for value in self._scope.model.graph.input:
            if value.name not in initializers:
                shape = self.symbols.shape(value.name)
                model.graph.input.append(_tensor_info(value.name, value.type.tensor_type.elem_type, shape))
        for name, tensor in initializers.items():
            if _bytes(tensor) <= 1024 and name not in self._scope.defaults:
                model.graph.initializer.append(tensor)
            else:
                model.graph.input.append(_tensor_info(name, tensor.data_type, list(tensor.dims)))
        for node in self._scope.nodes:
            if node.output and all(name in self._known or not name for name in node.output):
                for name in filter(None, node.output):
                    shape = [self.symbols.name(axis) for axis in self._known[name]]
                    model.graph.input.append(_tensor_info(name, self._types[name], shape))
                continue
            value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
            if node.op_type == "Constant" and value is not None and _bytes(value) > 1024:
                model.graph.input.append(_tensor_info(node.output[0], value.data_type, list(value.dims)))
            else:
                model.graph.node.append(node)
        return model

    def _empty(self) -> onnx.ModelProto:
        source = self._scope.model
        model = onnx.ModelProto(ir_version=source.ir_version)
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        model.graph.name = "observed"
        return model

    def _run(self, values: set[str], shapes: set[str], settings: Sequence[Sizes]) -> list[dict[str, Array]]:
        """Runs for values, and for shapes only, at each setting, from random tensors of known shape.

        Random values may be impossible for a tensor between the inputs and ``values`` (a negative length, say). Then
        everything is computed from random inputs.
        """
        try:
            return self._run_from(values, shapes, settings, False)
        except ModelError:
            return self._run_from(values, shapes, settings, True)

    def _run_from(
        self, values: set[str], shapes: set[str], settings: Sequence[Sizes], only_inputs: bool
    ) -> list[dict[str, Array]]:
        fed, nodes, read = self._behind(sorted(values | shapes), only_inputs)
        model = self._empty()
        for name in fed:
            model.graph.input.append(_tensor_info(name, self._types[name], None))
        for name in read:
            tensor = self._scope.initializers[name]
            if tensor.data_type in FLOAT_TYPES and _bytes(tensor) > _LARGE and name in self._large_layers(nodes):
                model.graph.node.extend(_filled(tensor))
            else:
                model.graph.initializer.append(tensor)
        # Only shapes are fetched if they suffice: values would be held in memory until the end.
        for index in nodes:
            node = self._view.nodes[index]
            model.graph.node.append(node)
            for name in shapes.intersection(node.output):
                model.graph.node.append(helper.make_node("Shape", [name], [_SHAPE_OF + name]))
        for name in shapes.intersection(fed):
            model.graph.node.append(helper.make_node("Shape", [name], [_SHAPE_OF + name]))
        fetched = [*sorted(values - set(fed)), *(_SHAPE_OF + name for name in sorted(shapes))]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fetched)
        # Unoptimized: otherwise onnxruntime could fuse away the requested tensors.
        session = open_session(Stored(model), optimized=False, arena=False)
        generator = np.random.default_rng(0)
        runs = []
        for sizes in settings:
            if problem := too_large({name: [axis.at(sizes) for axis in self._shapes[name]] for name in fed}):
                raise ModelError(problem)
            feeds = {name: self._value(name, sizes, generator) for name in fed}
            runs.append({**feeds, **dict(zip(fetched, session.run(feeds, fetched), strict=True))})
        return runs

    def _behind(self, fetched: Sequence[str], only_inputs: bool) -> tuple[list[str], list[int], list[str]]:
        """Tensors to feed, nodes to run, and initializers to read in order to compute ``fetched``."""
        made = producers(self._view.nodes)  # includes the values that a holder passes in
        inputs = {value.name for value in self._scope.model.graph.input}
        asked = set(fetched)

        def is_fed(name: str) -> bool:
            floats = self._types.get(name) in FLOAT_TYPES and not only_inputs
            return name in inputs or (
                floats and name in self._shapes and name in self._view.varying and name not in asked
            )

        def before(name: str) -> Iterable[str]:
            known = name in self._scope.initializers or is_fed(name) or name not in made
            return [] if known else names_read(self._view.nodes[made[name]])

        reached = list(walk_back(fetched, before))
        read = [name for name in reached if name in self._scope.initializers]
        others = [name for name in reached if name not in self._scope.initializers]
        fed = [name for name in others if is_fed(name)]
        for name in fed:
            if name not in self._shapes or name not in self._types:
                raise ModelError(f"input {name!r} has no shape or is not a tensor")
        return fed, sorted({made[name] for name in others if name in made and not is_fed(name)}), read

    def _large_layers(self, nodes: Sequence[int]) -> set[str]:
        """Weights of layers: their values do not affect any shape."""
        layers = ("Conv", "ConvTranspose", "Gemm", "MatMul")
        return {
            name
            for index in nodes
            if self._view.nodes[index].op_type in layers
            for name in self._view.nodes[index].input[1:]
        }

    def _value(self, name: str, sizes: Sizes, generator: np.random.Generator) -> Array:
        shape = [axis.at(sizes) for axis in self._shapes[name]]
        dtype = helper.tensor_dtype_to_np_dtype(self._types[name])
        if self._types[name] in FLOAT_TYPES:
            return generator.standard_normal(shape).astype(dtype)
        return np.zeros(shape, dtype)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _tensor_info(name: str, kind: int, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _bytes(tensor: TensorProto) -> int:
    size = int(np.prod(list(tensor.dims), dtype=np.float64))
    return size * 8


def _filled(tensor: TensorProto) -> list[onnx.NodeProto]:
    """Nodes that produce a tensor of this shape with one small value everywhere."""
    shape = f"{tensor.name}/shape"
    value = helper.make_tensor("", tensor.data_type, [1], [0.01])
    return [
        helper.make_node("Constant", [], [shape], value_ints=list(tensor.dims)),
        helper.make_node("ConstantOfShape", [shape], [tensor.name], value=value),
    ]


def _symbolic_shape(lengths: Sequence[tuple[int, ...]], settings: Sequence[Sizes]) -> SymbolicShape | None:
    """The rule that gives the observed shape at each setting. None if there is none."""
    if len({len(shape) for shape in lengths}) > 1:
        return None
    axes = [_rule(axis, settings) for axis in zip(*lengths, strict=True)]
    return None if any(axis is None for axis in axes) else tuple(axis for axis in axes if axis is not None)


def _rule(lengths: tuple[int, ...], settings: Sequence[Sizes]) -> Axis | None:
    first = lengths[0]
    by_batch = [length for length, sizes in zip(lengths, settings, strict=True) if not sizes.variant]
    batch = len(set(by_batch)) > 1
    factor = first // settings[0].batch if batch else first
    axis = Axis(factor, batch)
    if any(axis.at(sizes) != length for length, sizes in zip(lengths, settings, strict=True) if not sizes.variant):
        return None
    for length, sizes in zip(lengths, settings, strict=True):
        if sizes.variant:
            varied = length // sizes.batch if batch else length
            axis = Axis(factor, batch, varied if varied != factor else None)
            if axis.at(sizes) != length:
                return None
    return axis


def _type_number(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _type_name(number: int) -> str:
    return str(TensorProto.DataType.Name(number)).lower()
