"""``bench``: measure a model's latency in every runtime that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from stn_infer.api.source import OnnxModel, input_sizes, load_original, metadata_of, names_the_file, resolve_model
from stn_infer.benchmarking.request import Case, Method, Progress, Request, check_batch_sizes
from stn_infer.benchmarking.result import BenchResult
from stn_infer.benchmarking.variants.names import VARIANTS
from stn_infer.budget import Budget
from stn_infer.errors import StnInferError, UsageError
from stn_infer.extras import require
from stn_infer.metadata import Precision
from stn_infer.sources.hub import local
from stn_infer.sources.identify import identify
from stn_infer.sources.load import LoadedModel, refused_code
from stn_infer.sources.reference import WeightsLike

if TYPE_CHECKING:
    from stn_infer.benchmarking.prepare.case import CaseModel


@names_the_file
def bench(
    model: str | Path,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    variants: Sequence[str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    source: str | None = None,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    precision: Precision = "fp32",
    inputs: Sequence[str | Path] | None = None,
    tolerance: float | None = None,
    method: Method | None = None,
    output: Path | None = None,
    command: str = "",
    say: Progress = lambda text: None,
    time_limit: float | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
    strict: bool = False,
) -> BenchResult:
    """Measure a model's latency in every variant, after verifying each against eager PyTorch in float64.

    All variants get the same inputs and take turns; each round runs in a fresh process. A variant is not timed if its
    outputs are out of tolerance or its samplers do not run on the device. benchmarks/METHOD.md describes the method.

    Args:
        model: any source that ``export`` takes, or an ONNX file; for one without a source, only the runtimes that
            take ONNX files are measured, verified against onnxruntime without optimizations.
        batch_sizes: samples per call; each batch size is measured separately.
        variants: names in :data:`~stn_infer.benchmarking.variants.names.VARIANTS`; None: all.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: threads inside one operator, in every runtime; None: one per physical core.
        source: for an ONNX file, the source that it was exported from; None: the one that its metadata names.
        weights: as for ``export``.
        input_shapes: as for ``export``.
        precision: of weights and images. ``int8`` is for the runtimes that take ONNX files.
        inputs: images, folders or array files to run on, also as INT8 calibration data; None: the package's digits if
            the model takes images, otherwise noise.
        tolerance: the limit on each output's error over its scale; None: 1e-5, 1e-4 where float64 is not possible, 1e-2
            for fp16, 5e-2 for bf16, 1e-1 for int8, and 1e-2 for an int8 file compared with itself.
        method: how samples are taken; None: the default :class:`~stn_infer.benchmarking.request.Method`.
        output: a JSON file that is updated with all finished rounds after each round.
        command: written into the result.
        say: called with the progress as text.
        time_limit: seconds; rounds that do not fit are left out, rows of those that do are cut short, and the result
            says so. Loading and compiling are not interrupted. None: no limit.
        allow_code: let a file, such as a recipe or an ONNX file's metadata, name Python code to run.
        budget: as for ``lint``.
        strict: at the end-to-end boundary, an error instead of a warning where the preprocessing had to be assumed.

    Returns:
        The result: a row for each variant and batch size, also for those that could not be timed, with the reason.
        ``result.get("ort", 64).median_ms`` is a figure, ``result.passed`` whether all outputs were right.

    Raises:
        UsageError: an unknown variant or precision, a batch size or a number of threads below 1.
        SourceError, ModelError: the model is not available.
        InputError: ``inputs`` cannot be read.
        OutputError: ``output`` cannot be written; said before anything is measured.
        MissingDependencyError: PyTorch is not installed.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"a precision is one of {', '.join(get_args(Precision))}, not {precision!r}")
    shapes = tuple(tuple(shape) for shape in input_shapes) if input_shapes else None
    checkpoint = str(weights) if weights else None
    fed = tuple(map(str, inputs)) if inputs else None
    case = Case(
        str(local(model)),
        source=source,
        weights=checkpoint,
        input_shapes=shapes,
        precision=precision,
        batch_sizes=check_batch_sizes(batch_sizes),
        inputs=fed,
    )
    request = make_request((case,), variants, device, threads, tolerance, method)
    return measure(
        request,
        output=output,
        command=command,
        say=say,
        time_limit=time_limit,
        allow_code=allow_code,
        budget=budget,
        strict=strict,
    )


def measure(
    request: Request,
    *,
    output: Path | None = None,
    earlier: BenchResult | None = None,
    command: str = "",
    say: Progress = lambda text: None,
    time_limit: float | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
    strict: bool = False,
) -> BenchResult:
    """Measure a request, or the part of it that ``earlier`` lacks; arguments and errors as :func:`bench`."""
    from stn_infer.benchmarking.harness.session import run_request

    def resolve(case: Case) -> CaseModel:
        found = resolve_case(case, allow_code=allow_code, budget=budget)
        if request.method.boundary == "end-to-end":
            _tell_assumption(found, strict)
        return found

    if time_limit is not None and not 0 < time_limit < inf:
        raise UsageError(f"the time limit is a number of seconds above 0, not {time_limit:g}")
    return run_request(
        request, resolve, output=output, earlier=earlier, command=command, say=say, time_limit=time_limit
    )


