"""The ways of running a model that a benchmark compares, and why one cannot be had."""

from __future__ import annotations

from collections.abc import Callable

from stn_infer.benchmarking.harness.runner import OpenVariant
from stn_infer.benchmarking.prepare.case import Prepared
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.variants.names import _END_TO_END, _GPU_ONLY
from stn_infer.errors import MissingDependencyError, ModelError, one_line


def open_variant(name: str, prepared: Prepared, device: str, threads: int, method: Method) -> OpenVariant:
    """Open one.

    Args:
        name: a key of :data:`VARIANTS`, or ``package.module:function`` of a function that takes the other four
            arguments and opens a runner of one's own.
        prepared: the model on disk.
        device: ``cpu`` or ``cuda:N``.
        threads: threads inside one operator.
        method: boundary and cache.

    Raises:
        StnInferError: it cannot be had here; the message says why.
    """
    if ":" in name:
        return _brought(name)(prepared, device, threads, method)
    if device == "cpu" and name in _GPU_ONLY:
        raise MissingDependencyError(f"{_GPU_ONLY[name]} a GPU, the device is cpu")
    if method.boundary == "end-to-end":
        if name not in _END_TO_END:
            raise ModelError(f"`run` has no such backend; end to end there are {', '.join(_END_TO_END)}")
        from stn_infer.benchmarking.variants.end_to_end import EndToEnd

        return EndToEnd(name, prepared, device, threads)
    if name.startswith("ort"):
        from stn_infer.benchmarking.variants.ort import open_ort

        return open_ort(name, prepared, device, threads, method)
    if name.startswith("trt"):
        from stn_infer.benchmarking.variants.tensorrt import TrtVariant

        return TrtVariant(name, prepared, device, method)
    from stn_infer.benchmarking.variants.pytorch import TorchVariant

    return TorchVariant(name, prepared, device, threads, method)


def _brought(name: str) -> Callable[[Prepared, str, int, Method], OpenVariant]:
    """What a name with a colon names."""
    import importlib

    module, _, function = name.partition(":")
    try:
        opener: Callable[[Prepared, str, int, Method], OpenVariant] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"the variant {name} cannot be imported: {one_line(error)}") from None
    return opener
