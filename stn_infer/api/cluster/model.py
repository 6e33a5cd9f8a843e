"""A model as it is sent to the workers of a cluster, which open it on their own devices."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from stn_infer.api.open import exported, open_resolved
from stn_infer.api.source import EngineFile, OnnxModel
from stn_infer.backends.base import Backend
from stn_infer.budget import Budget
from stn_infer.errors import ModelError, UsageError
from stn_infer.sources.load import LoadedModel


@dataclass(frozen=True)
class SentModel:
    """Opens a model when it is called.

    Attributes:
        content: an ONNX file's bytes; or the path of an engine, or of a file with external data, on a file system of
            all nodes.
        is_engine: whether it is an engine.
        sha256: the fingerprint that the file at a path must have.
        backend, device, threads, budget, with_theta: as for ``run``.
    """

    content: bytes | Path
    is_engine: bool
    sha256: str
    backend: str
    device: str
    threads: int | None
    budget: Budget | None
    with_theta: bool

    @property
    def size(self) -> int:
        """Bytes to send."""
        return len(self.content) if isinstance(self.content, bytes) else 0

    def __call__(self) -> Backend:
        """The open model.

        Raises:
            ModelError: the file is missing on this node, or is another one.
            StnInferError: as for :func:`~stn_infer.api.open.open_backend`.
        """
        if isinstance(self.content, Path):
            from stn_infer.api.fingerprint import fingerprint

            if not self.content.is_file():
                raise ModelError(
                    f"{self.content} is not on the worker {platform.node()}; an engine or a model with external data "
                    "must be on a file system of all nodes"
                )
            found = EngineFile(self.content) if self.is_engine else OnnxModel(self.content)
            if fingerprint(found) != self.sha256:
                raise ModelError(f"{self.content} is another file on a worker; give all nodes the same")
        else:
            found = OnnxModel(self.content)
        if self.with_theta:
            from stn_infer.api.watched import open_watched

            return open_watched(
                found, self.backend, self.device, self.threads, self.budget, with_theta=True, images=False
            )
        return open_resolved(found, self.backend, self.device, self.threads, self.budget)


def sent(
    found: OnnxModel | EngineFile | LoadedModel,
    sha256: str,
    backend: str,
    device: str,
    budget: Budget | None,
    *,
    with_theta: bool,
) -> SentModel:
    """A resolved model for the workers of a cluster; a PyTorch model is exported once, here.

    Raises:
        UsageError: PyTorch's backends, or the number of a GPU.
        ExportError, ModelError: the model cannot be exported or read.
    """
    if backend in ("eager", "compile"):
        raise UsageError("a cluster runs ONNX files and engines, so --ray takes no PyTorch backend; use --backend ort")
    if device not in ("cpu", "cuda", "cuda:0"):  # a worker sees one GPU
        raise UsageError(f"on a cluster Ray chooses the GPU; give --device cuda, not {device}")
    threads = 1 if device == "cpu" else None
    content: bytes | Path
    if isinstance(found, EngineFile):
        content = found.path.resolve()
    elif isinstance(found, OnnxModel) and isinstance(found.content, Path):
        content = found.content.resolve() if _has_external_data(found) else found.content.read_bytes()
    else:
        model = exported(found)
        content = model if isinstance(model, bytes) else model.read_bytes()
    return SentModel(content, isinstance(found, EngineFile), sha256, backend, device, threads, budget, with_theta)


def _has_external_data(found: OnnxModel) -> bool:
    from stn_infer.proto.load import external_tensors

    assert isinstance(found.content, Path)
    return bool(external_tensors(found.read(), found.content.parent))
