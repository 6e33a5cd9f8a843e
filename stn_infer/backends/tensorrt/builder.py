"""Builds a serialized engine from an ONNX model with TensorRT's parser and builder, and checks the parsed network.

The same calls work with TensorRT 10 and 11 and TensorRT-RTX. Enum members are looked up by name, because their values
differ between versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import onnx

from stn_infer.backends.tensorrt.compatibility import hardware_level
from stn_infer.backends.tensorrt.engine_cache import Profiles
from stn_infer.backends.tensorrt.options import BuilderSettings
from stn_infer.backends.tensorrt.runtime import TensorRT, created, last_error, make_logger
from stn_infer.backends.tensorrt.timing_cache import TimingCache
from stn_infer.errors import FallbackWarning, ModelError, StnInferError, one_line
from stn_infer.fusion.op import DOMAIN, OP_TYPES, VERSION, is_op
from stn_infer.fusion.samplers import spec_of
from stn_infer.proto.edit import copy_of, inline_functions, replace_all
from stn_infer.proto.traversal import STANDARD_DOMAINS, nested_nodes

# From 10.7 the parser prefers a plugin to a local function of the same name; 10.8 fixed tensor names in functions.
_FUNCTIONS_FROM = (10, 8)
# Of a parser's error: lines without a reason, assertions with words, places in its sources.
_NO_REASON = re.compile(r"Invalid Node - |\[checkMacros\.cpp::catchCudaError")
_ASSERTED = re.compile(r'&& "([^"]+)"')
_SOURCE = re.compile(r" (?:In \w+ )?at \S+:\d+|ITensor::getDimensions: Error Code \d+: ")
_KNOWN_DOMAINS = (*STANDARD_DOMAINS, "ai.onnx.ml")


@dataclass(frozen=True)
class Plan:
    """A serialized engine, the names of its ONNX nodes that a plugin runs, and TensorRT's warnings."""

    engine: bytes
    fused: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def prepare(model: onnx.ModelProto, runtime: TensorRT, *, plugin: bool) -> onnx.ModelProto:
    """The model in a form that this runtime's parser supports; ``model`` is not modified.

    Parsers before TensorRT 10.8 do not support local functions. With the plugin they are removed, so that the plugin
    runs the nodes; without it they are inlined.

    Raises:
        ModelError: a node is neither a standard op nor a function, and no plugin runs it; or the functions cannot be
            inlined.
    """
    if not plugin:
        _check_native(model, runtime)
    if runtime.name != "tensorrt" or runtime.release >= _FUNCTIONS_FROM:
        return model
    if not plugin:
        return inline_functions(model)
    stripped = copy_of(model)
    replace_all(stripped.functions, [function for function in model.functions if function.domain != DOMAIN])
    return stripped


def _check_native(model: onnx.ModelProto, runtime: TensorRT) -> None:
    # TensorRT-RTX does not report an unknown node as an error: it terminates the process.
    functions = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in functions:
            raise ModelError(
                f"node {node.name!r} is a {node.domain}::{node.op_type}: {runtime.title} has no layer for it, and the "
                "file has no function; export the model again"
            )


