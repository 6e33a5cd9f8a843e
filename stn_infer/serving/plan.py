"""Fits a service to its model: batches, classes, the engine's profile, and the plugin library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer import plugin
from stn_infer.backends.base import Backend
from stn_infer.backends.batching import is_batched, own_axes
from stn_infer.backends.tensorrt.compatibility import library_of
from stn_infer.backends.tensorrt.engine_cache import InputProfile, Sidecar, load_engine
from stn_infer.backends.tensorrt.identity import hashes
from stn_infer.backends.tensorrt.options import VERSION_COMPATIBLE
from stn_infer.backends.tensorrt.plan import runtime_of
from stn_infer.backends.tensorrt.runtime import Gpu
from stn_infer.errors import InputError, MissingDependencyError, ModelError, UsageError
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.formats import check_labels, has_classes
from stn_infer.pipeline.plan import classifier_of
from stn_infer.proto.own_ops import DOMAIN
from stn_infer.proto.traversal import every_node
from stn_infer.serving.service import ALL_CLASSES, REGISTER_FILE, Classes, Service

if TYPE_CHECKING:
    import onnx

MAX_BATCH = 64

Range = tuple[int, int]


def check_batch(service: Service, declared: int | None) -> None:
    """Check that Triton can join samples to batches of the model: all inputs and outputs have one dynamic batch axis.

    Args:
        service: the model.
        declared: the batch size that is fixed in the file; None: none is.

    Raises:
        UsageError: it has not.
    """
    if declared is not None:
        raise UsageError(
            f"the file's batch is fixed to {declared}; Triton joins requests to batches of any size, so export the "
            "model with a dynamic batch"
        )
    tensors = (*service.inputs, *service.outputs)
    other = next((spec for spec in tensors if not is_batched(spec)), None)
    if other is not None:
        raise UsageError(f"the file's {other.name!r} has no batch axis, by which Triton joins requests")
    if not service.inputs or own_axes((spec.name, spec.batch) for spec in tensors):
        axes = ", ".join(f"{spec.name} ({spec.batch})" for spec in tensors)
        raise UsageError(f"the file's inputs and outputs have rows of different kinds, which Triton does not: {axes}")


def tried(service: Service, backend: Backend, notes: list[str]) -> Service:
    """The service with warm-up batches of zeros, where the model runs on them.

    Raises:
        UsageError: the model does not return a row per sample.
    """
    if any(None in spec.shape[1:] for spec in service.inputs):
        notes.append("the server does not warm up: an input has dynamic sizes")
        return replace(service, warms=False)
    for count in (1, 2):
        shapes = {spec.name: (count, *(length or 0 for length in spec.shape[1:])) for spec in service.inputs}
        zeros = {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in service.inputs}
        try:
            found = backend.run(zeros)
        except (InputError, ModelError):
            found = {}
        if not found or any(values.dtype.kind == "f" and np.isnan(values).any() for values in found.values()):
            notes.append("the server does not warm up: the model fails or returns NaN for zeros")
            return replace(service, warms=False)
        other = next((name for name, values in found.items() if values.shape[:1] != (count,)), None)
        if other is not None:
            raise UsageError(f"the file's output {other!r} has shape {list(found[other].shape)} for a batch of {count}")
    return service


def classified(
    service: Service, backend: Backend, top_k: int | None, labels: Sequence[str] | None, activation: str | None
) -> Service:
    """The service with its labels and, on the Python platform, with predictions.

    Raises:
        UsageError: labels, activation or ``top_k`` are given for a model without classes, or do not fit it.
    """
    decoder = Decoder(backend.metadata.decodings, backend.inputs, backend.outputs)
    if not has_classes(backend.outputs, decoder):
        given = {"labels": labels, "activation": activation, "top_k": top_k}
        wrong = next((what for what, value in given.items() if value is not None), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is given, but the model's first output is not a vector of class scores")
        return service
    classifier = classifier_of(backend.metadata, activation, labels)
    names = classifier.labels or ()
    if names:
        check_labels(names, backend.outputs[0])
    if service.platform != "python":
        if top_k is not None or activation is not None:
            raise UsageError("only the platform python adds predictions; omit top_k and activation")
        return replace(service, labels=names)
    default = service.outputs[0].shape[1] or ALL_CLASSES if classifier.many else 1
    classes = Classes.of(service.outputs, classifier.scores, top_k or default, names)
    return replace(service, labels=names, classes=classes)


def load_engine_of(path: Path, model: onnx.ModelProto) -> tuple[bytes, Sidecar | None]:
    """An engine, which belongs to a model; without a sidecar, as trtexec writes it, this is not known.

    Args:
        path: the engine.
        model: the whole model.

    Raises:
        ModelError: it is damaged, of another model or version of it, of TensorRT-RTX, or built with another plugin
            library.
    """
    engine, sidecar = load_engine(path)
    runtime = runtime_of(engine) if sidecar is None else sidecar.key.runtime
    if runtime not in (None, "tensorrt"):
        raise ModelError(f"{path} is a {runtime} engine, which Triton does not run; build it for tensorrt")
    if sidecar is None:
        return engine, None
    key = sidecar.key
    if (key.graph_sha256, key.weights_sha256) != hashes(model):
        raise ModelError(f"{path} was built from another version of the model ({sidecar.source}); build it again")
    if key.plugin_sha256:
        library_of(str(path), key)
    return engine, sidecar


def describe(sidecar: Sidecar) -> str:
    """What an engine needs, as the end of a sentence about it."""
    key = sidecar.key
    version = f"TensorRT {key.runtime_version}{' or newer' if VERSION_COMPATIBLE in key.flags else ''}"
    return f"needs {version} on the server, and was built for {Gpu(key.gpu, key.sm)}"


def profiled(service: Service, sidecar: Sidecar | None, max_batch: int | None) -> Service:
    """The service with the profiles and batch sizes of its engine.

    Raises:
        UsageError: the engine does not take single samples, or not all batches up to ``max_batch`` or, without it, up
            to its largest one.
    """
    profiles = () if sidecar is None else sidecar.key.profiles
    if not profiles:
        return service
    found = [_ranges(profile) for profile in profiles]
    # of the batch, by the ranges of all other axes; a profile with wider ones takes these, too
    ranges = {axes: [batch for wider, batch in found if _is_within(axes, wider)] for axes, _ in found}
    most = min(max(high for _, high in taken) for taken in ranges.values())
    missing = min(_first_missing(taken) for taken in ranges.values())
    if missing <= (max_batch or most):
        wanted = "a single sample" if missing == 1 else f"a batch of {missing if max_batch is None else max_batch}"
        raise UsageError(
            f"the engine takes batches of {_listed(ranges)}, not {wanted}; build it with another --profile"
        )
    best = max(min(each.opt[0] for each in profile) for profile in profiles)
    return replace(
        service,
        max_batch=max_batch or most,
        preferred=min(best, max_batch or most),
        profiles=len(profiles),
    )


def _ranges(profile: Iterable[InputProfile]) -> tuple[tuple[Range, ...], Range]:
    """The ranges of all axes but the batch, and that of the batch."""
    others = [pair for each in profile for pair in zip(each.min[1:], each.max[1:], strict=True)]
    return tuple(others), (max(each.min[0] for each in profile), min(each.max[0] for each in profile))


def _is_within(axes: Iterable[Range], wider: Iterable[Range]) -> bool:
    return all(least <= low and high <= most for (low, high), (least, most) in zip(axes, wider, strict=True))


def _first_missing(ranges: Iterable[tuple[int, int]]) -> int:
    """The smallest batch that is in no range."""
    found = 1
    for low, high in sorted(ranges):
        if low <= found:
            found = max(found, high + 1)
    return found


def _listed(ranges: Mapping[Any, Iterable[tuple[int, int]]]) -> str:
    """The ranges, in words."""
    every = sorted({each for taken in ranges.values() for each in taken})
    return " or ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in every)


def with_library(
    service: Service, model: onnx.ModelProto, sidecar: Sidecar | None, has_engine: bool, notes: list[str]
) -> tuple[Service, tuple[Path, ...]]:
    """The service with the plugin library, and the files to copy, where the model has ops that it runs.

    Raises:
        MissingDependencyError: an engine needs the library, which is not built.
    """
    if not any(node.domain == DOMAIN for node in every_node(model)):
        return service, ()
    if has_engine:
        if sidecar is not None and not sidecar.key.plugin_sha256:
            return service, ()
        try:
            libraries = _with_register(plugin.library_path())
        except MissingDependencyError as error:
            if sidecar is not None:
                raise
            notes.append(f"an engine that was built with the plugin library needs it, and it is not here: {error}")
            return service, ()
        return replace(service, library=libraries[0].name), libraries
    found = plugin.info()
    if found.path is None or not found.onnxruntime:
        notes.append(f"plain operators run the spatial transformers: {found.problem or 'the library has no ops'}")
        return service, ()
    if service.on_gpu and not found.cuda:
        notes.append(
            f"plain operators run the spatial transformers: {found.path} has no CUDA kernels; `stn-infer plugin build` "
            "builds them with nvcc"
        )
        return service, ()
    return replace(service, library=found.path.name), (found.path,)


def _with_register(library: Path) -> tuple[Path, Path]:
    """The library, and beside it the one that registers its plugins in TensorRT.

    Raises:
        MissingDependencyError: that one is missing.
    """
    register = library.with_name(REGISTER_FILE)
    if not register.is_file():
        raise MissingDependencyError(f"{register} is missing; `stn-infer plugin build` builds it from the source tree")
    return library, register
