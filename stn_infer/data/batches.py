"""The user's images as model inputs, for INT8 calibration and for measuring the error of reduced precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.errors import InputError, ModelError, UsageError

if TYPE_CHECKING:
    import onnx

    from stn_infer.backends.base import TensorSpec
    from stn_infer.preprocess.rule import Preprocess

MOST_SAMPLES = 1024
_BATCH = 32


@dataclass(frozen=True)
class Calibration:
    """Samples that represent the inputs of the deployed model.

    Attributes:
        batches: inputs by name, [N, ...]; ``samples`` in total.
        samples: the number of samples that were read.
        notes: messages for the user, such as files that could not be read.
        shared: the inputs whose arrays belong to all samples of a batch.
    """

    batches: tuple[dict[str, NDArray[Any]], ...]
    samples: int
    notes: tuple[str, ...]
    shared: frozenset[str] = frozenset()


def check_sources(sources: Sequence[str | Path]) -> None:
    """Check that ``sources`` exist before a long computation.

    File contents and stdin are checked by :func:`load_calibration`.

    Raises:
        InputError: a source is missing, or contains no inputs.
    """
    from stn_infer.data.inputs import Inputs

    named = [source for source in sources if str(source) != "-"]
    if named:
        with Inputs(named, lambda path: None) as inputs:
            inputs.survey()


def load_calibration(
    sources: Sequence[str | Path],
    specs: Sequence[TensorSpec],
    preprocess: Preprocess | None,
    *,
    outputs: Sequence[TensorSpec] = (),
    most: int | None = None,
    what: str = "calibration",
) -> Calibration:
    """Read and pre-process ``sources`` in the same way as ``run``.

    If there are more than ``most`` samples, evenly spaced ones are used, because folders are often sorted by class.

    Args:
        sources: files, folders, patterns, array files, ``@list.txt``.
        specs: the model's inputs.
        preprocess: how pixels become inputs; None if the model takes no images.
        outputs: the model's outputs, whose rows are the samples where inputs have batch axes of their own.
        most: the largest number of samples; None: 1,024.
        what: the name of the samples in messages.

    Raises:
        InputError: there are no samples, or none can be read.
        UsageError: the outputs have rows of different kinds.
    """
    from stn_infer.backends.batching import row_axis
    from stn_infer.data.inputs import Inputs
    from stn_infer.data.loader import Loader

    loader = Loader(specs, preprocess, row_axis(specs, outputs))
    with Inputs(sources, loader.arrays.count_rows) as inputs:
        total = inputs.survey().samples
        count = min(total, most or MOST_SAMPLES)
        wanted = set((np.arange(count) * total // count).tolist())
        chosen = [sample for index, sample in enumerate(inputs) if index in wanted]
    batches: list[dict[str, NDArray[Any]]] = []
    errors: list[str] = []
    for start in range(0, len(chosen), _BATCH):
        loaded = loader.load(chosen[start : start + _BATCH])
        batches += [group.inputs for group in loaded.groups]
        errors += loaded.errors.values()
    samples = count - len(errors)
    if not samples:
        raise InputError(f"no {what} sample can be read: {errors[0]}")
    notes = [f"{len(errors)} of {count} {what} samples were skipped; the first: {errors[0]}"] if errors else []
    if total > count:
        notes.append(f"{count} of {total} {what} samples were used, evenly spaced")
    shared = frozenset(spec.name for spec in specs if loader.arrays.is_shared(spec))
    return Calibration(tuple(batches), samples, tuple(notes), shared)


def load_for_file(
    sources: Sequence[str | Path], model: onnx.ModelProto, preprocess: Preprocess | None, *, most: int
) -> Calibration:
    """:func:`load_calibration` for an ONNX model, without opening it in a runtime.

    Raises:
        InputError: there are no samples, or none can be read.
        UsageError: ``preprocess`` does not match the model.
    """
    from stn_infer.backends.embedded import as_images, interleaved
    from stn_infer.data.loader import resolve_preprocess
    from stn_infer.metadata import ModelMetadata

    specs = input_specs(model)
    embedded = ModelMetadata.from_props({entry.key: entry.value for entry in model.metadata_props}).embedded
    if embedded is None or preprocess is None:
        how, outputs = resolve_preprocess(specs, preprocess, None), output_specs(model)
        return load_calibration(sources, specs, how, outputs=outputs, most=most, what="given")
    specs = [as_images(specs[0])]
    how = resolve_preprocess(specs, preprocess.outside(embedded), None)
    found = load_calibration(sources, specs, how, most=most, what="given")
    batches = tuple({name: interleaved(values) for name, values in batch.items()} for batch in found.batches)
    return replace(found, batches=batches)


def input_specs(model: onnx.ModelProto) -> list[TensorSpec]:
    """The inputs of an ONNX model, without opening it in a runtime; bfloat16 as its bits.

    An axis 0 that is fixed to the same length in all of them is dynamic, as a backend makes it.
    """
    from stn_infer.backends.batching import fixed_batch, free_batch, with_batch_axes
    from stn_infer.proto.traversal import given_inputs

    values = given_inputs(model.graph)
    shapes = [[dim.dim_param or dim.dim_value or None for dim in value.type.tensor_type.shape.dim] for value in values]
    specs = with_batch_axes(_specs(values), shapes)
    try:
        return list(free_batch(specs, fixed_batch(specs, "the file")))
    except ModelError:  # different fixed lengths: nothing says which of them are samples
        return specs


def output_specs(model: onnx.ModelProto) -> list[TensorSpec]:
    """The outputs of an ONNX model as it declares them; an output without a declared shape has ()."""
    return [replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec for spec in _specs(model.graph.output)]


def sample_axes(model: onnx.ModelProto) -> tuple[int | None, ...]:
    """The axis of each input of an ONNX model that has one entry per sample; None: it belongs to all samples.

    Samples are the rows of the outputs, see :func:`~stn_infer.backends.batching.row_axis`.
    """
    from stn_infer.backends.batching import is_shared, row_axis

    specs, outputs = input_specs(model), output_specs(model)
    try:
        rows = row_axis([replace(spec, batch_axis=0) for spec in specs], outputs)
    except UsageError:  # rows of several kinds: those of the first output
        rows = outputs[0].batch
    return tuple(spec.batch_axis or (None if is_shared(spec, rows) else 0) for spec in specs)


def _specs(values: Iterable[onnx.ValueInfoProto]) -> list[TensorSpec]:
    from onnx import TensorProto, helper

    from stn_infer.backends.base import TensorSpec

    specs = []
    for value in values:
        kind = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        bits = kind.elem_type == TensorProto.BFLOAT16
        dtype = np.dtype(np.uint16) if bits else np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        batch = (kind.shape.dim[0].dim_param if sizes else "") or "batch"
        specs.append(TensorSpec(value.name, tuple(sizes), dtype, batch))
    return specs
