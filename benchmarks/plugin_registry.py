"""Test whether TensorRT's plugin registry (tensorrt-lean, which needs no GPU) creates our plugin from given fields.

    STN_TENSORRT_DEVICE=cpu python benchmarks/plugin_registry.py LIBRARY OP '[{"mode": "bilinear", ...}, ...]'

Run it in a separate process, because a registry does not unload plugins. It prints a JSON list of booleans.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_lean as trt


def create(creator: Any, attributes: dict[str, Any], phase: Any) -> Any:
    """Create a plugin from attributes, as a parser passes them; None if the creator rejects them.

    Args:
        creator: the plugin's creator.
        attributes: by name: a string, a number or a list of numbers.
        phase: TensorRT's phase.
    """
    fields = [_field(name, value) for name, value in attributes.items()]
    return creator.create_plugin("node", trt.PluginFieldCollection(fields), phase)


def _field(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return trt.PluginField(name, np.frombuffer(value.encode(), np.int8), trt.PluginFieldType.CHAR)
    numbers = np.atleast_1d(value)
    if numbers.dtype.kind == "f":
        return trt.PluginField(name, numbers.astype(np.float32), trt.PluginFieldType.FLOAT32)
    return trt.PluginField(name, numbers.astype(np.int32), trt.PluginFieldType.INT32)


def main(library: str, op: str, wanted: str) -> None:
    """Load the library and print which of the plugins it creates."""
    registry = trt.get_plugin_registry()
    registry.load_library(library)
    creator = registry.get_creator(op, "1", "stn")
    print(json.dumps([create(creator, fields, trt.TensorRTPhase.BUILD) is not None for fields in json.loads(wanted)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
