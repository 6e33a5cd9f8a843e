"""A verified float32 file in fp16, bf16 or int8, and what that costs: size, outputs, sampling grids in pixels.

Half precision is measured as the file means it: exact operators, every half tensor rounded (``graph/rounding.py``).
onnxruntime's CPU would flatter an fp16 file, which it computes in float32, and can't run a bf16 one at all; a bf16
file's features are compared with eager bfloat16 PyTorch besides. An int8 file runs as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stn_infer.arrays import Array
from stn_infer.backends.eager import EagerBackend
from stn_infer.errors import UsageError, VerificationError
from stn_infer.metadata import Precision
from stn_infer.precision.eager_bf16 import EagerBf16
from stn_infer.precision.half import Half, to_half
from stn_infer.precision.int8 import quantize
from stn_infer.precision.probe import PrecisionLoss, Probe, activation_peaks
from stn_infer.precision.rounding import rounded_in_float32
from stn_infer.proto.traversal import given_inputs
from stn_infer.reference.calls import TracedRun

if TYPE_CHECKING:
    import onnx

    from stn_infer.data.batches import Calibration
    from stn_infer.sources.load import LoadedModel


#: On an output's largest error over its scale, and on a sampling point's distance in pixels of the sampled image.
TOLERANCES: dict[str, tuple[float, float]] = {"fp16": (5e-3, 0.05), "bf16": (5e-2, 0.25), "int8": (1e-1, 0.5)}

_IMAGES = 64  # of the package's digits, for the share of samples that keep their class


@dataclass(frozen=True)
class PrecisionReport:
    """A file in a lower precision against the float32 file.

    Attributes:
        precision: fp16, bf16 or int8.
        size, float_size: bytes of the two files.
        output_error: the largest error of an output over its scale, see :mod:`stn_infer.deviation`.
        grid_px: the largest distance between two sampling points along an axis, in pixels; None without a sampler.
        agreement: the share of samples whose largest first output is the same class; None where that is no scores.
        compared: how many samples ``agreement`` is of.
        eager_error: bf16's outputs in eager PyTorch against the float32 file, scaled; None where they can't be had.
        inputs: what was run.
        tolerance, grid_tolerance: what output_error (and eager_error) and grid_px are held to.
        notes: values out of range, and what the user should know.
        on_own: whether ``inputs`` are the user's own.
    """

    precision: Precision
    size: int
    float_size: int
    output_error: float
    grid_px: float | None
    agreement: float | None
    compared: int
    eager_error: float | None
    inputs: str
    tolerance: float
    grid_tolerance: float
    notes: tuple[str, ...]
    on_own: bool = False

    def check(self, name: str) -> None:
        """Raise unless every error is within tolerance; not-a-number never is.

        Raises:
            VerificationError: which error is too large, and by how much.
        """
        for value, what in ((self.output_error, "its outputs"), (self.eager_error, "its outputs in eager PyTorch")):
            if value is not None and not value <= self.tolerance:
                raise VerificationError(
                    f"{name} in {self.precision}: {what} are off by {value:.2e} of their scale from fp32, expected at "
                    f"most {self.tolerance:.2g}; {self._advice} or allow it with --tolerance"
                )
        if self.grid_px is not None and not self.grid_px <= self.grid_tolerance:
            raise VerificationError(
                f"{name} in {self.precision}: it samples {self.grid_px:.2g} px away from where fp32 does, expected at "
                f"most {self.grid_tolerance:.2g} px; {self._advice} or allow it with --grid-tolerance"
            )

    @property
    def _advice(self) -> str:
        if self.on_own:
            return "keep a higher precision,"
        return "keep a higher precision, compare on images of yours instead of noise with --calibrate,"

    def table(self) -> str:
        """The two files side by side, for a terminal."""
        same = f"{100 * self.agreement:.1f} % of {self.compared}" if self.agreement is not None else "-"
        grid = f"{self.grid_px:.1e} px" if self.grid_px is not None else "-"
        rows = [
            ("", "size", "output error", "grid error", "same class"),
            ("fp32", f"{self.float_size / 1024:.0f} KiB", "-", "-", "-"),
            (self.precision, f"{self.size / 1024:.0f} KiB", f"{self.output_error:.1e}", grid, same),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


@dataclass(frozen=True)
class Converted:
    """A file in reduced precision, as `export` writes it and `bench` times it, and what the user should know of it."""

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


def convert(
    loaded: LoadedModel, model: onnx.ModelProto, precision: Precision, calibration: Calibration | None = None
) -> Converted:
    """``model`` in reduced precision, neither measured nor verified.

    Args:
        loaded: says what inputs look like: FP16 peaks are looked for on noise and images too.
        model: a float32 file, fused or not, of opset 22 for bf16.
        precision: fp16, bf16 or int8.
        calibration: INT8 calibration data, which FP16 peaks are looked for on besides; inputs in the model's order.

    Raises:
        UsageError: int8 without calibration, or precision fp32.
        ExportError: the model can't be converted.
    """
    if precision not in TOLERANCES:
        raise UsageError(f"expected one of {', '.join(TOLERANCES)}, not {precision!r}")
    if precision == "int8":
        if calibration is None:
            raise UsageError("int8 is calibrated on your own images; add --calibrate PATH")
        return Converted(quantize(model, _named(model, calibration)))
    half: Half = "fp16" if precision == "fp16" else "bf16"
    peaks = None
    if half == "fp16":
        peaks = activation_peaks(model, _samples(loaded, model, calibration, made_up=True)[0])
    made = to_half(model, half, peaks=peaks)
    notes = [finding.message for finding in made.findings]
    if made.half_nodes == 0:
        notes.append(f"nothing became {half}: every layer makes a sampling grid, or is out of range")
    return Converted(made.model, tuple(notes))


def lower(
    loaded: LoadedModel,
    model: onnx.ModelProto,
    precision: Precision,
    calibration: Calibration | None = None,
    *,
    tolerance: float | None = None,
    grid_tolerance: float | None = None,
) -> tuple[onnx.ModelProto, PrecisionReport]:
    """``model`` in a lower precision, and how far it is from ``model``; not yet held to the tolerances.

    Args:
        loaded: the source; says what inputs look like.
        model: the portable float32 file, verified, of opset 22 for bf16.
        precision: fp16, bf16 or int8.
        calibration: the user's samples, on which alone the two are compared; needed for int8. None: noise, and images
            of the package's.
        tolerance, grid_tolerance: see :data:`TOLERANCES`, whose values are the defaults.

    Raises:
        UsageError: int8 without calibration, or precision fp32.
        ExportError: the model can't be converted.
    """
    converted = convert(loaded, model, precision, calibration)
    lowered = converted.model
    # the user's own samples say what it costs; of noise, half precision makes more than of any image
    feeds, scored, described = _samples(loaded, model, calibration, made_up=calibration is None)
    notes = [*(calibration.notes if calibration is not None else ()), *converted.notes]
    expected, source = Probe(model, plain=True), EagerBackend(loaded)
    loss = PrecisionLoss()
    eager: _Eager | None = None
    if precision == "int8":
        probes = [Probe(lowered)]
    else:
        probes = [Probe(rounded_in_float32(lowered))]
        if precision == "fp16":
            probes.append(Probe(lowered))
        else:
            eager = _Eager(loaded)
    for batch, is_real in zip(feeds, scored, strict=True):
        want, alike = expected.run(batch), source.run(batch)
        runs = [probe.run(batch) for probe in probes]
        for run in runs:
            loss.add(want, run, scored=is_real and run is runs[0], alike=alike)
        if eager is not None:
            eager.add(batch, want, runs[0], alike)
    if eager is not None:
        notes.append(
            "onnxruntime's CPU has no bfloat16 operators: the file was checked in float32 with every bf16 value rounded"
            + (
                ", and in eager bfloat16 PyTorch"
                if eager.error is not None
                else "; eager bfloat16 PyTorch can't run it"
            )
        )
    default, default_px = TOLERANCES[precision]
    report = PrecisionReport(
        precision=precision,
        size=lowered.ByteSize(),
        float_size=model.ByteSize(),
        output_error=loss.output_error,
        grid_px=loss.grid_px,
        agreement=loss.agreement,
        compared=loss.compared,
        eager_error=None if eager is None else eager.error,
        inputs=described,
        tolerance=default if tolerance is None else tolerance,
        grid_tolerance=default_px if grid_tolerance is None else grid_tolerance,
        notes=tuple(notes),
        on_own=calibration is not None,
    )
    return lowered, report


class _Eager:
    """A bf16 file's outputs in eager PyTorch, against the float32 file; gives up where PyTorch can't follow."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._runner: EagerBf16 | None = EagerBf16(loaded.module)
        self._loss = PrecisionLoss()
        self.error: float | None = None

    def add(
        self, feeds: Mapping[str, Array], expected: TracedRun, actual: TracedRun, alike: Mapping[str, Array]
    ) -> None:
        if self._runner is None:
            return
        found = self._runner.run(list(feeds.values()), [call.grid for call in actual.calls])
        # theta may have been added as further outputs
        pairs = list(zip(expected.outputs.items(), found or (), strict=False))
        if not pairs or any(want.shape != got.shape for (_, want), got in pairs):
            self._runner = self.error = None
            return
        wanted = {name: want for (name, want), _ in pairs}
        self._loss.add_outputs(wanted, {name: got for (name, _), got in pairs}, alike)
        self.error = self._loss.output_error


