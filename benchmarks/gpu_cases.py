"""The cases of ``gpu.py``: warps (``gpu_warps.py``), whole networks, and the op in onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_warps import WARPS, Call, Warp, Work, inputs, warp
from stn_infer import plugin
from stn_infer.errors import MissingDependencyError
from stn_infer.fused import composed
from stn_infer.layers import SpatialTransformer
from stn_infer.samplers import SamplerSpec
from stn_infer.transforms import Affine

PARTS = ("warps", "networks", "onnxruntime")
_BATCHES = (1, 256)
_IN_FILES = (Warp((1024, 1, 28, 28)), Warp((64, 3, 224, 224)), Warp((256, 64, 28, 28)))


def graph_of(call: Call, device: torch.device) -> Call:
    """``call`` captured in a CUDA graph with its tensors; on a CPU, ``call`` itself."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def network(batch: int, device: torch.device, compiled: bool = True) -> Work:
    """The whole trained tutorial STN: in eager PyTorch, fused, compiled, and fused in a CUDA graph."""
    from stn_infer.sources.load import load_source

    loaded = load_source("tutorial-stn-r")
    plain: Any = loaded.module.eval()
    image = torch.rand(batch, *loaded.input_shapes[0], generator=torch.Generator().manual_seed(0)).to(device)
    expected = copy.deepcopy(plain).double().to(device)(image.double())
    plain = plain.to(device)
    # the same layers with this project's transformer; the tutorial's own code calls affine_grid and grid_sample
    localization = torch.nn.Sequential(plain.localization, plain.head)
    transformer = SpatialTransformer(
        localization, Affine(), loaded.input_shapes[0][1:], identity_init=False, fused=True
    ).to(device)
    fused = torch.nn.Sequential(transformer, plain.classifier).eval()
    calls: dict[str, Call] = {
        "eager": lambda: plain(image),
        "fused": lambda: fused(image),
        "graph, eager": graph_of(lambda: plain(image), device),
        "graph, fused": graph_of(lambda: fused(image), device),
    }
    if compiled:
        program = torch.compile(plain, dynamic=False)
        calls["compile"] = lambda: program(image)  # type: ignore[no-untyped-call]
    targets = {"eager": 5.0 if batch == 1 else 2.0}
    tolerance = 1e-3 * float(expected.abs().max())
    return Work(f"tutorial-stn, batch {batch}", calls, expected, tolerance, "graph, fused", targets, False)


def in_onnxruntime(case: Warp, device: torch.device) -> Work:
    """One portable node in onnxruntime on this device, by the function in the file and by the op; tensors stay put.

    Raises:
        ImportError: onnx is not installed.
        MissingDependencyError: there is no onnxruntime, or none for the device.
    """
    from benchmarks.op_files import op_file
    from stn_infer.backends.ort import cuda_problem
    from stn_infer.proto.session import CPU, import_onnxruntime, open_session

    import_onnxruntime()
    if device.type == "cuda" and (problem := cuda_problem()) is not None:
        raise MissingDependencyError(problem)
    image, theta, basis = inputs(case, device)
    size = case.size
    model = op_file("affine", case.shape[1:], basis.cpu().numpy(), size, SamplerSpec()).SerializeToString()
    providers = CPU
    if device.type == "cuda":
        providers = (("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}),)

    def bound(library: bool) -> Call:
        path = plugin.library_path() if library else None
        session = open_session(model, spin="always", providers=providers, library=path).raw
        output, binding = torch.empty(case.shape, device=device), session.io_binding()
        where = (device.type, device.index or 0, np.float32)
        for name, tensor in (("input", image), ("theta", theta)):
            binding.bind_input(name, *where, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("output", *where, case.shape, output.data_ptr())

        def run() -> Tensor:
            session.run_with_iobinding(binding)  # waits for its own stream
            return output

        return run

    exact = composed(image.double(), theta.double(), basis.double(), "affine", size)
    calls = {"function": bound(False), "op": bound(True)}
    # the bindings only store the addresses of images and thetas
    return Work(
        f"onnxruntime {case.name}", calls, exact, case.tolerance, "op", {"function": 1.0}, False, kept=(image, theta)
    )


def cases(
    parts: tuple[str, ...], device: torch.device, *, tiny: bool, compiled: bool
) -> Iterator[tuple[str, Callable[[], Work]]]:
    """All cases by name; each is created when it is measured, so that memory is released in between."""

    def sized(warps: Sequence[Warp]) -> Sequence[Warp]:
        return [case.tiny() for case in warps] if tiny else warps

    if "warps" in parts:
        for case in sized(WARPS):
            yield case.name, partial(warp, case, device, compiled)
    if "networks" in parts:
        for batch in (1, 3) if tiny else _BATCHES:
            yield f"network, batch {batch}", partial(network, batch, device, compiled)
    if "onnxruntime" in parts:
        for case in sized(_IN_FILES):
            yield f"onnxruntime {case.name}", partial(in_onnxruntime, case, device)