def check_code(file: Path, cases: Sequence[Case], variants: Sequence[str]) -> None:
    """Check that a suite or an earlier result names no Python code to run; recipes are checked where they are read.

    Raises:
        SourceError: a case's model, the source of a case's file, or a variant is package.module:function.
    """
    named = [name for case in cases for name in (case.model, case.source) if name and identify(name).kind == "factory"]
    for code in (*named, *(name for name in variants if ":" in name)):
        raise refused_code(file, code)


@names_the_file
def resolve_case(case: Case, *, allow_code: bool = False, budget: Budget | None = None) -> CaseModel:
    """Load the model that a case names.

    Raises:
        UsageError, SourceError, ModelError: the model cannot be loaded.
    """
    from stn_infer.benchmarking.prepare.case import CaseModel

    source, weights, shapes = case.source, case.weights, case.input_shapes
    found = resolve_model(
        case.model,
        source=source,
        weights=weights,
        input_shapes=shapes,
        of_original=True,
        allow_code=allow_code,
        budget=budget,
    )
    if isinstance(found, LoadedModel):
        return CaseModel(found)
    path, graph = Path(case.model), found.read()
    metadata = metadata_of(graph)
    problem = f"{path.name} does not name the source that it was exported from; give --source SOURCE"
    try:
        loaded = load_original(graph, source=source, weights=weights, input_shapes=shapes, allow_code=allow_code)
    except StnInferError as error:
        if case.source or case.weights or isinstance(error, UsageError):
            raise
        loaded = None
        problem = f"{path.name} was exported from {metadata.source}, which is not available here: {error}"
    return CaseModel(loaded, path, "" if loaded else problem, metadata.precision)


def _tell_assumption(found: CaseModel, strict: bool) -> None:
    """Warn, or raise an error, where files are read and nothing says how they become inputs."""
    from stn_infer.backends.base import TensorSpec
    from stn_infer.data.loader import resolve_preprocess, tell_assumption

    own = None if found.loaded is None else found.loaded.metadata.preprocess
    sizes: Sequence[tuple[int | None, ...]] = () if found.loaded is None else found.loaded.input_shapes
    if own is None and found.file is not None:
        graph = OnnxModel(found.file).read()
        own, sizes = metadata_of(graph).preprocess, input_sizes(graph)
    if own is None:
        float32 = np.dtype(np.float32)
        specs = [TensorSpec(f"input {i}", (None, *shape), float32) for i, shape in enumerate(sizes)]
        tell_assumption(resolve_preprocess(specs, None, None), None, None, strict=strict, takes=False)


def make_request(
    cases: Sequence[Case],
    variants: Sequence[str] | None,
    device: str,
    threads: int | None,
    tolerance: float | None,
    method: Method | None,
) -> Request:
    """Make a request, with defaults filled in.

    Raises:
        UsageError: an unknown variant or device, fewer than one thread, a cache that cannot be flushed, or the user's
            own inputs at the end-to-end boundary.
        InputError: an input does not exist.
        MissingDependencyError: PyTorch is not installed.
    """
    from stn_infer.backends.device import Device
    from stn_infer.benchmarking.harness.session import default_threads
    from stn_infer.data.batches import check_sources

    names = tuple(dict.fromkeys(VARIANTS if variants is None else variants))
    unknown = [name for name in names if name not in VARIANTS and ":" not in name]
    if unknown or not names:
        raise UsageError(
            f"variants are {', '.join(VARIANTS)} or package.module:function; got {', '.join(unknown) or 'none'}"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"the number of threads must be at least 1, got {threads}")
    target, method = str(Device.parse(device)), method or Method()
    if method.l2 == "flushed" and (target == "cpu" or method.boundary != "device"):
        raise UsageError(
            "the L2 cache can only be flushed on a GPU at the device boundary, where CUDA events time the calls; "
            f"got {target} at the {method.boundary} boundary"
        )
    for case in cases:
        if case.inputs and method.boundary == "end-to-end":
            raise UsageError(
                f"--inputs apply only at the boundaries host and device; at end-to-end, {case.model} reads files that "
                "bench writes: omit --inputs"
            )
        check_sources(case.inputs or ())
    require("torch", "bench computes its reference in float64 with")
    return Request(
        cases=tuple(cases),
        variants=names,
        device=target,
        threads=threads or default_threads(),
        tolerance=tolerance,
        method=method,
    )
