"""``best``: the precision, runtime, batch size and threads with which a model is fastest on this machine."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from stn_infer.api.source import (
    OnnxModel,
    check_shapes,
    input_sizes,
    load_original,
    metadata_of,
    names_the_file,
    resolve_model,
)
from stn_infer.benchmarking.choice import Bounds, Setting, choose, settings_of
from stn_infer.benchmarking.request import Method, Progress, check_batch_sizes
from stn_infer.budget import Budget
from stn_infer.errors import ModelError, StnInferError, UsageError
from stn_infer.extras import is_installed, require
from stn_infer.files import check_writable, temporary_folder
from stn_infer.metadata import Precision
from stn_infer.printing import Printed, counted
from stn_infer.sources.load import LoadedModel
from stn_infer.sources.reference import Weights, WeightsLike

if TYPE_CHECKING:
    import onnx

#: Between bench's --quick and its default; each variant in processes of its own, as in a service.
_METHOD = Method(
    rounds=2,
    seconds=0.6,
    samples=32,
    turns=2,
    warmup_seconds=0.1,
    warmup_limit=1.0,
    row_limit=4.0,
    traffic_seconds=1.0,
    separate=True,
)
_LEAST_S = 1.0  # of a benchmark, which always takes one sample of each row
_WIDTH = 80


@dataclass(frozen=True, kw_only=True)
class BestReport(Printed):
    """The result of ``best``; as text, what the command prints.

    Attributes:
        path: the file written.
        size: its size in bytes, without external data.
        device: what was measured on.
        chosen: the setting in which it is the fastest that meets the bounds.
        settings: all that were measured, fastest first.
        refused: what was not timed, or not made, to the reason.
        command: the command line that runs the file in the chosen setting.
    """

    path: Path
    size: int
    device: str
    chosen: Setting
    settings: tuple[Setting, ...]
    refused: tuple[tuple[str, str], ...]
    command: str

    def lines(self) -> list[str]:
        """A table of at most 80 columns, what was not timed, the file and the command."""
        lines = [f"   {'precision':<9}  {'runtime':<12} {'batch':>6} {'threads':>7} {'callers':>7} "]
        lines[0] += f"{'ms/batch':>9} {'samples/s':>10} {'error':>8}"
        for each in self.settings:
            mark = "->" if each == self.chosen else ""
            lines.append(
                f"{mark:<2} {each.precision:<9}  {each.backend:<12} {each.batch_size:>6} {each.threads:>7} "
                f"{each.callers:>7} {each.median_ms:>9.3g} {each.throughput:>10.0f} {each.error:>8.1e}"
            )
        for what, reason in self.refused:
            lines += wrap(f"note: {what} left out: {reason}", _WIDTH, subsequent_indent="  ")
        lines.append(f"wrote {self.path} ({self.size / 1024:.0f} KiB): {self.chosen}")
        return [*lines, f"run it: {self.command}"]


@dataclass(frozen=True)
class _File:
    """A verified file on disk, and the error of its conversion."""

    precision: Precision
    path: Path
    error: float


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The arguments of :func:`best` that files and measurements depend on."""

    max_error: float | None
    batch_sizes: tuple[int, ...]
    device: str
    inputs: tuple[str | Path, ...]
    input_shapes: Sequence[tuple[int, ...]] | None
    allow_code: bool
    budget: Budget | None
    say: Progress

    def tolerance(self, precision: Precision) -> float | None:
        """The bound in place of a reduced precision's limit, where it is larger; None: the limit stays."""
        from stn_infer.precision.lower import TOLERANCES

        limit = TOLERANCES[precision][0] if precision in TOLERANCES else math.inf
        return self.max_error if self.max_error is not None and self.max_error > limit else None


