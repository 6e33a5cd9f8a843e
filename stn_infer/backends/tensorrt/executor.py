"""Runs an engine on PyTorch tensors: persistent buffers, its own stream, and a CUDA graph per set of buffers.

This is the only module that runs inference with full TensorRT. It is tested against a recording stand-in for TensorRT,
so it is short and uses few TensorRT calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stn_infer.backends.tensorrt.cuda_stream import Cuda
from stn_infer.backends.tensorrt.runtime import TensorRT, last_error, load_plan
from stn_infer.backends.tensorrt.selection import Shape, nearest, outside, profiles_of
from stn_infer.errors import InputError, ModelError

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
# Of each profile. Each plan has an execution context with its own scratch memory on the device.
_MOST_PLANS = 4


@dataclass(frozen=True)
class IoTensor:
    """An input or output: -1 in ``shape`` is dynamic."""

    name: str
    shape: Shape
    dtype: torch.dtype


@dataclass
class _Plan:
    profile: int
    context: Any
    outputs: dict[str, torch.Tensor]
    warm: bool = False
    replay: Callable[[], None] | None = None


class Executor:
    """A deserialized engine.

    Args:
        runtime: TensorRT or TensorRT-RTX.
        engine: the serialized engine.
        cuda: the device.
        logger: TensorRT's, from ``make_logger``.
        host_code: as for :func:`~stn_infer.backends.tensorrt.runtime.load_plan`.

    Attributes:
        inputs, outputs: its tensors.
        profiles: for each optimization profile, the shapes of all inputs.

    Raises:
        ModelError: the engine cannot be deserialized, or PyTorch has no dtype for one of its tensors.
    """

    def __init__(self, runtime: TensorRT, engine: bytes, cuda: Cuda, logger: Any, *, host_code: bool = False) -> None:
        self._trt, self._cuda, self._logger = runtime.module, cuda, logger
        with cuda.ordered():  # TensorRT uses the current GPU
            self._runtime, self._engine = load_plan(runtime, engine, logger, host_code=host_code)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        input_mode = self._trt.TensorIOMode.INPUT
        self.inputs = tuple(self._tensor(name) for name in names if self._engine.get_tensor_mode(name) == input_mode)
        self.outputs = tuple(self._tensor(name) for name in names if self._engine.get_tensor_mode(name) != input_mode)
        self.profiles = profiles_of(self._engine, [tensor.name for tensor in self.inputs])
        self._plans: dict[Any, _Plan] = {}
        self.graph_problem: str | None = None

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs by name for inputs by name, without a copy.

        Inputs are read in place. Outputs belong to the executor: the next run with the same input tensors overwrites
        them. The second run with the same tensors records a CUDA graph, which later runs replay. Each set of input
        tensors has an execution context, in the profile that is nearest to their shapes.

        Raises:
            InputError: an input is not a contiguous tensor of the right dtype on this device, or the shapes are outside
                of the engine's profiles.
            ModelError: TensorRT failed.
        """
        given = [inputs[tensor.name] for tensor in self.inputs]
        key = tuple((tuple(it.shape), it.stride(), it.dtype, it.data_ptr()) for it in given)
        with self._cuda.ordered():
            plan = self._plans.pop(key, None) or self._make_plan(inputs)
            self._plans[key] = plan  # most recently used last
            if plan.replay is None and plan.warm and self.graph_problem is None:
                try:
                    plan.replay = self._cuda.capture(lambda: self._enqueue(plan))
                except (RuntimeError, ModelError) as error:
                    self.graph_problem = str(error).splitlines()[0]
            if plan.replay is not None:
                plan.replay()
            else:
                self._enqueue(plan)
                plan.warm = True
        return plan.outputs

    @property
    def module(self) -> Any:
        """TensorRT's Python module."""
        return self._trt

    def profile(self, inputs: Mapping[str, torch.Tensor], reporter: Any, runs: int) -> None:
        """Run in a new context that reports each layer's time to ``reporter``, an ``IProfiler``.

        Records no CUDA graph; with a profiler, each run is synchronous. Raises the errors of :meth:`run`.
        """
        with self._cuda.ordered():
            plan = self._make_plan(inputs)
            plan.context.profiler = reporter
            for _ in range(runs):
                self._enqueue(plan)
        self._cuda.synchronize()

    def close(self) -> None:
        """Wait for running work, and release the engine and all device memory."""
        self._cuda.synchronize()
        self._plans.clear()
        self._engine = self._runtime = None

    def _enqueue(self, plan: _Plan) -> None:
        if not plan.context.execute_async_v3(self._cuda.stream):
            raise ModelError(f"TensorRT failed while running the engine: {last_error(self._logger)}")

    def _make_plan(self, inputs: Mapping[str, torch.Tensor]) -> _Plan:
        for tensor in self.inputs:
            given = inputs[tensor.name]
            if given.dtype != tensor.dtype or given.device != self._cuda.device or not given.is_contiguous():
                raise InputError(
                    f"input {tensor.name!r} takes a contiguous {tensor.dtype} tensor on {self._cuda.device}, given "
                    f"{given.dtype} on {given.device}{'' if given.is_contiguous() else ', not contiguous'}"
                )
        shapes = {tensor.name: tuple(inputs[tensor.name].shape) for tensor in self.inputs}
        profile = nearest(self.profiles, shapes)
        if profile is None:
            raise outside(self.profiles, shapes)
        kept = [key for key, plan in self._plans.items() if plan.profile == profile]
        if len(kept) >= _MOST_PLANS:
            self._cuda.synchronize()  # the oldest may still be running
            self._plans.pop(kept[0])
        context = self._new_context(profile)
        for tensor in self.inputs:
            if not context.set_input_shape(tensor.name, shapes[tensor.name]):
                problem = last_error(self._logger)
                raise ModelError(f"TensorRT rejects {shapes[tensor.name]} for input {tensor.name!r}: {problem}")
            context.set_tensor_address(tensor.name, inputs[tensor.name].data_ptr())
        outputs = {}
        for tensor in self.outputs:
            shape = tuple(context.get_tensor_shape(tensor.name))
            if min(shape, default=0) < 0:
                raise ModelError(f"the shape of output {tensor.name!r} is data-dependent, which is not supported")
            outputs[tensor.name] = torch.empty(shape, dtype=tensor.dtype, device=self._cuda.device)
            context.set_tensor_address(tensor.name, outputs[tensor.name].data_ptr())
        return _Plan(profile, context, outputs)

    def _new_context(self, profile: int) -> Any:
        """An execution context, which stays in its profile."""
        if len(self.profiles) == 1:
            context = self._engine.create_execution_context()
        else:  # scratch memory for its own profile, not for the largest
            strategy = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
            context = self._engine.create_execution_context(strategy)
            if context is not None and not context.set_optimization_profile_async(profile, self._cuda.stream):
                raise ModelError(f"TensorRT cannot choose profile {profile}: {last_error(self._logger)}")
        if context is None:
            raise ModelError(f"TensorRT cannot create an execution context: {last_error(self._logger)}")
        return context

    def _tensor(self, name: str) -> IoTensor:
        shape = tuple(self._engine.get_tensor_shape(name))
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise ModelError(f"tensor {name!r} of the engine is {kind}, for which PyTorch has no dtype")
        return IoTensor(name, shape, _DTYPES[kind])
