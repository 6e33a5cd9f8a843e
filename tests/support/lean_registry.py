"""Run by test_tensorrt_registry.py: tensorrt-lean's real plugin registry and our library, the answers as JSON.

tests/support/lean_registry.py load LIBRARY       by the registry's own load_library
tests/support/lean_registry.py register LIBRARY   LIBRARY registers itself when it is loaded
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import tensorrt_lean as trt

from benchmarks.plugin_registry import create as make_plugin

OURS = {
    ("SpatialTransformer", "stn"),
    ("ProjectiveTransformer", "stn"),
    ("GridSample", ""),
    ("Sampler", "stn"),
    ("TensorProductTransformer", "stn"),
    ("LatticeTransformer", "stn"),
}


def create(creator: Any, attributes: dict[str, Any], phase: Any) -> dict[str, Any] | None:
    """What TensorRT's own interface says of a new plugin, or None where the creator refused."""
    plugin = make_plugin(creator, attributes, phase)
    if plugin is None:
        return None
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
    runtime = plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME)
    return {
        "name": core.plugin_name,
        "version": core.plugin_version,
        "namespace": core.plugin_namespace,
        "outputs": build.num_outputs,
        "format_limit": build.format_combination_limit,
        "timing_cache_id": build.timing_cache_id,
        "metadata": build.metadata_string,
        "interfaces": [
            [part.interface_info.kind, part.interface_info.major, part.interface_info.minor]
            for part in (plugin, core, build, runtime)
        ],
    }


def main(how: str, library: str) -> None:
    """Get the library registered and print what the registry has then."""
    trt.Logger(trt.Logger.ERROR)
    registry = trt.get_plugin_registry()
    if how == "load":
        registry.load_library(library)
    else:
        ctypes.CDLL(library)
    creators = [creator for creator in registry.all_creators if (creator.name, creator.plugin_namespace) in OURS]
    spatial = registry.get_creator("SpatialTransformer", "1", "stn")
    projective = registry.get_creator("ProjectiveTransformer", "1", "stn")
    quotient = registry.get_creator("ProjectiveTransformer", "2", "stn")
    sampler = registry.get_creator("Sampler", "1", "stn")
    answer: dict[str, Any] = {
        "version": trt.__version__,
        "creators": {
            f"{creator.name} {creator.plugin_version}": {
                "namespace": creator.plugin_namespace,
                "fields": {item.name: item.type.name for item in creator.field_names},
            }
            for creator in creators
        },
    }
    if spatial is not None and projective is not None and quotient is not None and sampler is not None:
        build, run = trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME
        grid = {"grid_shape": [0, 28, 28, 2]}
        volume = {"grid_shape": [0, 4, 5, 6, 3]}
        moved = {"w_min": 0.1, "offset": [0.25, -0.5, 1.0], **volume}
        answer["made"] = {
            "defaults": create(spatial, grid, build),
            "opset 20": create(spatial, {"kind": "basis", "mode": "cubic", "padding_mode": "border", **grid}, build),
            "volume": create(spatial, {"mode": "nearest", "align_corners": [1], **volume}, run),
            "projective": create(projective, {"padding_mode": "reflection", **grid}, build),
            "projective 2": create(quotient, moved, build),
            "projective 2 without a bound": create(quotient, grid, run),
            "sampler": create(sampler, {"mode": "cubic", "padding_mode": "border", "align_corners": [1]}, build),
        }
        answer["refused"] = {
            "no grid_shape": create(spatial, {}, build),
            "unknown mode": create(spatial, {"mode": "lanczos", **grid}, build),
            "bicubic volume": create(spatial, {"mode": "bicubic", **volume}, build),
            "projective volume": create(projective, volume, build),
            "offset of an image": create(quotient, {**moved, **grid}, build),
            "w_min NaN": create(quotient, {**moved, "w_min": float("nan")}, build),
            "w_min as text": create(quotient, {**moved, "w_min": "0.5"}, build),
            "offset infinite": create(quotient, {**moved, "offset": [0.0, float("inf"), 0.0]}, build),
            "unknown padding": create(sampler, {"padding_mode": "wrap"}, build),
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
