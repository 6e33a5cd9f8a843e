"""Pixels to a model's numbers on the device of a backend: a quarter of the bytes go there.

The operations are those of :func:`stn_infer.preprocess.pixels.normalize`, in float32 and in the same order. On a CPU
that function is the faster one, because it keeps a few images in the cache through all steps.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import InputError
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess
from stn_infer.proto.session import Provider, Session, open_session

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]


def pixel_input(specs: Sequence[TensorSpec], pixels: Pixels) -> TensorSpec:
    """The model's input that ``pixels`` are for.

    Raises:
        InputError: the model has other inputs than one of [N, C, H, W], or ``pixels`` is not uint8 of four axes.
    """
    if len(specs) != 1 or len(specs[0].shape) != 4:
        raise InputError(f"pixels are for a model with one input [N, C, H, W], not {', '.join(s.name for s in specs)}")
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise InputError(f"pixels are uint8 [N, C, H, W], given {pixels.dtype} of {pixels.ndim} axes")
    return specs[0]


def as_input(spec: TensorSpec, pixels: Pixels, preprocess: Preprocess) -> dict[str, Array]:
    """What :meth:`~stn_infer.backends.base.Backend.run` takes instead of pixels: normalized here."""
    return {spec.name: normalize(pixels, preprocess).astype(spec.dtype, copy=False)}


def interleaved(pixels: Pixels) -> tuple[Pixels, bool]:
    """Pixels [N, C, H, W] as they are best copied, and whether that is [N, H, W, C], as decoders write them."""
    return (pixels, False) if pixels.flags.c_contiguous else (pixels.transpose(0, 2, 3, 1), True)


def normalize_on_device(pixels: Tensor, preprocess: Preprocess, out: Tensor) -> None:
    """Write the values of ``pixels``, uint8 [N, C, H, W] in any memory layout, into ``out`` of the same shape.

    Args:
        pixels: on any device.
        preprocess: its ``scale``, ``gamma``, ``mean`` and ``std`` are applied.
        out: on the same device, in a floating-point type.
    """
    import torch

    values = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    values.copy_(pixels)
    values.mul_(_float32(preprocess.scale))
    if preprocess.gamma != 1:
        values.pow_(_float32(preprocess.gamma))
    for part, mean in _channels(values, preprocess.mean):
        if mean != 0:
            part.sub_(mean)
    for part, std in _channels(values, preprocess.std):
        if std != 1:
            part.div_(std)
    if values is not out:
        out.copy_(values)


def _channels(values: Tensor, numbers: Sequence[float]) -> list[tuple[Tensor, float]]:
    """Each channel and its number; all channels at once if they have the same. As scalars they need no copy."""
    parts = (values,) if len(set(numbers)) == 1 else values.unbind(1)
    return [(part, _float32(number)) for part, number in zip(parts, numbers, strict=False)]


def _float32(number: float) -> float:
    return float(np.float32(number))


class OrtNormalizer:
    """Normalizes pixels in onnxruntime, on the device of a model's session, where the result stays.

    Args:
        spec: the model's input.
        provider: the execution provider of the model's session.
        device: onnxruntime's name and index of its device.
    """

    def __init__(self, spec: TensorSpec, provider: Provider, device: tuple[str, int]) -> None:
        self._spec, self._provider, self._device = spec, provider, device
        self._sessions: dict[tuple[Preprocess, bool], Session] = {}
        self._lock = threading.Lock()

    def run(self, pixels: Pixels, preprocess: Preprocess) -> Any:
        """The input's ``OrtValue`` on the device.

        Raises:
            ModelError: onnxruntime fails.
        """
        array, last = interleaved(pixels)
        with self._lock:
            session = self._sessions.get((preprocess, last))
            if session is None:
                session = self._sessions[preprocess, last] = self._opened(preprocess, last)
        given = np.ascontiguousarray(array)
        try:
            binding = session.raw.io_binding()
            binding.bind_cpu_input("pixels", given)
            binding.bind_output("values", *self._device)
            session.raw.run_with_iobinding(binding)
            return binding.get_outputs()[0]
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise session.failure(error, {"pixels": given}) from error

    def _opened(self, preprocess: Preprocess, last: bool) -> Session:
        content = normalization_graph(preprocess, self._spec.dtype, last)
        return open_session(content, label="the normalization of pixels", threads=1, providers=(self._provider,))


def normalization_graph(preprocess: Preprocess, dtype: np.dtype[Any], last: bool) -> bytes:
    """An ONNX file from ``pixels``, uint8 [N, C, H, W] or (``last``) [N, H, W, C], to ``values`` [N, C, H, W].

    Args:
        preprocess: its ``scale``, ``gamma``, ``mean`` and ``std`` are applied.
        dtype: of the values.
    """
    from onnx import NodeProto, TensorProto, helper, numpy_helper

    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    name = "pixels"

    def add(operator: str, *numbers: float, **attributes: Any) -> None:
        nonlocal name
        names = [name]
        if numbers:
            shape = (len(numbers), 1, 1) if len(numbers) > 1 else ()
            constants.append(numpy_helper.from_array(np.array(numbers, np.float32).reshape(shape), f"c{len(nodes)}"))
            names.append(constants[-1].name)
        name = f"{operator.lower()}{len(nodes)}"
        nodes.append(helper.make_node(operator, names, [name], **attributes))

    if last:
        add("Transpose", perm=[0, 3, 1, 2])
    add("Cast", to=TensorProto.FLOAT)
    add("Mul", preprocess.scale)
    if preprocess.gamma != 1:
        add("Pow", preprocess.gamma)
    if any(preprocess.mean):
        add("Sub", *preprocess.mean)
    if set(preprocess.std) != {1.0}:
        add("Div", *preprocess.std)
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    add("Cast", to=kind)
    nodes[-1].output[0] = "values"
    axes = ["n", "h", "w", "c"] if last else ["n", "c", "h", "w"]
    graph = helper.make_graph(
        nodes,
        "normalization",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, axes)],
        [helper.make_tensor_value_info("values", kind, ["n", "c", "h", "w"])],
        constants,
    )
    opset = helper.make_opsetid("", 18)
    content: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    return content
