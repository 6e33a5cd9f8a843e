"""Models with outputs that their files do not have: theta, and what the samplers read and return."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stn_infer.api.open import exported, open_resolved
from stn_infer.api.source import EngineFile, OnnxModel
from stn_infer.backends.base import Backend
from stn_infer.budget import Budget
from stn_infer.errors import ModelError, UsageError
from stn_infer.sources.load import LoadedModel

if TYPE_CHECKING:
    import onnx

_THETA = re.compile(r"theta(_\d+)?")


def open_watched(
    found: OnnxModel | EngineFile | LoadedModel,
    backend: str,
    device: str,
    threads: int | None,
    budget: Budget | None,
    *,
    with_theta: bool,
    images: bool,
) -> Backend:
    """Open a model for ``run`` with more outputs than its file has.

    Args:
        found: the model.
        backend, device, threads, budget: as for :func:`~stn_infer.api.open.open_backend`.
        with_theta: theta [N, D, K] of every spatial transformer becomes an output, unless one has this name.
        images: the result is a :class:`~stn_infer.pipeline.warps.WatchedBackend`.

    Raises:
        UsageError: an engine or a PyTorch backend, which have no graph.
        ModelError: the model has no sampler.
    """
    from stn_infer.pipeline.warps import WatchedBackend, watch
    from stn_infer.proto.load import load_model, parse_model

    option = "--save-images" if images else "--with-theta"
    if isinstance(found, EngineFile):
        raise UsageError(f"{option} adds outputs to the graph, which an engine does not have; give the ONNX file")
    if backend in ("eager", "compile"):
        raise UsageError(f"{option} adds outputs to the graph, which PyTorch does not have; use --backend ort")
    content = exported(found)
    model = parse_model(content) if isinstance(content, bytes) else load_model(content)
    if with_theta:
        model = _with_theta(model)
    if not images:
        return open_resolved(OnnxModel(model.SerializeToString()), backend, device, threads, budget, graphs=True)
    tapped, warps = watch(model)
    file = OnnxModel(tapped.model.SerializeToString())
    opened = open_resolved(file, backend, device, threads, budget, graphs=True)
    return WatchedBackend(opened, tapped, warps)


def _with_theta(model: onnx.ModelProto) -> onnx.ModelProto:
    from stn_infer.fusion.fuse import describe, fuse
    from stn_infer.fusion.op import is_op
    from stn_infer.fusion.samplers import spatial_nodes, with_theta

    if any(_THETA.fullmatch(value.name) for value in model.graph.output):
        return model
    reason = ""
    if not any(map(is_op, model.graph.node)):
        model, findings = fuse(model)
        reason = f": {describe(findings)}"
    if not spatial_nodes(model):
        raise ModelError(f"no spatial transformer is fused, so there is no theta{reason}")
    return with_theta(model)