def build_plan(
    runtime: TensorRT,
    model: onnx.ModelProto,
    profiles: Profiles,
    *,
    target: str | None = None,
    plugin: Path | None = None,
    settings: BuilderSettings | None = None,
    timing: TimingCache | None = None,
) -> Plan:
    """Parse a model and build an engine.

    Args:
        runtime: TensorRT or TensorRT-RTX.
        model: the model from :func:`prepare`.
        profiles: shapes of the dynamic inputs, for each optimization profile; empty if there are none.
        target: an architecture such as ``sm89``, for TensorRT-RTX on a machine without that GPU.
        plugin: the library whose plugins run the ``stn`` nodes (and, from TensorRT 10.15 on, GridSample nodes).
        settings: of the builder; None: the defaults.
        timing: where times of kernels are read and written; None: every kernel is measured.

    Raises:
        ModelError: the parser or the builder rejects the model, the parser interprets it incorrectly, or the file of
            ``timing`` is unusable. That it cannot be written is a warning.
    """
    parsing = Parsing(runtime, plugin)
    parsing.parse(model.SerializeToString())
    trt, logger, builder, network = runtime.module, parsing.logger, parsing.builder, parsing.network
    misread = parsing.misread_sampler(model)
    if misread:
        raise ModelError(
            f"{runtime.title} {runtime.version} parses the sampler {misread!r} as NEAREST, which is wrong; "
            "export the model with opset 18"
        )
    fused = tuple(layer.name for layer in _layers(network) if layer.type.name == "PLUGIN_V3")
    if plugin is not None:
        _check_fused(model, fused, runtime)

    config = builder.create_builder_config()
    _configure(config, runtime, settings or BuilderSettings())
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for each in profile:
            shapes.set_shape(each.name, each.min, each.opt, each.max)
        config.add_optimization_profile(shapes)
    if timing is not None:
        timing.attach(config, runtime, logger)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        needs_gpu = settings is not None and settings.refittable and runtime.name == "tensorrt-rtx"
        advice = "; refittable engines need a GPU to be built on" if needs_gpu else ""
        raise ModelError(f"{runtime.title} {runtime.version} cannot build the model: {last_error(logger)}{advice}")
    warnings = tuple(dict.fromkeys(map(one_line, logger.warnings)))
    if timing is not None:
        try:
            timing.save(config)
        except (StnInferError, OSError) as error:  # the engine has taken minutes
            warn(f"the times of kernels are not kept: {error}", FallbackWarning, stacklevel=2)
    return Plan(bytes(engine), fused, warnings)


