"""``metadata``: what an ONNX file says about its inputs and classes, and how to store it in any file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.activation import resolve_scores
from stn_infer.errors import UsageError
from stn_infer.files import check_writable, write_atomically
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.hub import is_remote

if TYPE_CHECKING:
    import onnx


def read_metadata(model: str | Path) -> ModelMetadata:
    """What an ONNX file says about its inputs and classes, and what its last operators show of its scores.

    Raises:
        ModelError: it is not an ONNX file, or it is damaged.
        UsageError: its metadata are damaged.
    """
    from stn_infer.api.source import metadata_of, onnx_path
    from stn_infer.proto.activation import with_scores
    from stn_infer.proto.load import read_graph

    graph = read_graph(onnx_path(model))
    return with_scores(graph, metadata_of(graph))


def write_metadata(
    model: str | Path,
    output: str | Path | None = None,
    *,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
) -> ModelMetadata:
    """Store preprocessing, labels and the activation in an ONNX file; everything else in it stays as it is.

    Args:
        model: any ONNX file.
        output: the file to write; None: ``model`` itself, which is replaced at once or not at all.
        preprocess: how images become inputs; as text, changes to what the file says, or to gray or rgb with values
            0..1 by the number of channels.
        labels: the name of each class.
        activation: what turns the scores of the classes into probabilities: ``softmax``, ``sigmoid`` or ``none``. If
            the graph ends in it, this is stored, too.

    Returns:
        What the written file says.

    Raises:
        ModelError: it is not an ONNX file, or it is damaged.
        UsageError: they do not fit the model, or the weights are in other files than ``output`` would find.
        OutputError: the file cannot be written.
    """
    from stn_infer.api.source import onnx_path
    from stn_infer.proto.load import external_tensors, read_graph

    if output is None and is_remote(model):
        raise UsageError(f"{model} is on the Hub; name the file to write with -o")
    source = onnx_path(model)
    path = source if output is None else Path(output)
    check_writable(path)
    proto = read_graph(source)
    if path.parent.resolve() != source.parent.resolve() and (outside := external_tensors(proto, source.parent)):
        raise UsageError(
            f"{source} keeps weights in {outside[0][1].path.name}, which must stay in the same folder; "
            f"write the new file to {source.parent}"
        )
    metadata = changed_metadata(proto, preprocess, labels, activation)
    set_metadata(proto, metadata)
    write_atomically(path, proto.SerializeToString())
    return metadata


def changed_metadata(
    proto: onnx.ModelProto,
    preprocess: Preprocess | str | None,
    labels: Sequence[str] | None,
    activation: str | None = None,
) -> ModelMetadata:
    """What a model says about its inputs and classes, with the given changes; arguments as for :func:`write_metadata`.

    Raises:
        UsageError: they do not fit the model, or its metadata are damaged.
    """
    from stn_infer.api.source import metadata_of
    from stn_infer.data.batches import input_specs, output_specs
    from stn_infer.data.loader import resolve_preprocess
    from stn_infer.pipeline.formats import check_classes
    from stn_infer.proto.activation import final_activation

    metadata = metadata_of(proto)
    if preprocess is not None and metadata.embedded is not None:
        raise UsageError("the file has its preprocessing in its graph, which stays as it is; export it again")
    if preprocess is not None:
        how = resolve_preprocess(input_specs(proto), metadata.preprocess, preprocess)
        metadata = replace(metadata, preprocess=how)
    if labels is not None:
        metadata = replace(metadata, labels=tuple(labels))
    if activation is not None:
        metadata = replace(metadata, scores=resolve_scores(final_activation(proto), activation))
    if labels is not None or activation is not None:
        outputs = output_specs(proto)
        if outputs[0].shape:  # else its classes are known when it runs
            check_classes(outputs, labels, activation)
    return metadata


def set_metadata(proto: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Store ``metadata`` in a model, in place; other entries stay."""
    from onnx.helper import set_model_props

    set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | metadata.to_props())
