"""A hash of everything that determines a model's outputs; an interrupted job is resumed only if it is equal."""

from __future__ import annotations

import hashlib

from stn_infer.api.source import EngineFile, OnnxModel
from stn_infer.sources.load import LoadedModel


def fingerprint(model: OnnxModel | EngineFile | LoadedModel) -> str:
    """The SHA-256, in hex, of everything that determines a model's outputs.

    For an ONNX file: its bytes and those of its external data, under any name. For an engine: its bytes. For a PyTorch
    model from any source: see :mod:`stn_infer.sources.fingerprint`.

    Raises:
        ModelError: an ONNX file is damaged, or its external data are missing.
    """
    if isinstance(model, LoadedModel):
        from stn_infer.sources.fingerprint import fingerprint_module

        return fingerprint_module(model)
    if isinstance(model, EngineFile):
        with model.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    from stn_infer.proto.load import content_hash

    return content_hash(model.content)
