"""What a user gives as SOURCE, made into what the commands work on: the one place that decides what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.api.trusted import try_once
from stn_infer.errors import ModelError, SourceError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.identify import PYTORCH_KINDS, identify, registered_names
from stn_infer.sources.load import ENGINE_PROBLEM, LoadedModel, load_source, refused_code

if TYPE_CHECKING:
    import onnx

#: Sizes of each input without the batch; None where the file leaves one open.
Sizes = tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file, or the bytes of one; not read yet."""

    content: Path | bytes

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return str(self.content) if isinstance(self.content, Path) else "the model"

    def load(self) -> onnx.ModelProto:
        """The whole model in memory, external data included.

        Raises:
            ModelError: it is damaged, or not an ONNX model.
        """
        from stn_infer.proto.load import load_model, parse_model

        return load_model(self.content) if isinstance(self.content, Path) else parse_model(self.content)

    def read(self) -> onnx.ModelProto:
        """The model with its external data left where they are; raises as :meth:`load`."""
        from stn_infer.proto.load import parse_model, read_graph

        return read_graph(self.content) if isinstance(self.content, Path) else parse_model(self.content)


@dataclass(frozen=True)
class EngineFile:
    """A TensorRT or TensorRT-RTX engine."""

    path: Path


def resolve(
    source: str | Path | bytes | LoadedModel,
    *,
    weights: str | Path | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    of_original: bool = False,
    allow_code: bool = False,
) -> OnnxModel | EngineFile | LoadedModel:
    """What SOURCE is, told by its content; a PyTorch source is loaded, an ONNX file tried in a separate process.

    Args:
        source: an ONNX file or its bytes, an engine, a model that is loaded already, or what
            :func:`~stn_infer.sources.load.load_source` takes: a shipped model's name, a network, a recipe, a program of
            torch.export.save, or ``package.module:factory``.
        weights: a checkpoint for a PyTorch source.
        input_shapes: shapes without batch, of a PyTorch source; of a file, no others than its own.
        of_original: whether ``weights`` and ``input_shapes`` are, beside an ONNX file, those of what it was exported
            from; see :func:`load_original`.
        allow_code: whether a file may name Python code to run, as a recipe can.

    Raises:
        SourceError: it is nothing that can be run; says what it is and what to do.
        ModelError: a file that is called like an ONNX file or an engine does not exist; or an ONNX file is damaged, or
            native libraries fail on it (:mod:`~stn_infer.api.trusted`).
        WeightsError, UsageError: as :func:`~stn_infer.sources.load.load_source`; ``weights`` or ``input_shapes`` of a
            model that has its own.
    """
    if isinstance(source, LoadedModel):
        if weights is not None or input_shapes is not None:
            raise UsageError(f"{source.name} is loaded already; weights and input shapes are given to load_source")
        return source
    if isinstance(source, bytes):
        found: OnnxModel | EngineFile = OnnxModel(source)
    else:
        kind = identify(source).kind
        if kind == "engine":
            found = EngineFile(Path(source))
        elif kind == "onnx":
            found = OnnxModel(Path(source))
        else:
            checkpoint = None if weights is None else Path(weights)
            return load_source(source, weights=checkpoint, input_shapes=input_shapes, allow_code=allow_code)
    if isinstance(found, EngineFile) and not found.path.exists():
        raise ModelError(f"{found.path} does not exist; expected a TensorRT engine")
    if isinstance(found, OnnxModel) and isinstance(found.content, Path) and not found.content.exists():
        raise ModelError(f"{found.name} does not exist; expected an ONNX file")
    if not of_original:
        name = str(found.path) if isinstance(found, EngineFile) else found.name
        if weights is not None:
            raise UsageError(f"{name} has its weights in it; leave out --weights")
        if input_shapes is not None and isinstance(found, EngineFile):
            raise UsageError(f"{name} has its shapes in it; leave out --input-shape")
        if input_shapes is not None and isinstance(found, OnnxModel):
            check_shapes(input_sizes(found.read()), input_shapes)
    if isinstance(found, OnnxModel):
        try_once(found.content)
    return found