def _configure(config: Any, runtime: TensorRT, settings: BuilderSettings) -> None:
    trt = runtime.module
    if hasattr(trt.BuilderFlag, "TF32"):
        (config.set_flag if settings.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for `inspect`: the layers' types and precisions
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if settings.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware is not None:
        config.hardware_compatibility_level = hardware_level(runtime, settings.hardware)


@dataclass(frozen=True)
class ParserProblem:
    """An error of the parser.

    Attributes:
        reason: the parser's own words, without places in its sources.
        node: the node's name; "" if it has none, or the error concerns none.
        operator: the node's operator.
        index: the node's place in its graph; -1 if the error concerns none.
        within: the nodes around it, outermost first, such as ``choice (If)``.
    """

    reason: str
    node: str = ""
    operator: str = ""
    index: int = -1
    within: tuple[str, ...] = ()


class Parsing:
    """A builder with a parser and the network that it fills.

    Args:
        runtime: TensorRT or TensorRT-RTX.
        plugin: the library whose plugins run nodes; None: no plugins.

    Attributes:
        logger, builder, network: TensorRT's objects.
    """

    def __init__(self, runtime: TensorRT, plugin: Path | None) -> None:
        trt = runtime.module
        self._runtime = runtime
        self.logger = make_logger(trt)
        if plugin is not None:
            load_plugins(trt, plugin, self.logger)
        self.builder = created(trt.Builder, self.logger)
        self.network = self.builder.create_network(_network_flags(trt))
        self._parser = trt.OnnxParser(self.network, self.logger)
        if plugin is not None and hasattr(trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE"):
            self._parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)

    def parse(self, content: bytes) -> None:
        """Parse a serialized model.

        Raises:
            ModelError: the parser rejects it.
        """
        if not self._parser.parse(content):
            problem = _parser_error(self._parser, self.logger)
            raise ModelError(f"{self._runtime.title} {self._runtime.version} cannot parse the model: {problem}")

    def problems(self, content: bytes, path: Path | None = None) -> list[ParserProblem]:
        """Parse a serialized model; returns all that the parser says against it, nothing if it accepts the model.

        Args:
            content: the model.
            path: of its file, beside which external data are; None: it has none.
        """
        if self._parser.parse(content, None if path is None else str(path)):
            return []
        found = [_problem(self._parser.get_error(index)) for index in range(self._parser.num_errors)]
        return found or [ParserProblem(last_error(self.logger))]

    def misread_sampler(self, model: onnx.ModelProto) -> str:
        """The name of a sampler that the parser has turned into nearest sampling, though it is not; "" for none."""
        layers = sampling_layers(self._runtime.module, self.network)
        nearest = [layer.name for layer in layers if layer.interpolation_mode.name == "NEAREST"]
        return nearest[0] if len(nearest) > sum(mode == "nearest" for mode in _modes(model)) else ""


def load_plugins(trt: Any, library: Path, logger: Any) -> None:
    """Register the library's plugin creators with TensorRT, once per process.

    Raises:
        ModelError: TensorRT rejects the library.
    """
    registry = trt.get_plugin_registry()
    if registry.get_creator(OP_TYPES[0], str(VERSION), DOMAIN) is not None:
        return
    registry.load_library(str(library))
    if registry.get_creator(OP_TYPES[0], str(VERSION), DOMAIN) is None:
        raise ModelError(f"TensorRT cannot load plugins from {library}: {last_error(logger)}")


def sampling_layers(trt: Any, network: Any) -> list[Any]:
    """The network's native GridSample layers, each as TensorRT's ``IGridSampleLayer``."""
    found = [layer for layer in _layers(network) if layer.type.name == "GRID_SAMPLE"]
    for layer in found:
        layer.__class__ = trt.IGridSampleLayer  # the API returns every layer as its base class
    return found


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _network_flags(trt: Any) -> int:
    # From TensorRT 11 on all networks are strongly typed; before, it is a flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_error(parser: Any, logger: Any) -> str:
    if parser.num_errors == 0:
        return last_error(logger)
    error = parser.get_error(0)
    name = error.node_name() if hasattr(error, "node_name") else ""
    return one_line((f"node {name!r}: " if name else "") + error.desc())


def _problem(error: Any) -> ParserProblem:
    """A parser's error, as TensorRT from 9.1 on describes it."""
    lines = [line.strip() for line in str(error.desc()).splitlines() if line.strip()]
    own = [line for line in lines if not _NO_REASON.match(line)] or lines
    quoted = _ASSERTED.search(own[0]) if own else None
    reason = quoted[1] if quoted else _SOURCE.sub("", " ".join(own))
    operator = str(error.node_operator()) if hasattr(error, "node_operator") else ""
    if operator and (not reason or reason == "false"):  # an assertion without words
        reason = f"{operator} has no importer" if "UNSUPPORTED" in str(error.code()) else f"{operator} is rejected"
    return ParserProblem(
        one_line(reason or "it gives no reason"),
        str(error.node_name()) if hasattr(error, "node_name") else "",
        operator,
        int(error.node()) if hasattr(error, "node") else -1,
        tuple(map(str, error.local_function_stack())) if hasattr(error, "local_function_stack") else (),
    )


def _modes(model: onnx.ModelProto) -> Iterator[str]:
    """The sampling modes of the nodes that become GridSample layers, in subgraphs and called functions too."""
    functions = {(function.domain, function.name): function for function in model.functions}

    def expanded(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
        for node in nested_nodes(nodes):
            if node.op_type == "GridSample" or is_op(node):
                yield spec_of(node).mode
            elif (node.domain, node.op_type) in functions:
                yield from expanded(functions[node.domain, node.op_type].node)

    return expanded(model.graph.node)


def _check_fused(model: onnx.ModelProto, fused: tuple[str, ...], runtime: TensorRT) -> None:
    wanted = [node.name for node in model.graph.node if is_op(node)]
    if len(fused) < len(wanted):
        raise ModelError(
            f"{runtime.title} {runtime.version} used the plugin for only {len(fused)} of {len(wanted)} nodes of "
            "domain stn; build with --native, or export the model again"
        )
