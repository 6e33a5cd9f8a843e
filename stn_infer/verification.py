"""Compare a runtime's outputs and sampling grids with the same model in float64 PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.errors import ModelError, UsageError, VerificationError
from stn_infer.reference import Reference, Sampling
from stn_infer.tolerance import attainable, float32_deviation

if TYPE_CHECKING:
    import onnx

    from stn_infer.sources import LoadedModel

Array = NDArray[Any]

TOLERANCE = 1e-5
TOLERANCE_FP32_REFERENCE = 1e-4
GRID_TOLERANCE_PX = 1e-3
# Coordinates beyond this sample outside whatever their last digits are.
_FAR = 4.0


@dataclass(frozen=True)
class OutputDeviation:
    """One output against the reference.

    Attributes:
        name: the output's name.
        max_error: the largest absolute difference.
        scale: the largest magnitude in the reference, at least 1; ``max_error / scale`` is held to the tolerance.
    """

    name: str
    max_error: float
    scale: float

    @property
    def scaled(self) -> float:
        """What is compared with the tolerance."""
        return self.max_error / self.scale


@dataclass(frozen=True)
class GridDeviation:
    """One sampler's grid against the reference.

    Attributes:
        sampler: its number, in the order in which the model runs them.
        mode: bilinear, nearest or bicubic.
        max_px: the largest distance along an axis between two sampling points, in input pixels.
        flips: with mode nearest, how many output pixels read another input pixel; else 0.
        points: how many sampling points were compared.
    """

    sampler: int
    mode: str
    max_px: float
    flips: int
    points: int


@dataclass(frozen=True)
class Verification:
    """The outcome of a comparison.

    Attributes:
        reference: ``float64`` or ``float32``, the type in which PyTorch ran.
        tolerance: on each output's scaled error.
        outputs, grids: the worst over all inputs.
        inputs: what was run, e.g. ``3 random, 1 random, 8 digits``.
        notes: what a reader should know.
    """

    reference: str
    tolerance: float
    outputs: tuple[OutputDeviation, ...]
    grids: tuple[GridDeviation, ...]
    inputs: str
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every output and grid is within tolerance; not-a-number never is."""
        return not self._failures()

    def summary(self) -> str:
        """One line: the worst output and the worst grid."""
        output = max(self.outputs, key=lambda deviation: deviation.scaled)
        parts = [f"output within {output.max_error:.1e} of {self.reference} eager"]
        if self.grids:
            parts.append(f"grid within {max(grid.max_px for grid in self.grids):.1e} px")
        flips = sum(grid.flips for grid in self.grids)
        if any(grid.mode == "nearest" for grid in self.grids):
            parts.append(f"{flips} of {sum(grid.points for grid in self.grids)} nearest samples flipped")
        return ", ".join(parts)

    def check(self, name: str) -> None:
        """Raise unless passed; ``name`` is what the message calls the model.

        Raises:
            VerificationError: the first output or grid that is off, with its error and the tolerance.
        """
        for failure in self._failures():
            raise VerificationError(f"{name}: {failure} from {self.reference} eager PyTorch")

    def _failures(self) -> list[str]:
        # written so that not-a-number fails
        found = [
            f"output {output.name!r} is off by {output.max_error:.2e} ({output.scaled:.2e} of its scale), "
            f"expected at most {self.tolerance:.0e}"
            for output in self.outputs
            if not output.scaled <= self.tolerance
        ]
        found += [
            f"sampler {grid.sampler} samples {grid.max_px:.2e} px away, expected at most {self.grid_tolerance:.0e} px"
            for grid in self.grids
            if not grid.max_px <= self.grid_tolerance
        ]
        return found

    @property
    def grid_tolerance(self) -> float:
        """On a sampling point's distance, in pixels: a float32 reference has errors of its own."""
        return GRID_TOLERANCE_PX * (10 if self.reference == "float32" else 1)