def _samples(
    loaded: LoadedModel, model: onnx.ModelProto, calibration: Calibration | None, *, made_up: bool
) -> tuple[list[dict[str, Array]], list[bool], str]:
    """What to run: feeds, which of them are real images, and what they are; ``made_up``: more than the user's own."""
    from stn_infer.reference.samples import sample_batches, sample_images

    names = [value.name for value in given_inputs(model.graph)]
    feeds: list[dict[str, Array]] = []
    scored: list[bool] = []
    described: list[str] = []
    if made_up:
        for batch in sample_batches(loaded):
            feeds.append(dict(zip(names, batch.inputs, strict=True)))
            scored.append(batch.kind == "images")
            described.append(f"{len(batch.inputs[0])} {batch.kind}")
        first = loaded.input_shapes[0]
        if len(names) == 1 and len(first) == 3 and first[0] in (1, 3):
            feeds.append({names[0]: sample_images(_IMAGES, first, loaded.metadata.preprocess)})
            scored.append(True)
            described.append(f"{_IMAGES} images")
    if calibration is not None:
        feeds += _named(model, calibration)
        scored += [True] * len(calibration.batches)
        described.append(f"{calibration.samples} of yours")
    return feeds, scored, ", ".join(described)


def _named(model: onnx.ModelProto, calibration: Calibration) -> list[dict[str, Array]]:
    """The user's samples under the names of the model's inputs."""
    names = [value.name for value in given_inputs(model.graph)]
    return [dict(zip(names, batch.values(), strict=True)) for batch in calibration.batches]
