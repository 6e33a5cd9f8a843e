"""Resolve a SOURCE as given by a user to an ONNX file, an engine or a loaded PyTorch model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from stn_infer.api.trusted import try_once
from stn_infer.budget import Budget
from stn_infer.errors import ModelError, SourceError, UsageError, batch_advice
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.hub import local
from stn_infer.sources.identify import PYTORCH_KINDS, identify, registered_names
from stn_infer.sources.load import ENGINE_PROBLEM, LoadedModel, load_source, refused_code
from stn_infer.sources.objects import is_module
from stn_infer.sources.reference import WeightsLike

if TYPE_CHECKING:
    import onnx
    from torch import nn

#: Sizes of each input without the batch; None where a size is dynamic.
Sizes = tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file, or the bytes of one, which are not read yet.

    Attributes:
        content: the file, or the bytes.
        batch_dependent: the outputs of a sample that depend on the other samples of its batch, as far as the file was
            tried (:mod:`~stn_infer.api.trusted`).
    """

    content: Path | bytes
    batch_dependent: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return str(self.content) if isinstance(self.content, Path) else "the model"

    def load(self) -> onnx.ModelProto:
        """Load the whole model into memory, external data included.

        Raises:
            ModelError: it is damaged, or not an ONNX model.
        """
        from stn_infer.proto.load import load_model, parse_model

        return load_model(self.content) if isinstance(self.content, Path) else parse_model(self.content)

    def read(self) -> onnx.ModelProto:
        """Load the model without its external data; raises as :meth:`load`."""
        from stn_infer.proto.load import parse_model, read_graph

        return read_graph(self.content) if isinstance(self.content, Path) else parse_model(self.content)


P = ParamSpec("P")
R = TypeVar("R")


