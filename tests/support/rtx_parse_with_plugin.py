"""Run by test_tensorrt_build.py: TensorRT-RTX's real parser with our plugins registered.

    tests/support/rtx_parse_with_plugin.py LIBRARY MODEL

The parser makes the plugin from the node's attributes (which STN_LOG shows on stderr) and then ends the process,
because TensorRT-RTX has no layer for plugins of users.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorrt_rtx as trt

library, model = sys.argv[1:]
logger = trt.Logger(trt.Logger.ERROR)
trt.get_plugin_registry().load_library(library)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
parser.parse(Path(model).read_bytes())