def verify_model(
    loaded: LoadedModel,
    model: onnx.ModelProto,
    *,
    tolerance: float | None = None,
    batches: Sequence[Batch] | None = None,
) -> Verification:
    """Compare an ONNX model in onnxruntime on the CPU with its PyTorch source.

    Args:
        loaded: the source.
        model: the portable or the plain file; extra outputs (theta) are passed over.
        tolerance: on each output's scaled error; None: 1e-5, or more where float32 PyTorch itself needs it, or 1e-4
            where the source can't be run in float64.
        batches: what to run; None: random inputs at two batch sizes, and real images.

    Raises:
        ModelError: onnxruntime refuses the model, or it has fewer outputs than the source.
    """
    reference = Reference(loaded.module, loaded.input_shapes)
    limit = tolerance or (TOLERANCE if reference.dtype == "float64" else TOLERANCE_FP32_REFERENCE)
    notes = [] if reference.dtype == "float64" else ["the model can't be run in float64: compared with float32"]
    runner = _Runner(model)
    batches = sample_batches(loaded) if batches is None else batches
    if tolerance is None and reference.dtype == "float64":
        own = float32_deviation(loaded.module, reference, [batch.inputs for batch in batches])
        limit = attainable(limit, own)
        if limit > TOLERANCE:
            notes.append(f"float32 PyTorch itself is off by {own:.1e} here: held to {limit:.1e}")
    outputs: dict[str, OutputDeviation] = {}
    grids: dict[int, GridDeviation] = {}
    for batch in batches:
        expected, samplings = reference.run(batch.inputs)
        actual, actual_grids = runner.run(batch.inputs)
        if len(actual) < len(expected):
            raise ModelError(f"the ONNX model has {len(actual)} outputs, its source {len(expected)}")
        comparable = len(samplings) == len(actual_grids) and all(
            call.grid.shape == grid.shape for call, grid in zip(samplings, actual_grids, strict=True)
        )
        if not comparable and "grids" not in " ".join(notes):
            notes.append("the grids of the file and of its source can't be paired: outputs alone were compared")
        pairs = list(zip(samplings, actual_grids, strict=True)) if comparable else []
        deviations = [_compare_grids(index, call, grid) for index, (call, grid) in enumerate(pairs)]
        for deviation in deviations:
            grids[deviation.sampler] = _worse_grid(grids.get(deviation.sampler), deviation)
        if any(deviation.flips for deviation in deviations):
            # a point between two pixels may read either: let the reference read what the file reads
            expected, _ = reference.run(batch.inputs, [_decided(call, grid) for call, grid in pairs])
        for name, value, wanted in zip(runner.names, actual, expected, strict=False):
            new = _compare_outputs(name, wanted, value)
            outputs[name] = max(outputs.get(name, new), new, key=lambda deviation: deviation.scaled)
    described = ", ".join(f"{len(batch.inputs[0])} {batch.kind}" for batch in batches)
    return Verification(reference.dtype, limit, tuple(outputs.values()), tuple(grids.values()), described, tuple(notes))


class _Runner:
    """An ONNX model in onnxruntime with every sampler's grid as an extra output."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx
        from onnx import inliner

        from stn_infer.backends.ort import OrtBackend

        plain = inliner.inline_local_functions(model) if model.functions else model
        probe = onnx.ModelProto()
        probe.CopyFrom(plain)
        self.names = [value.name for value in probe.graph.output]
        samplers = [node for node in probe.graph.node if node.op_type == "GridSample"]
        self._grids = [node.input[1] for node in samplers]
        present = {value.name for value in (*probe.graph.output, *probe.graph.input)}
        probe.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in dict.fromkeys(self._grids) if name not in present
        )
        self._inputs = [value.name for value in probe.graph.input]
        self._backend = OrtBackend(probe.SerializeToString())

    def run(self, inputs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        feeds = dict(zip(self._inputs, inputs, strict=True))
        results: Mapping[str, Array] = {**feeds, **self._backend.run(feeds)}
        return [results[name] for name in self.names], [results[name] for name in self._grids]


def _compare_outputs(name: str, expected: Array, actual: Array) -> OutputDeviation:
    if expected.shape != actual.shape:
        raise ModelError(f"output {name!r} has shape {list(actual.shape)}, its source gives {list(expected.shape)}")
    if expected.size == 0:
        return OutputDeviation(name, 0.0, 1.0)
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    both = (np.isnan(expected) & np.isnan(actual)) if expected.dtype.kind == "f" else np.zeros(expected.shape, bool)
    same = (expected == actual) | both
    difference = np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
    finite = np.abs(expected[np.isfinite(expected)]) if expected.dtype.kind == "f" else np.abs(expected)
    return OutputDeviation(name, float(difference.max()), max(1.0, float(finite.max(initial=0.0))))


def _compare_grids(index: int, call: Sampling, grid: Array) -> GridDeviation:
    expected, actual = call.pixels(call.grid.astype(np.float64)), call.pixels(grid.astype(np.float64))
    near = np.isfinite(expected) & (np.abs(call.grid) <= _FAR)
    with np.errstate(invalid="ignore"):
        distance = np.where(near, np.abs(actual - expected), 0.0)
    distance = np.where(np.isnan(distance), np.inf, distance)
    moved = (np.round(expected) != np.round(actual)) & near if call.mode == "nearest" else np.zeros(near.shape, bool)
    points = int(np.prod(expected.shape[:-1]))
    return GridDeviation(index, call.mode, float(distance.max(initial=0.0)), int(moved.any(axis=-1).sum()), points)


def _decided(call: Sampling, grid: Array) -> Array | None:
    """The file's grid of a nearest sampler, moved to the pixels that float32 arithmetic picks; None for other modes."""
    if call.mode != "nearest":
        return None
    picked = np.round(call.pixels(grid.astype(np.float32))).astype(np.float64)
    near = np.abs(np.nan_to_num(grid, nan=np.inf)) <= _FAR
    return np.where(near, call.at_pixels(picked), grid.astype(np.float64))


