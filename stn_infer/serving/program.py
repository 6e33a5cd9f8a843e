"""Serves model.onnx through onnxruntime: the program that Triton's Python backend runs as ``model.py``.

It needs numpy and onnxruntime, and nothing else. ``config.pbtxt`` has the parameter ``threads``; ``settings.json``
beside this file says what the scores of the classes are. The requests that dynamic batching has gathered run as one
batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton
from numpy.typing import NDArray

from stn_infer.ranking import best_first, probabilities


class TritonPythonModel:
    """One instance of the model: its session and, if it has classes, how their scores become predictions."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session; an exception makes the server report the model as unavailable."""
        folder = Path(__file__).resolve().parent
        config = json.loads(args["model_config"])
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle instances leave the cores alone
        if settings["library"]:
            options.register_custom_ops_library(str(folder.parent / settings["library"]))
        providers: list[Any] = ["CPUExecutionProvider"]
        on_gpu = args["model_instance_kind"] == "GPU"
        if on_gpu:
            gpu = {"device_id": int(args["model_instance_device_id"]), "use_tf32": 0}
            providers.insert(0, ("CUDAExecutionProvider", {**gpu, "cudnn_conv_algo_search": "HEURISTIC"}))
            getattr(onnxruntime, "preload_dlls", lambda: None)()
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=providers)
        if on_gpu and "CUDAExecutionProvider" not in self._session.get_providers():
            raise RuntimeError("onnxruntime has no CUDA execution provider here: pip install onnxruntime-gpu")
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._classes = settings["classes"]
        self._labels = np.array([label.encode() for label in settings["labels"]], object)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order; all requests run as one batch."""
        given = [[triton.get_input_tensor_by_name(it, name).as_numpy() for name in self._inputs] for it in requests]
        counts = [len(arrays[0]) for arrays in given]
        try:
            whole = given[0] if len(given) == 1 else [np.concatenate(arrays) for arrays in zip(*given, strict=True)]
            found = self._predict(dict(zip(self._inputs, whole, strict=True)), sum(counts))
        except Exception as error:
            if len(requests) > 1:  # one of them may be at fault
                return [self.execute([request])[0] for request in requests]
            return [_failed(" ".join(str(error).split()))]
        responses, end = [], 0
        for count in counts:
            start, end = end, end + count
            responses.append(_response({name: values[start:end] for name, values in found.items()}))
        return responses

    def _predict(self, inputs: dict[str, NDArray[Any]], count: int) -> dict[str, NDArray[Any]]:
        """The outputs by name, each with ``count`` rows: the model's own, then the classes."""
        found = dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        for name, values in found.items():
            if len(values) != count:
                raise ValueError(f"output {name!r} has {len(values)} rows for a batch of {count}")
        if self._classes is not None:
            names, scores = self._classes["outputs"], found[self._outputs[0]]
            order = best_first(scores, self._classes["top_k"])
            chosen = probabilities(scores, order, self._classes["activation"], self._classes["applied"])
            found[names["prediction"]] = np.ascontiguousarray(order)
            found[names["confidence"]] = chosen.astype(np.float32)
            if "label" in names:
                found[names["label"]] = self._labels[order]
        return found


def _response(found: dict[str, NDArray[Any]]) -> Any:
    """The answer to one request: as ``run`` does, an error where the model returns NaN."""
    for name, values in found.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            row = int(np.isnan(values.reshape(len(values), -1)).any(axis=1).argmax())
            return _failed(f"the model's output {name!r} contains NaN for row {row}")
    return triton.InferenceResponse([triton.Tensor(name, values) for name, values in found.items()])


def _failed(message: str) -> Any:
    return triton.InferenceResponse(error=triton.TritonError(message))
