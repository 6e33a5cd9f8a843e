"""Puts the weights of another model into an engine that was built refittable: seconds instead of a build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stn_infer.backends.tensorrt.engine_cache import Sidecar
from stn_infer.backends.tensorrt.identity import structure, weight_hashes
from stn_infer.backends.tensorrt.options import REFITTABLE
from stn_infer.backends.tensorrt.runtime import TensorRT, current_device, last_error, load_plan
from stn_infer.errors import MissingDependencyError, ModelError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Replacement:
    """The weights that another model gives an engine.

    Attributes:
        model: the other model.
        name: its name in messages.
        changed: names of the weights that differ from those in the engine.
    """

    model: onnx.ModelProto
    name: str
    changed: frozenset[str]


def replacement_for(label: str, sidecar: Sidecar | None, model: onnx.ModelProto, name: str) -> Replacement:
    """Compare a model with the one that an engine was built from.

    Args:
        label: the engine's name in messages.
        sidecar: what the engine was built from.
        model: the other model.
        name: its name in messages.

    Raises:
        ModelError: the engine has no sidecar, takes no weights, or the models differ in more than weights.
    """
    if sidecar is None:
        raise ModelError(
            f"{label} has no sidecar, which says what it was built from; build it again: stn-infer build --refittable"
        )
    if REFITTABLE not in sidecar.key.flags:
        raise ModelError(f"{label} takes no other weights; build it again: stn-infer build --refittable")
    if structure(model) != sidecar.structure:
        raise ModelError(
            f"{name} differs from {sidecar.source}, from which {label} was built, in more than weights; build an "
            f"engine of it: stn-infer build {name}"
        )
    found = weight_hashes(model)
    return Replacement(model, name, frozenset(it for it in found if found[it] != sidecar.weights.get(it)))


def refit_plan(
    runtime: TensorRT, plan: bytes, new: Replacement, logger: Any, *, device: int | None, plugin: bool
) -> bytes:
    """The engine with other weights.

    Args:
        runtime: the version that built the engine.
        plan: the serialized engine.
        new: the weights.
        logger: TensorRT's, from ``make_logger``.
        device: the index of the GPU to load the engine on; None: the current one.
        plugin: whether plugins run nodes of the engine, as for ``prepare``.

    Raises:
        MissingDependencyError: this version of TensorRT cannot refit from ONNX.
        ModelError: the engine cannot be loaded, or TensorRT cannot replace one of the weights that differ.
    """
    from stn_infer.backends.tensorrt.builder import prepare

    trt, title = runtime.module, f"{runtime.title} {runtime.version}"
    if not hasattr(trt, "OnnxParserRefitter"):
        raise MissingDependencyError(f"{title} cannot refit engines from ONNX files; a newer one is required")
    content = prepare(new.model, runtime, plugin=plugin).SerializeToString()
    with current_device(device):
        _loader, engine = load_plan(runtime, plan, logger)
        refitter = trt.Refitter(engine, logger)
        fixed = sorted(new.changed - set(refitter.get_all_weights()) - _normalization(new.model))
        if fixed:
            more = f" and {len(fixed) - 1} more" if len(fixed) > 1 else ""
            raise ModelError(
                f"{title} cannot replace {fixed[0]!r}{more}, which {new.name} changes: the engine was built for its "
                f"value; build an engine: stn-infer build {new.name}"
            )
        if not trt.OnnxParserRefitter(refitter, logger).refit_from_bytes(content):
            raise ModelError(f"{title} cannot take the weights of {new.name}: {last_error(logger)}")
        missing = refitter.get_missing_weights()
        if missing or not refitter.refit_cuda_engine():
            reason = f"{len(missing)} weights are missing, {missing[0]!r}" if missing else last_error(logger)
            raise ModelError(f"{title} cannot refit the engine with {new.name}: {reason}")
        return bytes(engine.serialize())


def _normalization(model: onnx.ModelProto) -> set[str]:
    """Parameters of batch normalizations, from which the parser computes weights of other names."""
    return {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[1:]}