def resolve_model(
    model: str | Path,
    *,
    source: str | None = None,
    weights: str | Path | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    of_original: bool = False,
    allow_code: bool = False,
) -> OnnxModel | LoadedModel:
    """As :func:`resolve`, for commands that take no engine; ``source`` is what an ONNX file was exported from.

    Raises:
        SourceError: also where it is an engine.
        UsageError: also where ``source`` is given beside what is a source itself.
    """
    if source is not None and identify(model).kind in PYTORCH_KINDS:
        raise UsageError(f"--source is for ONNX files; {model} is a source itself")
    found = resolve(model, weights=weights, input_shapes=input_shapes, of_original=of_original, allow_code=allow_code)
    if isinstance(found, EngineFile):
        raise SourceError(f"{found.path} {ENGINE_PROBLEM}")
    return found


def onnx_path(source: str | Path) -> Path:
    """The path of an ONNX file, for commands that rewrite or examine such a one; nothing is loaded.

    Raises:
        ModelError: it is something else; says what to do.
    """
    found = identify(source)
    if found.kind == "onnx":
        return Path(source)
    if found.kind == "engine":
        raise ModelError(f"{source} {ENGINE_PROBLEM}")
    if found.problem:
        raise ModelError(f"{source} {found.problem}")
    raise ModelError(f"{source} is not an ONNX file; export it first: stn-infer export {source} -o FILE.onnx")


def load_original(
    file: onnx.ModelProto,
    *,
    source: str | None = None,
    weights: str | Path | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
) -> LoadedModel | None:
    """The PyTorch model that an ONNX file was exported from, at the file's own shapes; None where that is not known.

    Args:
        file: external data may be left out.
        source: what it was exported from; None: what its metadata names, which is a registered name.
        weights: a checkpoint for that.
        input_shapes: shapes without batch where the file leaves sizes open, else its own.
        allow_code: whether a file may name Python code to run; its metadata may then name any source.

    Raises:
        SourceError, WeightsError: the source cannot be loaded, or the file may not name it.
        UsageError: the shapes are not the file's, or there are weights and no source.
    """
    named = metadata_of(file).source
    if not source and named and not allow_code and named not in registered_names():
        if ":" in named:
            raise refused_code("the file's metadata", named)
        raise SourceError(
            f"the file's metadata names the source {named}, but a file names registered models only; "
            "give --source, or --allow-code to load what it names"
        )
    source = source or named
    if not source:
        if weights is not None:
            raise UsageError("--weights belong to a source; name it with --source SOURCE")
        return None
    if input_shapes is not None:
        check_shapes(input_sizes(file), input_shapes, open_sizes=True)
    return load_source(
        source,
        weights=None if weights is None else Path(weights),
        input_shapes=input_shapes or fixed_shapes(file),
        allow_code=allow_code,
    )


def metadata_of(file: onnx.ModelProto) -> ModelMetadata:
    """What an ONNX file says of itself."""
    return ModelMetadata.from_props({entry.key: entry.value for entry in file.metadata_props})


def input_sizes(file: onnx.ModelProto) -> Sizes:
    """Sizes of an ONNX file's inputs; those that initializers stand for are left out."""
    from stn_infer.proto.traversal import given_inputs

    return tuple(
        tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim[1:])
        for value in given_inputs(file.graph)
    )


def fixed_shapes(file: onnx.ModelProto) -> tuple[tuple[int, ...], ...] | None:
    """Shapes of an ONNX file's inputs without batch; None where one is open."""
    shapes = tuple(tuple(size for size in sizes if size) for sizes in input_sizes(file))
    return shapes if shapes == input_sizes(file) else None


def check_shapes(own: Sizes, given: Sequence[tuple[int, ...]], *, open_sizes: bool = False) -> None:
    """Refuse shapes that are not a file's own.

    Args:
        own: the file's.
        given: the user's.
        open_sizes: whether ``given`` may fill in what the file leaves open.

    Raises:
        UsageError: they differ.
    """
    wanted = [tuple(shape) for shape in given]
    pairs = zip(own, wanted, strict=False)
    fit = len(own) == len(wanted) and all(
        len(mine) == len(theirs) and all(a in (None, b) for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in pairs
    )
    is_open = any(size is None for sizes in own for size in sizes)
    if fit and (open_sizes or not is_open):
        return
    ours, theirs = (", ".join("x".join(str(size or "?") for size in sizes) for sizes in each) for each in (own, wanted))
    if fit:
        raise UsageError(
            f"the file leaves sizes open ({ours}), which inputs fill in here; leave out --input-shape "
            "(--preprocess size=HxW resizes images, build --profile names whole shapes)"
        )
    raise UsageError(f"the file's inputs are {ours}, not {theirs}; leave out --input-shape")
