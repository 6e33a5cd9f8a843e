"""Opens a variant by its name, or says why it is not available."""

from __future__ import annotations

from collections.abc import Callable

from stn_infer.benchmarking.harness.variant import OpenVariant
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.benchmarking.variants.names import END_TO_END, GPU_ONLY
from stn_infer.errors import MissingDependencyError, ModelError, one_line


def open_variant(name: str, setup: Setup) -> OpenVariant:
    """Open one.

    Args:
        name: a key of :data:`~stn_infer.benchmarking.variants.names.VARIANTS`, or ``package.module:function`` of a
            function of your own that takes the other argument and opens a variant.
        setup: the model on disk, the device, the threads and the method.

    Raises:
        StnInferError: it is not available here; the message says why.
    """
    if ":" in name:
        return _own(name)(setup)
    if setup.device == "cpu" and name in GPU_ONLY:
        raise MissingDependencyError(f"{GPU_ONLY[name]} a GPU, the device is cpu")
    if setup.method.boundary == "end-to-end":
        if name not in END_TO_END:
            raise ModelError(f"`run` has no such backend; end to end there are {', '.join(END_TO_END)}")
        from stn_infer.benchmarking.variants.end_to_end import EndToEnd

        return EndToEnd(name, setup)
    if name.startswith("ort"):
        from stn_infer.benchmarking.variants.ort import OrtVariant

        return OrtVariant(name, setup)
    if name.startswith("openvino"):
        from stn_infer.benchmarking.variants.openvino import OpenVinoVariant

        return OpenVinoVariant(name, setup)
    if name.startswith("trt"):
        from stn_infer.benchmarking.variants.tensorrt import TrtVariant

        return TrtVariant(name, setup)
    from stn_infer.benchmarking.variants.pytorch import TorchVariant

    return TorchVariant(name, setup)


def _own(name: str) -> Callable[[Setup], OpenVariant]:
    """The function that a name with a colon names."""
    import importlib

    module, _, function = name.partition(":")
    try:
        opener: Callable[[Setup], OpenVariant] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"the variant {name} cannot be imported: {one_line(error)}") from None
    return opener
