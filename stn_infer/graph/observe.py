"""Run a model at two batch sizes and note how each tensor's shape depends on the batch.

Shape inference leaves gaps (old exporters, contrib operators); a run has none. An axis whose length is the same at
both batch sizes is static; one that grows in proportion carries the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from stn_infer.errors import ModelError, one_line
from stn_infer.graph.sizes import Shapes, plausible_shapes

Array = NDArray[Any]
BATCHES = (2, 3)


@dataclass(frozen=True)
class Axis:
    """An axis' length: ``factor`` alone, or ``factor`` times the batch size."""

    factor: int
    batch: bool = False

    def at(self, batch: int) -> int:
        """The length at a batch size."""
        return self.factor * batch if self.batch else self.factor


Template = tuple[Axis, ...]


@dataclass(frozen=True)
class Observation:
    """What two runs showed of a graph's tensors.

    Attributes:
        shapes: name -> the shape as a function of the batch; tensors whose shape follows no such rule are absent.
        dtypes: name -> numpy's type.
        constants: name -> value, for the tensors that were asked for as possible constants and had the same value
            and shape in all runs.
        open_shapes: name -> the same for tensors of which some axes follow an open size of an input, None there.
    """

    shapes: Mapping[str, Template]
    dtypes: Mapping[str, np.dtype[Any]]
    constants: Mapping[str, Array]
    open_shapes: Mapping[str, tuple[Axis | None, ...]] = field(default_factory=dict)


def random_inputs(
    model: onnx.ModelProto, batch: int, generator: np.random.Generator, shapes: Shapes | None = None
) -> dict[str, Array]:
    """Normal random numbers for the float inputs of ``model`` (integers: zeros), ``batch`` on axis 0.

    Args:
        shapes: of inputs that have open sizes besides the batch.

    Raises:
        ModelError: an input has such a size, and ``shapes`` does not name it.
    """
    initialised = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in initialised:
            continue
        tensor = value.type.tensor_type
        given = (batch, *(shapes or {}).get(value.name, ()))
        sizes = given if len(given) == len(tensor.shape.dim) else (batch, *[0] * len(tensor.shape.dim))
        shape = [d.dim_value or size for d, size in zip(tensor.shape.dim, sizes, strict=False)]
        if any(size < 1 for size in shape[1:]):
            raise ModelError(f"input {value.name!r} has a dynamic axis besides the batch; its size is not known")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if np.issubdtype(dtype, np.floating):
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name] = np.zeros(shape, dtype)
    return feeds


def observe(
    model: onnx.ModelProto, tensors: Iterable[str], constants: Iterable[str], shapes: Sequence[Shapes] = ()
) -> Observation:
    """Run ``model`` in onnxruntime on the CPU at two batch sizes, and note ``tensors``' shapes.

    Args:
        model: a valid model with a dynamic batch.
        tensors: names of the tensors to observe.
        constants: those of them that depend on no input, so that their values are worth keeping.
        shapes: of inputs with open sizes. Where there are several, the model runs with each, and whatever differs
            between them follows the inputs' size. None: at the first plausible ones at which it runs.

    Raises:
        ModelError: onnxruntime refuses the model, or it fails at one of the batch sizes.
    """
    import onnxruntime as ort

    wanted = list(dict.fromkeys(tensors))
    keep = set(constants)
    graph_outputs = {value.name for value in model.graph.output}
    known = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    fetched = [name for name in wanted if name not in known]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fetched if name not in graph_outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Unoptimised: otherwise onnxruntime could fuse away the very tensors that are asked for.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}") from error

    def run_at(shapes: Sequence[Shapes]) -> list[dict[str, Array]]:
        generator = np.random.default_rng(0)
        runs = []
        plan = [(batch, shapes[0] if shapes else None) for batch in BATCHES]
        for batch, sizes in (*plan, *((BATCHES[0], others) for others in shapes[1:])):
            feeds = random_inputs(model, batch, generator, sizes)
            try:
                answers = session.run(fetched, feeds)
            except Exception as error:
                raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}") from error
            runs.append({**dict(zip(fetched, answers, strict=True)), **feeds})
        return runs

    runs = _first_that_runs(run_at, [shapes] if shapes else [*plausible_shapes(model)] or [()])
    found: dict[str, Template] = {
        tensor.name: tuple(Axis(int(size)) for size in tensor.dims) for tensor in model.graph.initializer
    }
    values: dict[str, Array] = {}
    loose: dict[str, tuple[Axis | None, ...]] = {}
    first, second, *others = runs
    for name in (*fetched, *(name for name in first if name not in fetched)):
        template = _template(first[name].shape, second[name].shape)
        if template is not None:
            fixed = _loosened(template, first[name].shape, [run[name].shape for run in others])
            if fixed is None:
                found[name] = template
            else:
                loose[name] = fixed
        if name in keep and all(_equal(first[name], run[name]) for run in runs[1:]):
            values[name] = first[name]
    return Observation(found, {name: value.dtype for name, value in first.items()}, values, loose)


def _first_that_runs(
    run_at: Callable[[Sequence[Shapes]], list[dict[str, Array]]], choices: Sequence[Sequence[Shapes]]
) -> list[dict[str, Array]]:
    for shapes in choices[:-1]:
        try:
            return run_at(shapes)
        except ModelError:
            continue
    return run_at(choices[-1])


def _equal(one: Array, other: Array) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _loosened(
    template: Template, shape: tuple[int, ...], others: Sequence[tuple[int, ...]]
) -> tuple[Axis | None, ...] | None:
    """None where ``shape`` is the same in all runs of one batch size; else the template without what differs."""
    if all(other == shape for other in others):
        return None
    same = [
        all(len(other) == len(shape) and other[axis] == shape[axis] for other in others) for axis in range(len(shape))
    ]
    return tuple(axis if kept else None for axis, kept in zip(template, same, strict=True))


def _template(first: tuple[int, ...], second: tuple[int, ...]) -> Template | None:
    if len(first) != len(second):
        return None
    axes = []
    for one, two in zip(first, second, strict=True):
        if one == two:
            axes.append(Axis(one))
        elif one * BATCHES[1] == two * BATCHES[0] and one % BATCHES[0] == 0:
            axes.append(Axis(one // BATCHES[0], batch=True))
        else:
            return None
    return tuple(axes)
