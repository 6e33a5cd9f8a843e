"""Read ONNX files, with a sentence for each way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from stn_infer.errors import ModelError, one_line


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file; external data is read from its folder.

    Raises:
        ModelError: it is missing, a folder, not ONNX, truncated, or its external data is missing.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}; expected an ONNX file")
    try:
        model = onnx.load(path)
    except DecodeError:
        raise ModelError(f"{path} is no ONNX file, or it is truncated") from None
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from None
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX file, or it is truncated: it holds no graph")
    return model