@names_the_file
def best(
    model: str | Path | LoadedModel,
    output: str | Path,
    *,
    latency_ms: float | None = None,
    max_error: float | None = None,
    time_limit: float = 120.0,
    batch_sizes: Sequence[int] = (1, 16, 64),
    threads: Sequence[int] | None = None,
    device: str = "cpu",
    inputs: Sequence[str | Path] | None = None,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
    say: Progress = lambda text: None,
) -> BestReport:
    """Write the fastest verified file of a model on this machine, and store how to run it for ``run --backend auto``.

    Each precision is converted and verified as by ``export``, then measured as by ``bench`` in each installed runtime.
    With fewer threads than cores, throughput is that of as many concurrent callers as there is room for, as in ``run``.
    The first figure is samples per second; see :func:`~stn_infer.benchmarking.choice.choose`.

    Args:
        model: any source that ``export`` takes, or an ONNX file. A file in float32 whose source is known (a shipped
            model's) is tried in other precisions too; any other keeps its own.
        output: the file to write; an existing one is replaced, but kept if an error occurs.
        latency_ms: the largest median time of a batch, milliseconds; None: any.
        max_error: the largest error of an output over its scale; None: the limit of each precision, as in ``export``.
            A larger value than that limit takes its place.
        time_limit: seconds; what does not fit is left out, and said. Float32, or the file's own precision, is always
            measured.
        batch_sizes: samples per call.
        threads: threads inside one operator; None: 1 and one per physical core, on a GPU only the latter.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        inputs: images, folders or array files: the INT8 calibration data, the samples on which precisions are compared,
            and what is fed. None: no int8.
        weights, input_shapes: as for ``export``.
        allow_code: let a file, such as a recipe, name Python code to run.
        budget: as for ``lint``.
        say: called with the progress as text.

    Raises:
        UsageError: a bound, a batch size or a number of threads is not positive, or ``output`` would replace data that
            the file refers to.
        SourceError, WeightsError, ModelError, ExportError: the model is not available, or no runtime takes it.
        InputError: ``inputs`` cannot be read.
        VerificationError: nothing meets the bounds, or no file is right; none is written.
        OutputError: the file, or the choice, cannot be written.
        MissingDependencyError: PyTorch is not installed.
    """
    from stn_infer.backends.device import Device
    from stn_infer.benchmarking.stored import store
    from stn_infer.data.batches import check_sources

    for name, bound in (("--latency-ms", latency_ms), ("--max-error", max_error), ("--time-limit", time_limit)):
        if bound is not None and not 0 < bound < math.inf:
            raise UsageError(f"{name} is a number above 0, not {bound:g}")
    target, path = str(Device.parse(device)), Path(output)
    asked = _Asked(
        max_error=max_error,
        batch_sizes=check_batch_sizes(batch_sizes),
        device=target,
        inputs=tuple(inputs or ()),
        input_shapes=input_shapes,
        allow_code=allow_code,
        budget=budget,
        say=say,
    )
    if threads is not None and (not threads or min(threads) < 1):
        raise UsageError(f"numbers of threads are at least 1, given {', '.join(map(str, threads)) or 'none'}")
    check_sources(asked.inputs)
    check_writable(path, inputs=(model, None if weights is None else Weights.of(weights).file, *asked.inputs))
    require("torch", "best computes its reference in float64 with")
    counts = _threads(threads, target)
    started = time.monotonic()
    found = resolve_model(
        model,
        weights=weights,
        input_shapes=input_shapes,
        of_original=True,
        allow_code=allow_code,
        budget=budget,
    )
    if isinstance(found, OnnxModel):
        if weights is not None:
            raise UsageError(f"{found.name} contains its weights; omit --weights")
        if input_shapes is not None:
            check_shapes(input_sizes(found.read()), input_shapes, open_sizes=True)
        _check_beside(found, path)
    settings: list[Setting] = []
    refused: list[tuple[str, str]] = []
    files: dict[Precision, _File] = {}
    with temporary_folder(path.parent, ".stn-infer-") as scratch:
        candidates = _Candidates(found, scratch, path.name, asked)
        for index, precision in enumerate(candidates.precisions):
            if index and time.monotonic() - started > time_limit:
                refused.append((precision, f"the time limit of {time_limit:g} s was over"))
                continue
            say(f"making the file in {precision}")
            try:
                file = candidates.make(precision)
                if index and max_error is not None and file.error > max_error:
                    refused.append((precision, f"its error {file.error:.1e} is above --max-error {max_error:g}"))
                    continue
                files[precision] = file
                for place, count in enumerate(counts):
                    left = (len(candidates.precisions) - index) * len(counts) - place
                    share = (time_limit - (time.monotonic() - started)) / left
                    measured, failed = _measured(file, count, asked, max(_LEAST_S, share))
                    settings += measured
                    refused += [entry for entry in failed if entry not in refused]
            except StnInferError as error:
                if not index:
                    raise
                refused.append((precision, str(error)))
        refused += candidates.left_out
        if not settings and refused:
            what, reason = refused[0]
            raise ModelError(f"nothing could be timed, so no file was written; {what}: {reason}")
        chosen = choose(settings, Bounds(latency_ms, max_error))
        size = _publish(files[chosen.precision].path, path)
    if isinstance(found, OnnxModel) and isinstance(found.content, Path) and candidates.same_bytes:
        own = [setting for setting in settings if setting.precision == candidates.precisions[0]]
        if own:  # the other precisions are other files
            store(_sha256(found.content), target, choose(own, Bounds()))
    store(_sha256(path), target, chosen)
    command = ["stn-infer", "run", str(path), "INPUT", "-o", "predictions", "--backend", "auto"]
    return BestReport(
        path=path,
        size=size,
        device=target,
        chosen=chosen,
        settings=tuple(sorted(settings, key=lambda setting: -setting.throughput)),
        refused=tuple(refused),
        command=shlex.join(command if target == "cpu" else [*command, "--device", target]),
    )


