"""Run a model at two batch sizes and note how each tensor's shape depends on the batch.

Shape inference leaves gaps (old exporters, contrib operators); a run has none. An axis whose length is the same at
both batch sizes is static; one that grows in proportion carries the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from stn_infer.errors import ModelError, one_line

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
            and shape in both runs.
    """

    shapes: Mapping[str, Template]
    dtypes: Mapping[str, np.dtype[Any]]
    constants: Mapping[str, Array]


def random_inputs(model: onnx.ModelProto, batch: int, generator: np.random.Generator) -> dict[str, Array]:
    """Normal random numbers for the float inputs of ``model`` (integers: zeros), ``batch`` on axis 0.

    Raises:
        ModelError: an input has a dynamic axis other than the batch, so its size is not known.
    """
    initialised = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in initialised:
            continue
        tensor = value.type.tensor_type
        shape = [batch if i == 0 and not d.dim_value else d.dim_value for i, d in enumerate(tensor.shape.dim)]
        if any(size < 1 for size in shape[1:]):
            raise ModelError(f"input {value.name!r} has a dynamic axis besides the batch; its size is not known")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if np.issubdtype(dtype, np.floating):
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name] = np.zeros(shape, dtype)
    return feeds


def observe(model: onnx.ModelProto, tensors: Iterable[str], constants: Iterable[str]) -> Observation:
    """Run ``model`` in onnxruntime on the CPU at two batch sizes, and note ``tensors``' shapes.

    Args:
        model: a valid model with a dynamic batch.
        tensors: names of the tensors to observe.
        constants: those of them that depend on no input, so that their values are worth keeping.

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
    generator = np.random.default_rng(0)
    runs: list[dict[str, Array]] = []
    try:
        session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for batch in BATCHES:
            feeds = random_inputs(model, batch, generator)
            runs.append({**dict(zip(fetched, session.run(fetched, feeds), strict=True)), **feeds})
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}") from error
    shapes: dict[str, Template] = {
        tensor.name: tuple(Axis(int(size)) for size in tensor.dims) for tensor in model.graph.initializer
    }
    values: dict[str, Array] = {}
    first, second = runs
    for name in (*fetched, *(name for name in first if name not in fetched)):
        template = _template(first[name].shape, second[name].shape)
        if template is not None:
            shapes[name] = template
        if name in keep and np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f"):
            values[name] = first[name]
    return Observation(shapes, {name: value.dtype for name, value in first.items()}, values)


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
