"""``--embed-preprocess``: a file that takes pictures as they are, checked against Pillow before it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.deviation import largest_error
from stn_infer.errors import ModelError, UsageError, VerificationError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Embedded

if TYPE_CHECKING:
    import onnx


Size = tuple[int, int]
_TOLERANCE = 1e-5
_SIZES = (64, 96, 224, 32)  # tried for dynamic axes
_SEED = 0


def check_embedding(preprocess: object, embed_preprocess: bool, source_size: Size | None) -> None:
    """Check the options before a long computation.

    Args:
        preprocess: the rule that will be stored, None if there is none.
        embed_preprocess, source_size: the options.

    Raises:
        UsageError: there is no rule, or a size without embedding.
    """
    if source_size is not None and not embed_preprocess:
        raise UsageError("--source-size is the size of all pictures for --embed-preprocess; give both")
    if source_size is not None and not all(type(side) is int and side >= 1 for side in source_size):
        raise UsageError(f"--source-size is HEIGHTxWIDTH, both at least 1, not {source_size}")
    if embed_preprocess and preprocess is None:
        raise UsageError("--embed-preprocess needs --preprocess: nothing says how pictures become inputs")


def embedded(
    model: onnx.ModelProto, metadata: ModelMetadata, source_size: Size | None, folder: Path | None = None
) -> tuple[onnx.ModelProto, ModelMetadata]:
    """A copy of a model that applies its preprocessing itself, and its metadata.

    Its preprocessing is compared with Pillow's, and its outputs with the model's on the same values.

    Args:
        model: any file with one input, images [N, C, H, W].
        metadata: its preprocessing is embedded.
        source_size: (height, width) of all pictures, which the graph resizes; None: the caller resizes them.
        folder: of the model's external data.

    Raises:
        UsageError: the preprocessing does not fit the model.
        VerificationError: the copy computes something else.
    """
    from stn_infer.proto.embed import embed

    assert metadata.preprocess is not None, "checked"
    if metadata.embedded is not None:
        raise UsageError("the file has its preprocessing in its graph already")
    made = embed(model, metadata.preprocess, source_size)
    _verify(model, made, metadata, source_size, folder)
    return made, replace(metadata, embedded=Embedded(source_size))


def _verify(
    model: onnx.ModelProto,
    made: onnx.ModelProto,
    metadata: ModelMetadata,
    source_size: Size | None,
    folder: Path | None,
) -> None:
    from stn_infer.data.images import from_array
    from stn_infer.preprocess.pixels import denormalize, normalize
    from stn_infer.proto.inputs import plan_inputs
    from stn_infer.proto.session import Stored, open_session

    rule = metadata.preprocess
    assert rule is not None
    prelude = _prelude(model, made)
    before, after, first = (open_session(Stored(each, folder)) for each in (model, made, prelude))
    (plan,) = plan_inputs(made)
    inner = plan_inputs(model)[0]
    problem = ""
    for size in _SIZES:
        shape = [dim if isinstance(dim, int) else 2 if axis == 0 else size for axis, dim in enumerate(plan.dims)]
        pixels = np.random.default_rng(_SEED).integers(0, 256, shape, np.uint8)
        values: Array = first.run({plan.name: pixels})[0]
        resized = rule if source_size is not None else rule.unsized()
        wanted = np.stack([from_array(each, resized, (None, None), "a picture") for each in pixels])
        if np.abs(denormalize(values, rule).astype(int) - wanted).max() > 1:
            raise VerificationError("the embedded preprocessing differs from Pillow's by more than one level")
        if source_size is None and largest_error(normalize(wanted, rule), values) > _TOLERANCE:
            raise VerificationError("the embedded preprocessing differs from the rule's")
        try:
            expected = before.run({inner.name: values})
        except ModelError as error:  # a size that the network does not take
            problem = str(error)
            continue
        for output, right, found in zip(model.graph.output, expected, after.run({plan.name: pixels}), strict=True):
            if largest_error(right, found) > _TOLERANCE * max(1e-30, float(np.abs(right).max(initial=0))):
                raise VerificationError(f"output {output.name!r} of the file with its preprocessing differs")
        return
    raise ModelError(f"the file with its preprocessing cannot be verified at any of the sizes {_SIZES}: {problem}")


def _prelude(model: onnx.ModelProto, made: onnx.ModelProto) -> onnx.ModelProto:
    """The preprocessing of ``made`` alone, with its values in float32."""
    from onnx import TensorProto, helper

    from stn_infer.proto.edit import copy_without_initializers
    from stn_infer.proto.embed import LAST_NODE
    from stn_infer.proto.traversal import given_inputs

    (given,) = given_inputs(model.graph)
    count = next(index for index, node in enumerate(made.graph.node) if node.name == LAST_NODE) + 1
    own = {name for node in made.graph.node[:count] for name in node.input}
    alone = copy_without_initializers(made)
    del alone.graph.node[count:]
    del alone.graph.output[:], alone.graph.value_info[:], alone.functions[:]
    alone.graph.node.append(helper.make_node("Cast", [given.name], ["stn_values"], to=TensorProto.FLOAT))
    alone.graph.output.append(helper.make_tensor_value_info("stn_values", TensorProto.FLOAT, None))
    alone.graph.initializer.extend(tensor for tensor in made.graph.initializer if tensor.name in own)
    return alone
