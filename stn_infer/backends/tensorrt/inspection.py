"""What is in an engine: inputs, outputs, profiles and layers, from TensorRT's engine inspector.

A layer's types and the ONNX nodes in it are known if the engine was built with detailed verbosity, as ``build`` does
(``trtexec --profilingVerbosity=detailed``); otherwise its name alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stn_infer.backends.tensorrt.engine_cache import Profiles
from stn_infer.backends.tensorrt.runtime import TensorRT, current_device, load_plan
from stn_infer.backends.tensorrt.selection import profiles_of

# The words of TensorRT's descriptions of formats, such as "Row major linear FP32", for its types.
_TYPES = {
    "float": "fp32",
    "half": "fp16",
    "bfloat16": "bf16",
    **{
        word: word for word in ("fp32", "fp16", "bf16", "fp8", "fp4", "int8", "uint8", "int4", "int32", "int64", "bool")
    },
}
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |[\x1e\x1f]|$)")


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine.

    Attributes:
        name: of the tensor.
        is_input: whether it is an input.
        dtype: TensorRT's type, in lower case: ``float``, ``half``, ``bf16``, ``int8`` ...
        shape: -1 is dynamic.
        format: its layout in memory, in TensorRT's words.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    format: str


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Attributes:
        name: in TensorRT.
        type: such as ``CaskConvolution``, ``kgen`` or ``PluginV3``; "" if the engine does not say it.
        inputs, outputs: the types of its tensors, such as ``fp16``.
        nodes: the ONNX nodes in it; more than one were fused.
        plugin: the plugin that runs it, with its configuration; "" for TensorRT's own layers.
        tactic: the kernel's name; "" if there is none.
    """

    name: str
    type: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    plugin: str = ""
    tactic: str = ""

    @property
    def precision(self) -> str:
        """Its types, such as ``fp16``, or those of its inputs and of its outputs: ``int8 > fp32``."""
        sides = ["+".join(dict.fromkeys(types)) for types in (self.inputs, self.outputs)]
        return " > ".join(dict.fromkeys(filter(None, sides)))

    def json_content(self) -> dict[str, object]:
        """The fields and the precision."""
        return {**vars(self), "precision": self.precision}


@dataclass(frozen=True)
class EngineContent:
    """What is in a loaded engine.

    Attributes:
        tensors: inputs and outputs.
        profiles: for each optimization profile, the shapes of the dynamic inputs.
        layers: in the order in which they run.
        refittable: whether it takes new weights.
        device_memory: bytes that an execution context needs on the GPU.
    """

    tensors: tuple[Tensor, ...]
    profiles: Profiles
    layers: tuple[Layer, ...]
    refittable: bool
    device_memory: int


def inspect_plan(
    runtime: TensorRT, plan: bytes, logger: Any, *, device: int | None, host_code: bool = False
) -> EngineContent:
    """Load an engine and read what is in it.

    Args:
        runtime: the runtime and version that built it.
        plan: the serialized engine.
        logger: TensorRT's, from ``make_logger``.
        device: the index of the GPU to load it on; None: the current one.
        host_code: as for :func:`~stn_infer.backends.tensorrt.runtime.load_plan`.

    Raises:
        ModelError: TensorRT cannot load it.
    """
    with current_device(device):
        _loader, engine = load_plan(runtime, plan, logger, host_code=host_code)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = tuple(_tensor(engine, name, runtime) for name in names)
    dynamic = [it.name for it in tensors if it.is_input and -1 in it.shape]
    inspector = engine.create_engine_inspector()
    as_json = runtime.module.LayerInformationFormat.JSON
    return EngineContent(
        tensors,
        profiles_of(engine, dynamic),
        tuple(layer_of(inspector.get_layer_information(index, as_json)) for index in range(engine.num_layers)),
        bool(engine.refittable),
        # before TensorRT 10.1 under another name
        int(getattr(engine, "device_memory_size_v2", 0) or getattr(engine, "device_memory_size", 0)),
    )


def layer_of(text: str) -> Layer:
    """A layer from the inspector's JSON: an object, or its name alone where nothing else is stored."""
    try:
        found = json.loads(text)
    except ValueError:  # some versions do not escape names
        return Layer(text.strip().strip('"'))
    if not isinstance(found, Mapping):
        return Layer(str(found), nodes=tuple(_in_name(str(found))))
    name, kind = str(found.get("Name", "")), str(found.get("LayerType", ""))
    nodes = tuple(dict.fromkeys(_ONNX_NODE.findall(str(found.get("Metadata", "")))))
    return Layer(
        name,
        kind,
        tuple(_types(found.get("Inputs"))),
        tuple(_types(found.get("Outputs"))),
        nodes or tuple(_in_name(name)),
        _plugin(found) if "plugin" in kind.lower() else "",
        str(found.get("TacticName", "")),
    )


def _types(tensors: Any) -> Iterator[str]:
    for tensor in tensors if isinstance(tensors, list) else ():
        match = _TYPE.search(str(tensor.get("Format/Datatype", tensor.get("Format", ""))))
        if match:
            yield _TYPES[match[1].lower()]


def _plugin(layer: Mapping[str, Any]) -> str:
    told = [str(layer[key]) for key in ("PluginType", "PluginMetadata") if layer.get(key)]
    return ": ".join(told) or "a plugin"


def _in_name(name: str) -> Iterator[str]:
    """The nodes in the name of a layer of which no more is known: ``conv + relu``."""
    return filter(None, (part.strip() for part in re.split(r" \+ |\|\|", name)))


def _tensor(engine: Any, name: str, runtime: TensorRT) -> Tensor:
    return Tensor(
        name,
        engine.get_tensor_mode(name) == runtime.module.TensorIOMode.INPUT,
        engine.get_tensor_dtype(name).name.lower(),
        tuple(engine.get_tensor_shape(name)),
        str(engine.get_tensor_format_desc(name)),
    )
