"""A stand-in for what TensorRT's Python API has for engines that exist: loading, inspecting and refitting them.

A plan of the stand-in has the real header, and JSON behind it. What it offers is checked against the real classes of
tensorrt-rtx in test_inspection.py.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.support.tensorrt_standin import DataType, ILogger, TensorIOMode

X = {"name": "x", "input": True, "dtype": "FLOAT", "shape": [-1, 1, 4, 4], "format": "Row major linear FP32 format"}
Y = {"name": "y", "input": False, "dtype": "HALF", "shape": [-1, 3], "format": "Row major linear FP16 format"}
SPATIAL = {
    "Name": "stn_0",
    "LayerType": "PluginV3",
    "Inputs": [
        {"Name": "x", "Dimensions": [-1, 1, 4, 4], "Format/Datatype": "Row major linear FP32"},
        {"Name": "theta", "Dimensions": [-1, 2, 3], "Format/Datatype": "Float"},
    ],
    "Outputs": [{"Name": "warped", "Dimensions": [-1, 1, 4, 4], "Format/Datatype": "Row major linear FP32"}],
    "ParameterType": "PluginV3",
    "PluginType": "SpatialTransformer",
    "PluginMetadata": "SpatialTransformer affine bilinear zeros half_pixel 4x4",
    "Metadata": "[ONNX Layer: node_grid_sampler]",
}
CONVOLUTION = {
    "Name": "conv + relu",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "warped_q", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
    "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
    "TacticName": "sm80_xmma_fprop",
    "Metadata": "[ONNX Layer: conv]\x1f[ONNX Layer: outer (Block)]\x1f[ONNX Layer: relu[0]]",
}


def header(magic: bytes, version: str, size: int) -> bytes:
    """The first 28 bytes of a plan, as TensorRT-RTX writes them."""
    numbers = bytes(map(int, [*version.split("."), "0"][:4]))
    return magic + bytes(4) + b"\x02" + bytes(7) + struct.pack("<Q", size) + numbers


def plan_of(magic: bytes = b"ftrt", version: str = "11.4.0.106", **content: Any) -> bytes:
    """A plan; ``content`` replaces what an engine with a plugin and a convolution has."""
    whole = {
        "tensors": [X, Y],
        "profiles": [{"x": [[1, 1, 4, 4], [2, 1, 4, 4], [8, 1, 4, 4]]}],
        "layers": [SPATIAL, CONVOLUTION],
        "refittable": False,
        "memory": 3 << 19,
        "plugins": [],
        "host_code": False,
        "weights": {},
        "folded": [],
        "warns": [],
    } | content
    body = json.dumps(whole).encode()
    return header(magic, version, 28 + len(body)) + body


def content_of(plan: bytes) -> dict[str, Any]:
    """The JSON in a plan."""
    found: dict[str, Any] = json.loads(plan[28:])
    return found


class LayerInformationFormat(IntEnum):
    ONELINE = 0
    JSON = 1


class EngineInspector:
    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers

    def get_layer_information(self, layer_index: int, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        layer = self._layers[layer_index]
        return layer if isinstance(layer, str) else json.dumps(layer)


class ICudaEngine:
    def __init__(self, content: dict[str, Any], version: str) -> None:
        self._content, self._version = content, version
        self._tensors = {tensor["name"]: tensor for tensor in content["tensors"]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._content["profiles"])

    @property
    def num_layers(self) -> int:
        return len(self._content["layers"])

    @property
    def refittable(self) -> bool:
        return bool(self._content["refittable"])

    @property
    def device_memory_size_v2(self) -> int:
        return int(self._content["memory"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._tensors[name]["input"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name]["dtype"]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def get_tensor_format_desc(self, name: str) -> str:
        return str(self._tensors[name]["format"])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._content["profiles"][profile_index][name]]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._content["layers"])

    def serialize(self) -> bytes:
        return plan_of(version=self._version, **self._content)


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self.engine, self.new = engine, {}
        self.weights: dict[str, list[float]] = engine._content["weights"]

    def get_all_weights(self) -> list[str]:
        return list(self.weights)

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.weights if name not in self.new] if self.new else []

    def refit_cuda_engine(self) -> bool:
        self.weights.update(self.new)
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter, self.logger = refitter, logger

    def refit_from_bytes(self, model: bytes) -> bool:
        for tensor in onnx.load_from_string(model).graph.initializer:
            if tensor.name in self.refitter.weights:
                self.refitter.new[tensor.name] = np.ravel(numpy_helper.to_array(tensor)).tolist()
        missing = self.refitter.get_missing_weights()
        for name in missing:
            self.logger.log(ILogger.Severity.ERROR, f"weights {name} are missing")
        return not missing


class Module:
    """The module ``tensorrt`` of one version; ``registered``: whether our plugins are."""

    TensorIOMode, DataType, ILogger = TensorIOMode, DataType, ILogger
    LayerInformationFormat, Refitter, OnnxParserRefitter = LayerInformationFormat, Refitter, OnnxParserRefitter

    def __init__(self, version: str = "11.4.0.106") -> None:
        self.version, self.registered, self.loaded = version, False, 0

    def get_plugin_registry(self) -> Any:
        def load(path: str) -> None:
            self.registered = True

        return SimpleNamespace(
            get_creator=lambda name, version, space: object() if self.registered else None, load_library=load
        )

    def Runtime(self, logger: Any) -> Any:
        def fail(message: str) -> None:
            logger.log(ILogger.Severity.ERROR, message)

        def load(plan: bytes) -> ICudaEngine | None:
            self.loaded += 1
            try:
                content = content_of(plan)
            except ValueError:
                return fail("Serialization assertion plan.header.size == blobSize failed.\n")
            if content["host_code"] and not runtime.engine_host_code_allowed:
                return fail("the engine contains host code")
            if content["plugins"] and not self.registered:
                return fail(f"Cannot find plugin: {content['plugins'][0]}, version: 1, namespace: stn")
            for warning in content["warns"]:
                logger.log(ILogger.Severity.WARNING, warning)
            return ICudaEngine(content, self.version)

        runtime = SimpleNamespace(deserialize_cuda_engine=load, engine_host_code_allowed=False)
        return runtime