class _Candidates:
    """The files that are tried, each made in a folder of its own when it is asked for.

    Attributes:
        precisions: what is tried; the first is the file's own, or fp32.
        left_out: precisions that are not tried, to the reason.
        same_bytes: whether the first candidate is the file that was given.
    """

    def __init__(self, found: OnnxModel | LoadedModel, scratch: Path, name: str, asked: _Asked) -> None:
        self._found, self._scratch, self._name, self._asked = found, scratch, name, asked
        self._base: onnx.ModelProto | None = None
        self.left_out: list[tuple[str, str]] = []
        self.same_bytes = False
        own: Precision = "fp32"
        self._loaded = found if isinstance(found, LoadedModel) else None
        if isinstance(found, OnnxModel):
            graph = found.read()
            own = metadata_of(graph).precision
            if own == "fp32":
                self._loaded = self._original(graph)
        others: tuple[Precision, ...] = ("fp16",)
        if isinstance(found, LoadedModel) and asked.device != "cpu":
            others = ("fp16", "bf16")  # onnxruntime has no bf16 on a CPU
        self.precisions: tuple[Precision, ...] = (own, *(others if self._loaded is not None else ()))
        if self._loaded is not None and asked.inputs:
            self.precisions = (*self.precisions, "int8")
        elif self._loaded is not None:
            self.left_out.append(("int8", "it is calibrated on your own images; give --inputs PATH"))

    def _original(self, graph: onnx.ModelProto) -> LoadedModel | None:
        """The model that a float32 file was exported from, whose inputs decide the errors of other precisions."""
        from stn_infer.proto.load import external_tensors

        problem = "the file does not name the source that it was exported from"
        assert isinstance(self._found, OnnxModel) and isinstance(self._found.content, Path)
        try:
            if external_tensors(graph, self._found.content.parent):
                problem = "files with external data keep their precision"
            elif (loaded := self._load(graph)) is not None:
                return loaded
        except StnInferError as error:
            problem = str(error)
        self.left_out.append(("other precisions", problem))
        return None

    def _load(self, graph: onnx.ModelProto) -> LoadedModel | None:
        asked = self._asked
        return load_original(graph, input_shapes=asked.input_shapes, allow_code=asked.allow_code)

    def make(self, precision: Precision) -> _File:
        """Make and verify the file in a precision; the first of :attr:`precisions` is made first.

        Raises:
            StnInferError: it cannot be made, or is not right.
        """
        path = self._scratch / precision / self._name
        path.parent.mkdir()
        if precision == self.precisions[0]:
            return _File(precision, path, self._make_own(path))
        return _File(precision, path, self._convert(precision, path))

    def _make_own(self, path: Path) -> float:
        from stn_infer.api.export import export
        from stn_infer.api.optimize import optimize
        from stn_infer.fusion.op import is_op
        from stn_infer.proto.load import external_tensors

        if isinstance(self._found, LoadedModel):
            return max(output.scaled for output in export(self._found, path).verification.outputs)
        given, model = self._found.content, self._found.read()
        assert isinstance(given, Path)
        if any(map(is_op, model.graph.node)) and not external_tensors(model, given.parent):
            self.same_bytes = True
            shutil.copyfile(given, path)
            return 0.0  # the benchmark compares it with its source
        return optimize(given, path).comparison.worst

    def _convert(self, precision: Precision, path: Path) -> float:
        from stn_infer.api.export import export
        from stn_infer.api.metadata import set_metadata
        from stn_infer.api.trusted import mark_tried
        from stn_infer.data.batches import MOST_SAMPLES, load_for_file
        from stn_infer.precision.lower import lower
        from stn_infer.proto.load import load_model

        assert self._loaded is not None
        tolerance, inputs = self._asked.tolerance(precision), self._asked.inputs
        if precision == "bf16":  # needs another opset
            report = export(self._loaded, path, precision=precision, tolerance=tolerance, calibration=inputs)
            assert report.precision is not None
            return report.precision.output_error
        if self._base is None:
            self._base = load_model(self._scratch / "fp32" / self._name)
        metadata = metadata_of(self._base)
        samples = None
        if inputs:
            samples = load_for_file(inputs, self._base, metadata.preprocess, most=MOST_SAMPLES)
        made, found = lower(self._loaded, self._base, precision, samples, tolerance=tolerance)
        found.check(self._loaded.name)
        set_metadata(made, replace(metadata, precision=precision))
        path.write_bytes(made.SerializeToString())
        mark_tried(path, metadata.batch_dependent)
        return found.output_error


