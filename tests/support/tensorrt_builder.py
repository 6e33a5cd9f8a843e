"""A stand-in for what TensorRT's Python API has for building engines, which records every call.

Its timing caches are lists of names of layers as text. What it offers is checked against the real classes of
tensorrt-rtx in test_options.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from stn_infer.backends.tensorrt import engine, trial
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT

#: How a timing cache of the stand-in begins: for the one GPU that it knows, and for another.
MAGIC = b"timing cache of this GPU\n"
OTHER_GPU = b"timing cache of another GPU\n"


def on_gpu(monkeypatch: pytest.MonkeyPatch, runtime: Callable[[], TensorRT], gpu: Callable[[], Gpu]) -> None:
    """Build engines with a stand-in, as on a machine with a GPU; models are not parsed in a process of their own."""
    monkeypatch.setattr(engine, "load_runtime", lambda name: runtime())
    monkeypatch.setattr(engine, "current_gpu", lambda index: gpu())
    monkeypatch.setattr(engine, "current_device", lambda index: nullcontext())
    monkeypatch.setattr(trial, "try_parser", lambda *arguments: None)


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 1


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class TimingCache:
    """ITimingCache."""

    def __init__(self, entries: dict[str, str], matches: bool = True) -> None:
        self.entries, self.matches = entries, matches

    def combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.entries = input_cache.entries | self.entries
        return True

    def serialize(self) -> bytes:
        return MAGIC + "\n".join(f"{layer} {time}" for layer, time in sorted(self.entries.items())).encode()


class Config:
    """IBuilderConfig: calls and the attributes that are set are recorded."""

    def __init__(self, recorder: Recorder, logger: Any) -> None:
        vars(self).update(recorder=recorder, logger=logger, timing=None)

    def __setattr__(self, name: str, value: Any) -> None:
        self.recorder.calls.append((name, getattr(value, "name", value)))

    def set_flag(self, flag: IntEnum) -> None:
        self.recorder.calls.append(("set_flag", flag.name))

    def clear_flag(self, flag: IntEnum) -> None:
        self.recorder.calls.append(("clear_flag", flag.name))

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.recorder.calls.append(("set_memory_pool_limit", pool.name, pool_size))

    def add_optimization_profile(self, profile: Any) -> int:
        self.recorder.calls.append("add_optimization_profile")
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        head, found, rest = serialized_timing_cache.partition(b"\n")
        if serialized_timing_cache and head + found not in (MAGIC, OTHER_GPU):
            self.logger.log(self.recorder.ILogger.Severity.WARNING, "Failed to deserialize timing cache.")
            return TimingCache({})
        entries = dict(line.split() for line in rest.decode().splitlines())
        return TimingCache(entries, head + found != OTHER_GPU)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.matches:
            vars(self)["timing"] = cache
        return cache.matches

    def get_timing_cache(self) -> TimingCache | None:
        return vars(self)["timing"]  # type: ignore[no-any-return]


class Recorder:
    """The members of the module ``tensorrt`` that a builder uses.

    ``measured`` are the layers whose kernels were measured, and their times: the number of the measurement.
    """

    MemoryPoolType = MemoryPoolType
    ProfilingVerbosity = ProfilingVerbosity

    def __init__(
        self, *, layers: list[str], newest: bool = True, takes_library: bool = True, builds: bool = True
    ) -> None:
        self.calls: list[Any] = []
        self.parsed: list[onnx.ModelProto] = []
        self.measured: list[tuple[str, str]] = []
        self.warns: list[str] = []
        self.while_building: Callable[[], None] = lambda: None
        self.registered = False
        self.layers, self.takes_library, self.builds = layers, takes_library, builds
        self.ILogger = type(
            "ILogger",
            (),
            {
                "__init__": lambda _: None,
                "Severity": IntEnum("Severity", ["ERROR", "INTERNAL_ERROR", "WARNING", "INFO"]),
            },
        )
        levels = {"NONE": 0, "AMPERE_PLUS": 1, **({"SAME_COMPUTE_CAPABILITY": 2} if newest else {})}
        self.HardwareCompatibilityLevel = IntEnum("HardwareCompatibilityLevel", levels)
        creation = {"EXPLICIT_BATCH": 0} if newest else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
        self.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", creation)
        self.OnnxParserFlag = IntEnum(
            "OnnxParserFlag", ["NATIVE_INSTANCENORM", *(["ENABLE_PLUGIN_OVERRIDE"] if newest else [])]
        )
        self.BuilderFlag = IntEnum("BuilderFlag", ["TF32", "REFIT", "VERSION_COMPATIBLE"])

    def get_plugin_registry(self) -> Any:
        def load(path: str) -> None:
            self.calls.append(("load_library", path))
            self.registered = self.takes_library

        return SimpleNamespace(
            get_creator=lambda name, version, space: object() if self.registered else None, load_library=load
        )

    def Builder(self, logger: Any) -> Any:
        profile = SimpleNamespace(set_shape=lambda *shapes: self.calls.append(("set_shape", *shapes)))
        config = Config(self, logger)

        def build(network: Any, config: Config) -> bytes | None:
            for warning in self.warns:
                logger.log(self.ILogger.Severity.WARNING, warning)
            logger.log(self.ILogger.Severity.INFO, "building")
            self.while_building()
            cache = config.get_timing_cache()
            for layer in self.layers:
                if cache is None or layer not in cache.entries:
                    self.measured.append((layer, str(len(self.measured))))
                    if cache is not None:
                        cache.entries[layer] = self.measured[-1][1]
            return b"engine" if self.builds else None

        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=build,
        )

    def _network(self, flags: int) -> Any:
        self.calls.append(("create_network", flags))
        layers = [SimpleNamespace(name=f"layer_{i}", type=SimpleNamespace(name=it)) for i, it in enumerate(self.layers)]
        return SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse(data: bytes) -> bool:
            self.parsed.append(onnx.load_from_string(data))
            return True

        return SimpleNamespace(set_flag=lambda flag: self.calls.append(("parser.set_flag", flag.name)), parse=parse)
