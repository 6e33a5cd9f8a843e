"""A hash of everything that determines a model's outputs; an interrupted job is resumed only if it is equal."""

from __future__ import annotations

import hashlib
import inspect
from typing import TYPE_CHECKING

from stn_infer.api.source import EngineFile, OnnxModel
from stn_infer.sources.load import LoadedModel

if TYPE_CHECKING:
    from hashlib import _Hash

    from torch import nn


def fingerprint(model: OnnxModel | EngineFile | LoadedModel) -> str:
    """The SHA-256, in hex, of everything that determines a model's outputs.

    For an ONNX file: its bytes and those of its external data, under any name. For an engine: its bytes. For a PyTorch
    model from any source: parameters, buffers, structure, input shapes and the source code of its classes.

    Raises:
        ModelError: an ONNX file is damaged, or its external data are missing.
    """
    digest = hashlib.sha256()
    if isinstance(model, LoadedModel):
        _add_module(digest, model.module)
        digest.update(repr(model.input_shapes).encode())
    elif isinstance(model, EngineFile):
        with model.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    else:
        from stn_infer.proto.load import content_hash

        return content_hash(model.content)
    return digest.hexdigest()


def _add_module(digest: _Hash, module: nn.Module) -> None:
    import torch

    digest.update(repr(module).encode())
    for kind in sorted(
        {type(part) for part in module.modules()}, key=lambda kind: (kind.__module__, kind.__qualname__)
    ):
        if kind.__module__.partition(".")[0] not in ("torch", "stn_infer"):
            try:
                digest.update(inspect.getsource(kind).encode())
            except (OSError, TypeError):  # made at run time
                digest.update(kind.__qualname__.encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{values.dtype}\0{tuple(values.shape)}\0".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