def _worse_grid(known: GridDeviation | None, new: GridDeviation) -> GridDeviation:
    if known is None:
        return new
    return GridDeviation(
        new.sampler, new.mode, max(known.max_px, new.max_px), known.flips + new.flips, known.points + new.points
    )


@dataclass(frozen=True)
class Batch:
    """Inputs to run.

    Attributes:
        kind: what they are, for a report.
        inputs: one array an input, [N, ...].
    """

    kind: str
    inputs: tuple[Array, ...]


def sample_batches(loaded: LoadedModel) -> tuple[Batch, ...]:
    """Random inputs at batch sizes 3 and 1, and 8 real images where the first input is an image.

    Random images are noise over all pixel values, pre-processed as images are; other inputs are normal.
    """
    from stn_infer.data.samples import noise_images, sample_images

    generator = np.random.default_rng(7)
    first, *others = loaded.input_shapes
    is_image = len(first) == 3 and first[0] in (1, 3)
    rule = loaded.metadata.preprocess

    def batch(kind: str, count: int, values: Array | None) -> Batch:
        if values is None:
            values = generator.standard_normal((count, *first)).astype(np.float32)
        rest = tuple(generator.standard_normal((count, *shape)).astype(np.float32) for shape in others)
        return Batch(kind, (values, *rest))

    batches = [
        batch("random", count, noise_images(count, first, generator, rule) if is_image else None) for count in (3, 1)
    ]
    return (*batches, batch("images", 8, sample_images(8, first, rule))) if is_image else tuple(batches)


def verify(
    model: str | Path,
    *,
    source: str | None = None,
    weights: Path | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Compare an ONNX file in onnxruntime with its PyTorch source in float64.

    Args:
        model: an ``.onnx`` file.
        source: what it was exported from; None: what the file's metadata names.
        weights: the checkpoint it was exported with, where it was not the source's own.
        input_shapes: as for ``export``.
        tolerance: see :func:`verify_model`.

    Raises:
        UsageError: the file does not say where it comes from, and no ``source`` is given.
        ModelError: the file is unreadable, or does not belong to the source.
    """
    from stn_infer.graph.load import load_model
    from stn_infer.metadata import ModelMetadata
    from stn_infer.sources import load_source

    proto = load_model(Path(model))
    metadata = ModelMetadata.from_props({prop.key: prop.value for prop in proto.metadata_props})
    source = source or metadata.source
    if not source:
        raise UsageError(f"{model} does not say what it was exported from; name it with --source SOURCE")
    loaded = load_source(source, weights=weights, input_shapes=input_shapes or _shapes(proto))
    return verify_model(loaded, proto, tolerance=tolerance)


def _shapes(model: onnx.ModelProto) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim[1:]) for value in model.graph.input
    )
