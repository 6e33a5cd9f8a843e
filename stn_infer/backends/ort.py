"""onnxruntime: runs ONNX models on the CPU or with the CUDA execution provider."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.batching import (
    check_inputs,
    fixed_batch,
    free_batch,
    run_in_fixed_batches,
    run_on_empty_axes,
    with_batch_axes,
)
from stn_infer.backends.device import Device
from stn_infer.backends.pixels import OrtNormalizer, as_input, pixel_input
from stn_infer.errors import MissingDependencyError, ModelError
from stn_infer.extras import install, onnxruntimes
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from stn_infer.proto.session import CPU, Provider, Session, Spin, import_onnxruntime, open_session

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(uint32)": np.uint32,
    "tensor(int32)": np.int32,
    "tensor(uint64)": np.uint64,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_IN_FLIGHT = 3  # calls on a GPU: one for each of copy, computation and copy back


class OrtBackend:
    """An ONNX model in onnxruntime; a :class:`~stn_infer.backends.base.Backend`.

    On a GPU, calls of ``run`` from several threads overlap, and ``run_pixels`` normalizes images there.

    Args:
        model: a file, or its bytes. A file may store its weights in external data.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: intra-op threads; None: one per core. With 1, ``run`` computes in the calling thread, so that several
            callers can share one session.
        spin: when idle threads spin: ``always`` (onnxruntime's default, fastest for a single session),
            ``while-running`` (they sleep between runs, so that alternating sessions do not disturb each other) or
            ``never``.
        plugin: whether the plugin library's custom op runs the model's spatial transformers instead of the functions
            in the file; None: if the library is built and has kernels for the device.
        label: the model's name in messages; None: the file's name, or ``the model``.
        profile: a folder for onnxruntime's profile; see :func:`stn_infer.proto.session.open_session`.
        cuda_options: additional options of the CUDA execution provider.

    Raises:
        ModelError: the file is missing or unreadable, or onnxruntime rejects it.
        MissingDependencyError: onnxruntime is not installed, CUDA was requested and its execution provider cannot be
            loaded, or the plugin library was requested and is not built or has no kernels for the device.
    """

    name = "ort"

    def __init__(
        self,
        model: Path | bytes,
        device: str = "cpu",
        threads: int | None = None,
        *,
        spin: Spin = "always",
        plugin: bool | None = None,
        label: str | None = None,
        profile: Path | None = None,
        cuda_options: Mapping[str, Any] | None = None,
    ) -> None:
        target = Device.parse(device)
        self.device = str(target)
        self._threads = threads
        if isinstance(model, Path):
            from stn_infer.proto.load import check_file

            check_file(model)  # rejects a damaged file before native code reads it

        # A registered custom op runs all nodes of its name, so it is registered only if it has kernels for the device.
        self._plugin = None if plugin is False else _plugin_library(target, required=plugin is True)
        providers: tuple[Provider, ...] = CPU
        if target.kind == "cuda":
            ort = import_onnxruntime()
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise _unused(self.device)
            preload_cuda(ort)
            # by default, every convolution would be timed with all algorithms for every new shape
            cuda = {"device_id": target.index, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
            cuda |= cuda_options or {}
            providers = (("CUDAExecutionProvider", cuda), *CPU)
        try:
            session = open_session(
                model,
                label=label,
                threads=threads,
                spin=spin,
                providers=providers,
                library=self._plugin,
                profile=profile,
            )
        except ModelError as error:
            if target.kind == "cpu" and "NOT_IMPLEMENTED" in str(error.__cause__) and _holds_bfloat16(model):
                raise ModelError(
                    f"{str(error).partition(':')[0]}: its CPU execution provider has no bfloat16 operators; "
                    "build it for TensorRT, or export as fp16"
                ) from error.__cause__
            raise
        self._session: Session | None = session
        self._providers = session.providers
        if target.kind == "cuda" and "CUDAExecutionProvider" not in self._providers:
            # onnxruntime falls back to the CPU with only a log message; a requested GPU that is not used is an error.
            raise _unused(self.device)

        given = session.raw.get_inputs()
        specs = with_batch_axes([_spec(value) for value in given], [value.shape for value in given])
        # A fixed batch size is handled by ``run``, so that axis 0 is dynamic for the caller.
        self._fixed_batch = fixed = fixed_batch(specs, session.label)
        self.inputs: tuple[TensorSpec, ...] = free_batch(specs, fixed)
        self.outputs: tuple[TensorSpec, ...] = free_batch([_spec(value) for value in session.raw.get_outputs()], fixed)
        self.metadata = ModelMetadata.from_props(session.raw.get_modelmeta().custom_metadata_map)
        self.in_flight = _IN_FLIGHT if target.kind == "cuda" else 1
        self.takes_pixels = self.full_batches = target.kind == "cuda"  # cuDNN chooses algorithms for each batch size
        self._normalizer: OrtNormalizer | None = None
        self._normalizes_on = providers[0], (target.kind, target.index)

    @property
    def session(self) -> Session:
        """The session, for features that this class does not wrap (I/O binding, profiling).

        Raises:
            ModelError: the backend is closed.
        """
        if self._session is None:
            raise ModelError("this backend is closed; open it again")
        return self._session

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name; see :meth:`stn_infer.backends.base.Backend.run`.

        Raises:
            InputError: the inputs do not match ``self.inputs``.
            ModelError: onnxruntime failed, or the backend is closed.
        """
        batch = check_inputs(self.inputs, inputs)
        if self._fixed_batch is not None and batch != self._fixed_batch:
            return run_in_fixed_batches(self._run, inputs, batch, self._fixed_batch)
        try:
            return self._run(inputs)
        except ModelError:  # several operators refuse no samples, among them MatMul by a right operand
            empty = None if self._session is None else run_on_empty_axes(self._run, self.inputs, inputs)
            if empty is None:
                raise
            return empty

    def run_pixels(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> dict[str, Array]:
        """Outputs by name for images; see :meth:`stn_infer.backends.base.PixelBackend.run_pixels`.

        Raises:
            InputError, ModelError: as for :meth:`run`.
        """
        spec = pixel_input(self.inputs, pixels)
        batch = len(pixels)
        if batch == 0 or self._fixed_batch not in (None, batch) or spec.dtype.kind != "f":
            return self.run(as_input(spec, pixels, preprocess))
        check_inputs(self.inputs, {spec.name: np.broadcast_to(np.zeros((), spec.dtype), pixels.shape)})
        return self._run_pixels(spec, pixels, preprocess)

    def _run_pixels(self, spec: TensorSpec, pixels: NDArray[np.uint8], preprocess: Preprocess) -> dict[str, Array]:
        session = self.session
        if self._normalizer is None:
            self._normalizer = OrtNormalizer(spec, *self._normalizes_on)
        values = self._normalizer.run(pixels, preprocess)
        try:
            binding = session.raw.io_binding()
            binding.bind_ortvalue_input(spec.name, values)
            for name in session.outputs:
                binding.bind_output(name, "cpu")
            session.raw.run_with_iobinding(binding)
            outputs = [value.numpy() for value in binding.get_outputs()]
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise session.failure(error, {spec.name: pixels}) from error
        return dict(zip(session.outputs, outputs, strict=True))

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        session = self.session
        return dict(zip(session.outputs, session.run(inputs), strict=True))

    def describe(self) -> dict[str, str]:
        """Runtime and version, device, execution providers in use, threads, plugin library."""
        return {
            "runtime": "onnxruntime",
            "version": str(import_onnxruntime().__version__),
            "device": self.device,
            "providers": ", ".join(self._providers),
            "threads": str(self._threads or "one per core"),
            "plugin": "none" if self._plugin is None else self._plugin.name,
        }

    def close(self) -> None:
        """Release the session."""
        self._session = self._normalizer = None


def _unused(device: str) -> MissingDependencyError:
    reason = cuda_problem() or "onnxruntime gives no reason"
    return MissingDependencyError(f"device {device} was requested, but onnxruntime cannot use it: {reason}")


def _plugin_library(target: Device, required: bool) -> Path | None:
    """The plugin library, if it has kernels that run on a device.

    Raises:
        MissingDependencyError: it is required and is not built, or its kernels do not run there.
    """
    from stn_infer import plugin

    if required:
        plugin.load()  # raises with the reason
    found = plugin.info()
    problem = None if target.kind == "cpu" else plugin.cuda_problem(target.index)
    if found.path is not None and found.onnxruntime and problem is None:
        return found.path
    if required:
        raise MissingDependencyError(
            problem or f"{found.path} has no onnxruntime ops; build it again with `stn-infer plugin build`"
        )
    if found.cuda and problem is not None:
        plugin.warn_of(problem, "onnxruntime's operators")
    return None


def _holds_bfloat16(model: Path | bytes) -> bool:
    """Whether the weights of a model that onnxruntime rejects are in bfloat16."""
    import onnx

    loaded = onnx.load(model, load_external_data=False) if isinstance(model, Path) else onnx.load_from_string(model)
    return any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in loaded.graph.initializer)


def cuda_problem() -> str | None:
    """Why onnxruntime's CUDA execution provider does not work, or None if its libraries and the driver load."""
    ort = import_onnxruntime()
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        built = " ".join(onnxruntimes()) or "onnxruntime"
        return f"this onnxruntime is built without CUDA; pip uninstall -y {built}, then {install('gpu')}"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) on this machine"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return f"the NVIDIA driver finds no GPU (CUDA driver error {status})"
    preload_cuda(ort)
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return f"its CUDA execution provider does not load: {error}"
    return None


def preload_cuda(ort: Any) -> None:
    """Load the CUDA libraries from pip packages; a missing one makes the execution provider fail to load."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot find
            preload()


def _spec(value: Any) -> TensorSpec:
    if value.type == "tensor(bfloat16)":
        raise ModelError(
            f"{value.name!r} is bfloat16, which onnxruntime's Python API does not support; "
            "export the model with float32 inputs and outputs"
        )
    if value.type not in _DTYPES:
        raise ModelError(f"{value.name!r} has type {value.type}; expected a numeric tensor")
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else None for axis in value.shape)
    batch = next((axis for axis in value.shape[:1] if isinstance(axis, str) and axis), "batch")
    return TensorSpec(value.name, shape, np.dtype(_DTYPES[value.type]), batch)
