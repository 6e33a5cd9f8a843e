"""A stand-in for TensorRT's Python API and for a GPU, which records every call and really computes ``y = 2 x``.

It reads and writes by the addresses that it is given, so a wrong pointer or shape gives wrong numbers. What it offers
is checked against the real classes of tensorrt-rtx in test_executor.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch

Shape = tuple[int, ...]


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 7
    FP8 = 6


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        pass


class IProfiler:
    """Told the time of each layer after a run."""

    def __init__(self) -> None:
        pass

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


@dataclass
class Script:
    """What the engine is, what goes wrong, and what was called."""

    shape: Shape = (-1, 3)
    profile: tuple[Shape, Shape, Shape] = ((1, 3), (2, 3), (4, 3))
    more_profiles: tuple[tuple[Shape, Shape, Shape], ...] = ()
    changes_profile: bool = True
    takes_shape: bool = True
    dtype: DataType = DataType.FLOAT
    deserializes: bool = True
    has_context: bool = True
    runs: bool = True
    capturable: bool = True
    output_shape: Shape | None = None
    calls: list[Any] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None

    @property
    def profiles(self) -> tuple[tuple[Shape, Shape, Shape], ...]:
        return (self.profile, *self.more_profiles)


class Context:
    """IExecutionContext."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.chosen = 0
        self.shape: Shape | None = None
        self.addresses: dict[str, int] = {}
        self.profiler: IProfiler | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.script.calls.append(("set_optimization_profile_async", profile_index, stream_handle))
        self.chosen = profile_index
        return self.script.changes_profile

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self.script.calls.append(("set_input_shape", name, shape))
        low, _, high = self.script.profiles[self.chosen]
        self.shape = shape
        return (
            self.script.takes_shape
            and len(shape) == len(low)
            and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        )

    def get_tensor_shape(self, name: str) -> Shape:
        assert self.shape is not None, "shapes are known once the inputs have theirs"
        return self.script.output_shape or self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.script.calls.append(("set_tensor_address", name))
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.script.calls.append(("execute_async_v3", stream_handle))
        if self.script.recording is not None:
            if not self.script.capturable:
                raise RuntimeError("operation not permitted when stream is capturing\nand a second line")
            self.script.recording.append(self._compute)
        elif self.script.runs:
            self._compute()
            if self.profiler is not None:
                self.profiler.report_layer_time("first", 0.25)
                self.profiler.report_layer_time("second", 0.5)
        return self.script.runs

    def _compute(self) -> None:
        assert self.shape is not None
        count, size = int(np.prod(self.shape)), 4 if self.script.dtype is DataType.FLOAT else 2
        x, y = ((ctypes.c_char * (count * size)).from_address(self.addresses[name]) for name in ("x", "y"))
        kind = {DataType.FLOAT: torch.float32, DataType.HALF: torch.float16, DataType.BF16: torch.bfloat16}
        values = torch.frombuffer(bytearray(x), dtype=kind[self.script.dtype]) * 2
        y.raw = values.view(torch.uint8).numpy().tobytes()


class Engine:
    """ICudaEngine with one input ``x`` and one output ``y``."""

    num_io_tensors = 2

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.script.profiles)

    def __init__(self, script: Script) -> None:
        self.script = script

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.script.dtype

    def get_tensor_shape(self, name: str) -> Shape:
        return self.script.shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        assert name == "x"
        return list(self.script.profiles[profile_index])

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> Context | None:
        several = len(self.script.profiles) > 1
        assert (strategy is ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE) == several
        self.script.calls.append("create_execution_context")
        return Context(self.script) if self.script.has_context else None


class Module:
    """The module ``tensorrt``."""

    TensorIOMode = TensorIOMode
    DataType = DataType
    ILogger = ILogger
    IProfiler = IProfiler
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, script: Script) -> None:
        self.script = script

    def Runtime(self, logger: Any) -> Any:
        """IRuntime; its one method is all that is needed."""
        script = self.script

        class Runtime:
            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
                if not script.deserializes:
                    logger.log(ILogger.Severity.ERROR, "Serialization assertion failed\nmagic tag does not match")
                    return None
                return Engine(script)

        return Runtime()


class Cuda:
    """A device without a GPU: tensors in host memory, and a stream that runs at once or records."""

    device = torch.device("cpu")
    stream = 77

    def __init__(self, script: Script) -> None:
        self.script = script

    @contextmanager
    def ordered(self) -> Iterator[None]:
        self.script.calls.append("ordered")
        yield

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.script.calls.append("capture")
        self.script.recording = recorded = []
        try:
            work()
        finally:
            self.script.recording = None

        def replay() -> None:
            self.script.calls.append("replay")
            for step in recorded:
                step()

        return replay

    def synchronize(self) -> None:
        self.script.calls.append("synchronize")