def _measured(
    file: _File, threads: int, asked: _Asked, seconds: float
) -> tuple[tuple[Setting, ...], tuple[tuple[str, str], ...]]:
    """Benchmark one file with one number of threads: the settings, and what was not timed."""
    from stn_infer.api.bench import bench

    callers = len(os.sched_getaffinity(0)) // threads if asked.device == "cpu" else 1
    result = bench(
        file.path,
        batch_sizes=asked.batch_sizes,
        variants=tuple(_variants(asked.device)),
        device=asked.device,
        threads=threads,
        input_shapes=asked.input_shapes,
        inputs=asked.inputs or None,
        tolerance=asked.tolerance(file.precision),
        method=replace(_METHOD, concurrency=(callers,) if callers > 1 else ()),
        say=lambda text: asked.say(f"{file.precision}, {counted(threads, 'thread')}: {text}"),
        time_limit=seconds,
        allow_code=asked.allow_code,
        budget=asked.budget,
    )
    return settings_of(result, file.precision, file.error)


def _threads(given: Sequence[int] | None, device: str) -> tuple[int, ...]:
    from stn_infer.benchmarking.harness.session import default_threads

    if given is not None:
        return tuple(dict.fromkeys(given))
    return (default_threads(),) if device != "cpu" else tuple(dict.fromkeys((default_threads(), 1)))


def _variants(device: str) -> Iterator[str]:
    """The variants that run a file as the backends of ``run`` do here."""
    from stn_infer import plugin
    from stn_infer.backends.device import Device

    if device == "cpu":
        yield "ort-fused" if plugin.available() else "ort"
        if is_installed("openvino"):
            yield "openvino-fused" if _has_extension() else "openvino"
        return
    fused = plugin.available() and plugin.cuda_problem(Device.parse(device).index) is None
    yield "ort-fused-graph" if fused else "ort-graph"
    if is_installed("tensorrt"):
        yield "trt-fused" if fused else "trt"
    if is_installed("tensorrt_rtx"):
        yield "trt-rtx"


def _has_extension() -> bool:
    from stn_infer.backends.openvino import extension

    try:
        extension.find()
    except StnInferError:
        return False
    return True


def _check_beside(found: OnnxModel, output: Path) -> None:
    """Check that the file that is written replaces none that the given one refers to."""
    from stn_infer.api.optimize import check_data_stays
    from stn_infer.proto.load import external_tensors

    assert isinstance(found.content, Path)
    data = {place.path for _, place in external_tensors(found.read(), found.content.parent)}
    check_data_stays(found.content, data, output)


def _publish(made: Path, output: Path) -> int:
    """Move a file to its place, external data first; returns its size in bytes."""
    from stn_infer.api.optimize import external_path

    beside, size = external_path(made), made.stat().st_size
    if beside.exists():
        beside.replace(external_path(output))
    made.replace(output)
    return size


def _sha256(path: Path) -> str:
    from stn_infer.api.fingerprint import fingerprint

    return fingerprint(OnnxModel(path))
