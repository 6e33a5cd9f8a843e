"""``optimize``: repair and fuse an ONNX file, compare it with the original, and only then write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.budget import Budget
from stn_infer.errors import ModelError, UsageError, VerificationError, one_line
from stn_infer.files import check_writable, open_atomically, temporary_folder
from stn_infer.metadata import FUNCTIONS, Functions
from stn_infer.preprocess.rule import Preprocess
from stn_infer.printing import Printed
from stn_infer.progress import step

if TYPE_CHECKING:
    import onnx

    from stn_infer.fusion.fuse import Finding
    from stn_infer.proto.session import Stored
    from stn_infer.repairs.equivalence import Equivalence
    from stn_infer.repairs.passes import Rewritten
    from stn_infer.repairs.result import Repair

_MOST_IN_ONE_FILE = 1_900_000_000  # protobuf's limit is 2 GB


@dataclass(frozen=True)
class OptimizeReport(Printed):
    """The result of ``optimize``; as text, what the command prints.

    Attributes:
        path: the file written.
        size: its size in bytes, external data included.
        opset: the result's opset of the default domain.
        original_opset: the original's.
        findings: for each sampler, whether it was fused, and why not.
        repairs: what else was repaired, and what could not be.
        comparison: with the original; it is within tolerance.
        notes: remarks for the user.
    """

    path: Path
    size: int
    opset: int
    original_opset: int
    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...]
    comparison: Equivalence
    notes: tuple[str, ...]

    @property
    def fused(self) -> int:
        """The number of samplers that compute their grid from theta now."""
        return sum(finding.fused for finding in self.findings)

    @property
    def sampled(self) -> int:
        """The number of samplers that became ``stn::Sampler``."""
        return sum(finding.written and not finding.fused for finding in self.findings)

    def lines(self) -> list[str]:
        """One fact per line."""
        from stn_infer.fusion.fuse import describe

        lines = [
            f"{'repaired' if entry.done else 'not repaired'}: {entry.code}: {entry.message}" for entry in self.repairs
        ]
        lines += [f"note: {one_line(note)}" for note in self.notes]
        flips = max((output.flips for output in self.comparison.outputs), default=0.0)
        flipped = f", at most {flips:.2%} of an output's values flipped" if flips else ""
        lines.append(
            "verified against the original in onnxruntime: max relative output error "
            f"{self.comparison.worst:.1e}{flipped} ({self.comparison.runs})"
        )
        opset = f"opset {self.opset}"
        if self.opset != self.original_opset:
            opset += f", was {self.original_opset}"
        fused = f"{self.fused} of {len(self.findings)} samplers fused"
        if self.sampled:
            fused += f", {self.sampled} written as stn::Sampler"
        lines.append(f"wrote {self.path} ({self.size / 1024:.0f} KiB, {opset}); {fused}")
        unknown = any(entry.code == "custom-sampler" and not entry.done for entry in self.repairs)
        return [*([] if unknown and not self.findings else describe(self.findings).splitlines()), *lines]


def optimize(
    model: str | Path,
    output: str | Path,
    *,
    fix: bool = True,
    tolerance: float | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    functions: Functions = "keep",
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
    embed_preprocess: bool = False,
    source_size: tuple[int, int] | None = None,
    budget: Budget | None = None,
) -> OptimizeReport:
    """Rewrite an ONNX file: each GridSample whose grid is provably linear in its parameters becomes one fused op.

    Every other GridSample becomes ``stn::Sampler`` at the same grid, which the plugin library's kernels run.
    The result is compared with the original in onnxruntime, on random inputs, before it is written. External data stay
    external.

    Args:
        model: an ONNX file, opset 11 or later.
        output: the file to write; an existing one is replaced, but kept if an error occurs.
        fix: also repair what ``lint`` marks as fixable.
        tolerance: the limit on each output's error over its scale; None: 1e-5.
        input_shapes: for dynamic sizes, by input name: the shape of the whole input, or of one sample.
        functions: ``keep``: fused samplers are ops of domain ``stn`` with functions, which the plugin library runs
            fused; ``inline``: plain operators only, for importers that know no model-local functions.
        preprocess, labels, activation: to store in the file, as for ``write_metadata``.
        embed_preprocess, source_size: as for ``export``.
        budget: as for ``lint``.

    Raises:
        ModelError: the file is unreadable, damaged or not an ONNX file, or onnxruntime cannot run it.
        UsageError: ``input_shapes`` does not fit it, ``tolerance`` is not a positive number, or ``output`` would
            replace data that the file refers to.
        VerificationError: the result differs from the original, or the comparison failed; no file is written.
        OutputError: the file cannot be written.
    """
    from stn_infer.api.metadata import changed_metadata, set_metadata
    from stn_infer.api.source import onnx_path
    from stn_infer.api.trusted import mark_tried, try_once
    from stn_infer.data.embedding import check_embedding, embedded
    from stn_infer.proto.load import read_graph
    from stn_infer.proto.traversal import opset_of
    from stn_infer.repairs.equivalence import TOLERANCE

    if functions not in FUNCTIONS:
        raise UsageError(f"functions is one of {', '.join(FUNCTIONS)}, not {functions!r}")
    tolerance = TOLERANCE if tolerance is None else tolerance
    if not 0 < tolerance < inf:
        raise UsageError(f"a tolerance must be a positive number, not {tolerance}")
    path, source = Path(output), onnx_path(model)
    check_writable(path)
    prepared = _Prepared(source, path)
    try:
        with temporary_folder(path.parent, ".stn-infer-") as scratch:
            graph = read_graph(source)
            verdict = try_once(source, graph=graph, shapes=input_shapes, budget=budget)
            given = preprocess is not None or labels is not None or activation is not None
            metadata = changed_metadata(graph, preprocess, labels, activation) if given or embed_preprocess else None
            check_embedding(None if metadata is None else metadata.preprocess, embed_preprocess, source_size)
            prepared.load(graph, scratch)
            del graph
            step("repairing and fusing")
            rewritten, reference, notes = _rewrite(prepared, fix, functions == "inline")
            step("comparing with the original in onnxruntime")
            comparison, more = _verified(prepared, reference, rewritten.model, tolerance, input_shapes)
            if metadata is not None and embed_preprocess:
                made, metadata = embedded(rewritten.model, metadata, source_size, prepared.folder)
                rewritten = replace(rewritten, model=made)
            if metadata is not None:
                set_metadata(rewritten.model, metadata)
            size = _write(prepared, rewritten.model, path)
            mark_tried(path, verdict.batch_dependent if verdict else ())
    except (ModelError, VerificationError) as error:
        if str(source) in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error
    return OptimizeReport(
        path,
        size,
        opset_of(rewritten.model),
        prepared.opset,
        rewritten.findings,
        rewritten.repairs,
        comparison,
        (*notes, *more),
    )


class _Prepared:
    """The original model in memory, with its large weights on disk.

    Attributes:
        original: the model; large initializers refer to ``folder``.
        folder: the folder of the large weights; None if all are in memory.
        external: whether the source file has external data.
        weights: the size of the initializers in bytes.
        opset: the original's.
    """

    def __init__(self, source: Path, output: Path) -> None:
        self._source, self._output = source, output
        self.folder: Path | None = None

    def load(self, model: onnx.ModelProto, scratch: Path) -> None:
        """Store the source, as ``read_graph`` returns it; large weights inside the file are moved to ``scratch``."""
        from stn_infer.proto.load import external_tensors
        from stn_infer.proto.traversal import opset_of
        from stn_infer.repairs.large_weights import LARGE_TENSOR, SMALL_MODEL, bytes_of_weights, pull_in, spill

        self.opset = opset_of(model)
        places = external_tensors(model, self._source.parent)
        self.external = bool(places)
        self.weights = bytes_of_weights(model)
        check_data_stays(self._source, {place.path for _, place in places}, self._output)
        if self.weights < SMALL_MODEL:
            pull_in(model, self._source.parent)
        elif places:
            self.folder = self._source.parent
            pull_in(model, self.folder, above=LARGE_TENSOR)
        else:
            self.folder = scratch
            model = spill(model, scratch)
        self.original = model


def _rewrite(prepared: _Prepared, fix: bool, inline: bool) -> tuple[Rewritten, onnx.ModelProto, tuple[str, ...]]:
    """Returns the rewritten model, the model to compare it with, and notes.

    The model to compare with is the original, or the repaired file if onnxruntime can't open the original.
    """
    from stn_infer.proto.edit import copy_of
    from stn_infer.proto.session import Stored
    from stn_infer.proto.traversal import opset_of
    from stn_infer.repairs.inlined import NOTE, inlined
    from stn_infer.repairs.large_weights import attach_weights, detach_weights, pull_in_near_grids
    from stn_infer.repairs.passes import run_passes

    light = prepared.original
    detached: dict[str, onnx.TensorProto] = {}
    if prepared.folder is not None:
        pull_in_near_grids(light, prepared.folder)
        light, detached = detach_weights(light)
    found = run_passes(light, fix=fix)
    if inline:
        found = replace(found, model=inlined(found.model))
        found.model.ir_version = light.ir_version  # the model had no functions before
    changed = found.model is not light
    if changed:
        _credit(found.model)
    notes: tuple[str, ...] = ()
    if found.not_fused:
        notes = (f"nothing was fused: {found.not_fused}",)
    elif opset_of(found.repaired) < 16:
        notes = (f"opset {opset_of(found.repaired)} has no GridSample: nothing to fuse",)
    if inline:
        notes = (*notes, NOTE)
    reference = prepared.original
    if any(entry.code == "quantized-grid" and entry.done for entry in found.repairs):
        reference = attach_weights(copy_of(found.repaired), detached)
        notes = (*notes, "the grids are no longer quantized: the result was compared with the repaired file")
    elif any(entry.done for entry in found.repairs) and not _opens(Stored(light)):
        reference = attach_weights(copy_of(found.repaired), detached)
        notes = (*notes, "onnxruntime cannot run the original: the result was compared with the repaired file")
    result = attach_weights(found.model, detached) if changed else prepared.original
    return replace(found, model=result), reference, notes


def _credit(model: onnx.ModelProto) -> None:
    from stn_infer.version import __version__

    key = "stn_infer.optimized"
    for entry in [entry for entry in model.metadata_props if entry.key == key]:
        model.metadata_props.remove(entry)
    model.metadata_props.add(key=key, value=__version__)


def _verified(
    prepared: _Prepared,
    original: onnx.ModelProto,
    rewritten: onnx.ModelProto,
    tolerance: float,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> tuple[Equivalence, tuple[str, ...]]:
    from stn_infer.proto.inputs import plan_inputs
    from stn_infer.proto.session import Stored
    from stn_infer.repairs.equivalence import compare

    _check_interface(original, rewritten)
    plans = plan_inputs(original, shapes)
    reference = Stored(original, prepared.folder)
    try:
        comparison = compare(reference, Stored(rewritten, prepared.folder), plans, tolerance=tolerance)
    except ModelError as error:
        if not _opens(reference):
            raise
        raise VerificationError(f"the result cannot be verified and was not written: {error}") from error
    notes: tuple[str, ...] = ()
    if comparison.widened:
        rounding = comparison.rounding
        native = "cannot run it" if rounding is None else f"differs from the original by {rounding:.1e}"
        notes = (f"half precision: compared in float32; in half precision, onnxruntime {native}",)
    return comparison, notes


def _check_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Check that required inputs and outputs keep their names, types and order."""
    from stn_infer.proto.traversal import given_inputs

    inputs = given_inputs(before.graph), given_inputs(after.graph)
    for one, other in (inputs, (before.graph.output, after.graph.output)):
        if [(v.name, v.type.tensor_type.elem_type) for v in one] != [
            (v.name, v.type.tensor_type.elem_type) for v in other
        ]:
            raise VerificationError(
                f"the rewritten model has the inputs or outputs {', '.join(v.name for v in other)}, "
                f"expected {', '.join(v.name for v in one)}"
            )


