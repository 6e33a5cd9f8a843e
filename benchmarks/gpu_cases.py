"""The cases of ``gpu.py``: warps of every kind and layout, whole networks, and the op in onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stn_infer import plugin
from stn_infer.errors import MissingDependencyError
from stn_infer.fused import composed, spatial_transformer
from stn_infer.fusion.basis import canonical_basis
from stn_infer.layers import SpatialTransformer
from stn_infer.samplers import SamplerSpec
from stn_infer.transforms import Affine

PARTS = ("warps", "networks", "onnxruntime")
_ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

Shape = tuple[int, int, int, int]
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Warp:
    """One warp of the op, with zeros padding.

    Attributes:
        shape: of the images [N, C, H, W]; the output has the same size.
        dtype: of the images.
        kind: ``affine``, ``projective``, or ``basis`` of ``rows`` rows.
        mode: of the sampler.
        channels_last: the images' memory format.
        rows: K.
        targets: a variant to the minimum ratio of its time on the device to the fused warp's.
    """

    shape: Shape
    dtype: torch.dtype = torch.float32
    kind: str = "affine"
    mode: str = "bilinear"
    channels_last: bool = False
    rows: int = 3
    targets: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The shape, the type, and settings that differ from the defaults."""
        kind = {"affine": "", "basis": f"basis of {self.rows} rows"}.get(self.kind, self.kind)
        unusual = (kind, "" if self.mode == "bilinear" else self.mode, "channels last" if self.channels_last else "")
        text = f"{'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')}"
        return ", ".join(filter(None, (text, *unusual)))

    @property
    def tolerance(self) -> float:
        """The error of rounding the result, plus that of float32 coordinates: 2^-20 of the longer side."""
        return _ROUNDING[self.dtype] + 2 * max(self.shape[2:]) * 2.0**-21

    def tiny(self) -> Warp:
        """The same warp of a few small images."""
        n, c, h, w = self.shape
        return replace(self, shape=(min(n // 64, 16), min(c, 5), min(h, 12), min(w, 17)))


_PYTORCH = {"eager": 3.0, "compile": 1.5}
_COPY = {"copy": 0.8}
_PHOTOS: Shape = (256, 3, 224, 224)
_FEATURES: Shape = (256, 64, 28, 28)
WARPS = (
    Warp((1024, 1, 28, 28), targets=_PYTORCH),
    Warp((64, 3, 224, 224), targets=_PYTORCH),
    Warp(_FEATURES, targets=_PYTORCH),
    Warp(_PHOTOS, targets=_COPY),
    Warp(_PHOTOS, torch.float16, targets=_COPY),
    Warp(_PHOTOS, torch.bfloat16),
    Warp(_FEATURES, torch.float16),
    Warp(_FEATURES, channels_last=True),
    Warp(_FEATURES, torch.float16, channels_last=True),
    Warp(_PHOTOS, channels_last=True),
    Warp(_PHOTOS, kind="projective"),
    Warp(_PHOTOS, kind="basis", rows=19),
    Warp(_PHOTOS, mode="nearest"),
    Warp((64, 3, 224, 224), mode="bicubic"),
    Warp((65536, 1, 4, 4)),
    Warp((4096, 1, 1, 1000)),
)
_BATCHES = (1, 256)


@dataclass(frozen=True)
class Work:
    """The variants of one case, and the targets of one of them.

    Attributes:
        case: its name.
        calls: variants by name; ``copy`` is not verified.
        expected: the expected output in float64.
        tolerance: the limit on the largest absolute error.
        ours: the variant that the targets apply to.
        targets: another variant to the minimum speedup over it.
        on_device: whether speedups are of times on the device, or of latencies.
        bytes: the minimum number of bytes to move; 0 if it is not counted.
        nearest: whether a value may come from another pixel.
        kept: objects that must stay in memory during the measurement.
    """

    case: str
    calls: Mapping[str, Call]
    expected: Tensor
    tolerance: float
    ours: str
    targets: Mapping[str, float]
    on_device: bool
    bytes: int = 0
    nearest: bool = False
    kept: tuple[Tensor, ...] = ()

    def error_of(self, output: Tensor) -> float:
        """The error as in :class:`Row`."""
        off = (output.double() - self.expected).abs()
        return float((off > self.tolerance).double().mean() if self.nearest else off.max())


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


def inputs(case: Warp, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random images, thetas near the identity, and the basis."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(case.shape, generator=generator).to(device, case.dtype)
    if case.channels_last:
        image = image.to(memory_format=torch.channels_last)
    sides = 3 if case.kind == "projective" else 2
    theta = torch.eye(sides, case.rows) + 0.15 * torch.randn(case.shape[0], sides, case.rows, generator=generator)
    if case.kind == "projective":
        theta[:, 2] = torch.tensor([0.05, -0.05, 1.2])
    basis = torch.from_numpy(canonical_basis(case.shape[2:])).float()
    more = 0.1 * torch.randn(case.rows - 3, basis.shape[1], generator=generator)
    return image, theta.to(device), torch.cat([basis, more]).to(device)


def warp(case: Warp, device: torch.device, compiled: bool = True) -> Work:
    """One warp: fused, with PyTorch's operators, compiled if ``compiled``, and a copy of as many bytes.

    The copy moves the minimum that a warp must move: each image is read and written once.
    """
    image, theta, basis = inputs(case, device)
    size, target, sampler = case.shape[2:], torch.empty_like(image), SamplerSpec(case.mode)

    def eager() -> Tensor:
        if case.kind != "affine" or case.dtype != torch.float32:
            return composed(image, theta, basis, case.kind, size, sampler)
        grid = F.affine_grid(theta, list(case.shape), align_corners=False)
        return F.grid_sample(image, grid, case.mode, align_corners=False)

    calls: dict[str, Call] = {
        "fused": lambda: spatial_transformer(image, theta, basis, case.kind, size, sampler),
        "eager": eager,
        "copy": lambda: target.copy_(image),
    }
    if compiled and "compile" in case.targets:
        calls["compile"] = torch.compile(eager, dynamic=False)
    exact = composed(image.double(), theta.double(), basis.double(), case.kind, size, sampler)
    moved = 2 * image.numel() * image.element_size()
    return Work(
        case.name, calls, exact, case.tolerance, "fused", case.targets, True, moved, nearest=case.mode == "nearest"
    )


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
    size = case.shape[2:]
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
    warps = [case.tiny() for case in WARPS] if tiny else WARPS
    if "warps" in parts:
        for case in warps:
            yield case.name, lambda case=case: warp(case, device, compiled)  # type: ignore[misc]
    if "networks" in parts:
        for batch in (1, 3) if tiny else _BATCHES:
            yield f"network, batch {batch}", lambda batch=batch: network(batch, device, compiled)  # type: ignore[misc]
    if "onnxruntime" in parts:
        for case in (case for case in warps if "eager" in case.targets):
            yield f"onnxruntime {case.name}", lambda case=case: in_onnxruntime(case, device)  # type: ignore[misc]
