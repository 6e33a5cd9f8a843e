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


def create(creator: Any, attributes: dict[str, str | list[int]], phase: Any) -> Any:
    """Create a plugin from attributes, as a parser passes them; None if the creator rejects them."""
    fields = [
        trt.PluginField(name, np.frombuffer(value.encode(), np.int8), trt.PluginFieldType.CHAR)
        if isinstance(value, str)
        else trt.PluginField(name, np.array(value, np.int32), trt.PluginFieldType.INT32)
        for name, value in attributes.items()
    ]
    return creator.create_plugin("node", trt.PluginFieldCollection(fields), phase)


def main(library: str, op: str, wanted: str) -> None:
    """Load the library and print which of the plugins it creates."""
    registry = trt.get_plugin_registry()
    registry.load_library(library)
    creator = registry.get_creator(op, "1", "stn")
    print(json.dumps([create(creator, fields, trt.TensorRTPhase.BUILD) is not None for fields in json.loads(wanted)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