def check_data_stays(source: Path, data: Set[Path], output: Path) -> None:
    """Check that writing ``output`` replaces neither external data of ``source`` nor, where it has such, the file.

    Raises:
        UsageError: it would.
    """
    targets = {output.resolve(), external_path(output).resolve()}
    if targets & data or (data and source.resolve() in targets):
        raise UsageError(f"writing {output} would replace data that {source} refers to; choose another name")


def external_path(path: Path) -> Path:
    """The path of the external data of the file ``path``."""
    return path.with_name(f"{path.name}.data")


def _write(prepared: _Prepared, model: onnx.ModelProto, path: Path) -> int:
    """Write ``model``, external data first; returns the size of both in bytes."""
    from stn_infer.repairs.large_weights import write_embedded, write_external

    beside = external_path(path)
    if not prepared.external and prepared.weights < _MOST_IN_ONE_FILE:
        with open_atomically(path) as file:
            write_embedded(model, prepared.folder, file)
        return path.stat().st_size
    # the data replace an existing file only after the graph is written, so that an error keeps an older pair
    with open_atomically(path) as file, open_atomically(beside) as data:
        write_external(model, prepared.folder, data, beside.name)
        file.write(model.SerializeToString())
        file.flush()
    return path.stat().st_size + beside.stat().st_size


def _opens(stored: Stored) -> bool:
    from stn_infer.proto.session import open_session

    try:
        open_session(stored)
    except ModelError:
        return False
    return True