def names_the_file(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: errors about an ONNX file, the function's first argument, begin with its path where they lack it.

    The errors of shared steps, such as opening a session, do not know whether there is a path.
    """

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return function(*arguments, **named)
        except (ModelError, UsageError) as error:
            given = arguments[0] if arguments else named.get("model")
            given = getattr(given, "model", given)  # of a benchmark's case
            text = str(error)
            about = isinstance(error, ModelError) or text.startswith("the file's ")
            if not about or not isinstance(given, (str, Path)) or not _is_file(given):
                raise
            others = (*arguments[1:], *named.values())  # another file may be at fault
            if Path(given).name in text or _is_file(text.partition(": ")[0]) or any(_named(text, it) for it in others):
                raise
            raise type(error)(f"{given}: {text}") from error

    return wrapped


def undisturbed_by_objects(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: PyTorch's settings and the random states stay, where the first argument is a module."""

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> R:
        if isinstance(arguments[0] if arguments else named.get("model"), (str, Path)):
            return function(*arguments, **named)
        from stn_infer.sources.objects import undisturbed

        with undisturbed():
            return function(*arguments, **named)

    return wrapped


def _named(text: str, given: object) -> bool:
    """Whether a message names a file that was given."""
    return isinstance(given, (str, Path)) and bool(Path(given).suffix) and Path(given).name in text


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class EngineFile:
    """A TensorRT or TensorRT-RTX engine."""

    path: Path


def resolve(
    source: str | Path | bytes | LoadedModel | nn.Module,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    of_original: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> OnnxModel | EngineFile | LoadedModel:
    """Resolve SOURCE, identified by its content; a PyTorch source is loaded, an ONNX file is tried in another process.

    Args:
        source: an ONNX file or its bytes, an engine, a loaded model, a module, or a source of
            :func:`~stn_infer.sources.load.load_source`: a shipped model's name, a network, a recipe, a program saved by
            torch.export.save, or ``package.module:factory``.
        weights: a checkpoint for a PyTorch source.
        input_shapes: shapes without batch, for a PyTorch source; for a file, they must equal its own.
        of_original: whether ``weights`` and ``input_shapes`` describe the source that an ONNX file was exported from;
            see :func:`load_original`.
        allow_code: whether a file, such as a recipe, may name Python code to run.
        budget: limits for the analysis of an ONNX file that was not seen before; None: the environment's
            (:class:`~stn_infer.budget.Budget`).

    Raises:
        SourceError: it cannot be run; the message says what it is and what to do.
        ModelError: a file with the suffix of an ONNX file or an engine does not exist; or an ONNX file is damaged, or
            native libraries fail on it (:mod:`~stn_infer.api.trusted`).
        WeightsError, UsageError: as :func:`~stn_infer.sources.load.load_source`; or ``weights`` or ``input_shapes`` are
            given for a model that contains its own.
    """
    if isinstance(source, LoadedModel):
        if weights is not None or input_shapes is not None:
            raise UsageError(f"{source.name} is already loaded; pass weights and input shapes to load_source")
        return source
    if is_module(source):
        return load_source(source, weights=weights, input_shapes=input_shapes)
    if not isinstance(source, (str, Path, bytes)):
        raise UsageError(f"expected a model's file or source, or a module, got {type(source).__name__}")
    if isinstance(source, bytes):
        found: OnnxModel | EngineFile = OnnxModel(source)
    else:
        source = local(source)
        kind = identify(source).kind
        if kind == "engine":
            found = EngineFile(Path(source))
        elif kind == "onnx":
            found = OnnxModel(Path(source))
        else:
            return load_source(source, weights=weights, input_shapes=input_shapes, allow_code=allow_code)
    if isinstance(found, EngineFile) and not found.path.exists():
        raise ModelError(f"{found.path} does not exist; expected a TensorRT engine")
    if isinstance(found, OnnxModel) and isinstance(found.content, Path) and not found.content.exists():
        raise ModelError(f"{found.name} does not exist; expected an ONNX file")
    if not of_original:
        name = str(found.path) if isinstance(found, EngineFile) else found.name
        if weights is not None:
            raise UsageError(f"{name} contains its weights; omit --weights")
        if input_shapes is not None and isinstance(found, EngineFile):
            raise UsageError(f"{name} contains its shapes; omit --input-shape")
        if input_shapes is not None and isinstance(found, OnnxModel):
            check_shapes(input_sizes(found.read()), input_shapes)
    if isinstance(found, OnnxModel):
        verdict = try_once(found.content, budget=budget)
        found = replace(found, batch_dependent=verdict.batch_dependent if verdict else ())
    return found


def resolve_model(
    model: str | Path | nn.Module | LoadedModel,
    *,
    source: str | None = None,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    of_original: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> OnnxModel | LoadedModel:
    """Resolve as :func:`resolve`, for commands that do not take engines.

    Args:
        model: as ``source`` of :func:`resolve`.
        source: the source that an ONNX file was exported from.
        weights: as for :func:`resolve`.
        input_shapes: as for :func:`resolve`.
        of_original: as for :func:`resolve`.
        allow_code: as for :func:`resolve`.
        budget: as for :func:`resolve`.

    Raises:
        SourceError: as :func:`resolve`, and for an engine.
        UsageError: as :func:`resolve`, and if ``source`` is given for a model that is not an ONNX file.
    """
    if isinstance(model, (str, Path)):
        model = local(model)
    held = is_module(model) or isinstance(model, LoadedModel)
    if source is not None and (held or identify(str(model)).kind in PYTORCH_KINDS):
        raise UsageError(f"--source is for ONNX files; {model} is itself a source")
    found = resolve(
        model,
        weights=weights,
        input_shapes=input_shapes,
        of_original=of_original,
        allow_code=allow_code,
        budget=budget,
    )
    if isinstance(found, EngineFile):
        raise SourceError(f"{found.path} {ENGINE_PROBLEM}")
    return found


def onnx_path(source: str | Path) -> Path:
    """The path of an ONNX file, for commands that only take ONNX files; the file is not loaded.

    Raises:
        ModelError: it is not an ONNX file; the message says what to do.
    """
    source = local(source)
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
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
) -> LoadedModel | None:
    """Load the PyTorch model that an ONNX file was exported from, at the file's own shapes; None if it is not known.

    Args:
        file: the file's model, with or without external data.
        source: the source that it was exported from; None: the one that its metadata names, which must be a registered
            name.
        weights: a checkpoint for the source.
        input_shapes: shapes without batch, for a file with dynamic sizes; otherwise they must equal its own.
        allow_code: whether a file may name Python code to run; its metadata may then name any source.

    Raises:
        SourceError, WeightsError: the source cannot be loaded, or the file may not name it.
        UsageError: the shapes differ from the file's, or ``weights`` are given without a source.
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
    loaded = load_source(
        source,
        weights=weights,
        input_shapes=input_shapes or fixed_shapes(file),
        allow_code=allow_code,
    )
    return replace(loaded, dtypes=_dtypes(file), fixed_batch=loaded.fixed_batch or declared_batch(file))


def _dtypes(file: onnx.ModelProto) -> tuple[str, ...]:
    """The type of each of an ONNX file's inputs, half precision as float32."""
    from onnx.helper import tensor_dtype_to_np_dtype

    from stn_infer.proto.traversal import given_inputs

    types = [tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in given_inputs(file.graph)]
    return tuple("float32" if kind.kind in "fV" else str(kind) for kind in types)


def declared_batch(file: onnx.ModelProto) -> int | None:
    """The batch size that an ONNX file is fixed to; None if its batch is dynamic."""
    from stn_infer.proto.traversal import given_inputs

    dims = [value.type.tensor_type.shape.dim for value in given_inputs(file.graph)]
    return next((shape[0].dim_value for shape in dims if shape and shape[0].dim_value), None)


def metadata_of(file: onnx.ModelProto) -> ModelMetadata:
    """The metadata in an ONNX file."""
    return ModelMetadata.from_props({entry.key: entry.value for entry in file.metadata_props})


def input_sizes(file: onnx.ModelProto) -> Sizes:
    """Sizes of an ONNX file's inputs, without those that have initializers."""
    from stn_infer.proto.traversal import given_inputs

    return tuple(
        tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim[1:])
        for value in given_inputs(file.graph)
    )


def fixed_shapes(file: onnx.ModelProto) -> tuple[tuple[int, ...], ...] | None:
    """Shapes of an ONNX file's inputs without batch; None if one is dynamic."""
    shapes = tuple(tuple(size for size in sizes if size) for sizes in input_sizes(file))
    return shapes if shapes == input_sizes(file) else None


def check_shapes(own: Sizes, given: Sequence[tuple[int, ...]], *, open_sizes: bool = False) -> None:
    """Check that the given shapes equal a file's own.

    Args:
        own: the file's sizes.
        given: the user's shapes.
        open_sizes: whether ``given`` may set the file's dynamic sizes.

    Raises:
        UsageError: they differ.
    """
    wanted = [tuple(shape) for shape in given]
    pairs = zip(own, wanted, strict=False)
    fit = len(own) == len(wanted) and all(
        len(sizes) == len(shape) and all(a in (None, b) for a, b in zip(sizes, shape, strict=True))
        for sizes, shape in pairs
    )
    is_open = any(size is None for sizes in own for size in sizes)
    if fit and (open_sizes or not is_open):
        return
    expected, got = (
        ", ".join("x".join(str(size or "?") for size in sizes) for sizes in each) for each in (own, wanted)
    )
    if fit:
        raise UsageError(
            f"the file has dynamic sizes ({expected}), which the inputs determine here; omit --input-shape "
            "(--preprocess size=HxW resizes images, build --profile takes whole shapes)"
        )
    advice = batch_advice(wanted) or "; omit --input-shape"
    raise UsageError(f"the file's inputs are {expected}, not {got}{advice}")
