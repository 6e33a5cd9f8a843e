"""The one place that opens an onnxruntime session on a model in memory, and words what it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from stn_infer.errors import ModelError, one_line


@dataclass(frozen=True)
class Stored:
    """A model, and the folder its external data lie in."""

    model: onnx.ModelProto
    folder: Path | None = None


def open_session(stored: Stored, *, optimized: bool = True) -> Any:
    """An onnxruntime session on the CPU.

    Raises:
        ModelError: onnxruntime refuses the model.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if stored.folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(stored.folder))
        # weights stay mapped from the file instead of being copied
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(stored.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise ModelError(f"onnxruntime refuses it: {reason(error)}") from error


def reason(error: BaseException | None) -> str:
    text = str(error).strip()
    text = text.split(" : ", 2)[-1] if text.startswith("[ONNXRuntimeError]") else text
    # where in onnxruntime's own source it was thrown is of no use to anybody here
    return one_line(re.sub(r"/onnxruntime_src/\S+:\d+ .*\)\s+(?=\S)", "", " ".join(text.split())))
