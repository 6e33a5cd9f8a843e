"""Converts a verified float32 file to fp16, bf16 or int8, and measures size, output error, and grid error in pixels.

Half precision is measured by the file's definition: exact operators, every half tensor rounded
(``precision/rounding.py``). onnxruntime's CPU provider computes fp16 in float32, which underestimates the error, and
can't run bf16 at all. The features of a bf16 file are also compared with eager bfloat16 PyTorch. An int8 file runs
unchanged.
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
from stn_infer.progress import step
from stn_infer.proto.traversal import given_inputs
from stn_infer.reference.calls import TracedRun

if TYPE_CHECKING:
    import onnx

    from stn_infer.data.batches import Calibration
    from stn_infer.sources.load import LoadedModel


#: Limits on an output's largest error over its scale, and on a sampling point's error in pixels of the sampled image.
TOLERANCES: dict[str, tuple[float, float]] = {"fp16": (5e-3, 0.05), "bf16": (5e-2, 0.25), "int8": (1e-1, 0.5)}

_IMAGES = 64  # number of the package's digit images, for the share of samples that keep their class


@dataclass(frozen=True)
class PrecisionReport:
    """A file in reduced precision, compared with the float32 file.

    Attributes:
        precision: fp16, bf16 or int8.
        size, float_size: bytes of the two files.
        output_error: the largest error of an output over its scale, see :mod:`stn_infer.deviation`.
        grid_px: the largest distance between two sampling points along an axis, in pixels; None without a sampler.
        agreement: the share of samples with the same class (argmax of the first output); None without class scores.
        compared: the number of samples behind ``agreement``.
        eager_error: like output_error, for bf16 in eager PyTorch; None if not available.
        inputs: a description of the inputs.
        tolerance, grid_tolerance: the limits on output_error (and eager_error) and on grid_px.
        notes: values out of range, and other notes for the user.
        on_own: whether ``inputs`` are the user's own samples.
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
        """Checks that every error is within tolerance; NaN never is.

        Raises:
            VerificationError: an error is too large; the message names it and its value.
        """
        for value, where in ((self.output_error, ""), (self.eager_error, " in eager PyTorch")):
            if value is not None and not value <= self.tolerance:
                raise VerificationError(
                    f"{name} in {self.precision}: max relative output error{where} {value:.2e} vs. fp32, expected at "
                    f"most {self.tolerance:.2g}; {self._advice} or allow it with --tolerance"
                )
        if self.grid_px is not None and not self.grid_px <= self.grid_tolerance:
            raise VerificationError(
                f"{name} in {self.precision}: max grid error {self.grid_px:.2g} px vs. fp32, expected at most "
                f"{self.grid_tolerance:.2g} px; {self._advice} or allow it with --grid-tolerance"
            )

    @property
    def _advice(self) -> str:
        if self.on_own:
            return "keep a higher precision,"
        return "keep a higher precision, compare on your own images instead of noise with --calibrate,"

    def table(self) -> str:
        """The two files side by side, as a text table."""
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
    """A model in reduced precision, as `export` writes it and `bench` measures it, with notes for the user."""

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


def convert(
    loaded: LoadedModel, model: onnx.ModelProto, precision: Precision, calibration: Calibration | None = None
) -> Converted:
    """Converts ``model`` to reduced precision, without measurement or verification.

    Args:
        loaded: the source; for fp16, activation peaks are measured on noise and images made for its inputs.
        model: a float32 model, fused or not, of opset 22 for bf16.
        precision: fp16, bf16 or int8.
        calibration: INT8 calibration data, also used for fp16 activation peaks; inputs in the model's order.

    Raises:
        UsageError: int8 without calibration, or precision fp32.
        ExportError: the model can't be converted.
    """
    if precision not in TOLERANCES:
        raise UsageError(f"expected one of {', '.join(TOLERANCES)}, not {precision!r}")
    if precision == "int8":
        if calibration is None:
            raise UsageError("int8 is calibrated on your own images; add --calibrate PATH")
        step(f"quantizing to INT8 on {calibration.samples} samples")
        return Converted(quantize(model, _named(model, calibration)))
    step(f"converting to {precision.upper()}")
    half: Half = "fp16" if precision == "fp16" else "bf16"
    peaks = None
    if half == "fp16":
        peaks = activation_peaks(model, _samples(loaded, model, calibration, made_up=True)[0])
    made = to_half(model, half, peaks=peaks)
    notes = [finding.message for finding in made.findings]
    if made.half_nodes == 0:
        notes.append(f"no node was converted to {half}: every layer computes a sampling grid or is out of range")
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
    """Converts ``model`` to reduced precision and measures the error; does not check the tolerances.

    Args:
        loaded: the source; determines the inputs' shapes.
        model: the verified portable float32 model, of opset 22 for bf16.
        precision: fp16, bf16 or int8.
        calibration: the user's samples; the only inputs of the comparison, and required for int8. None: noise and the
            package's images.
        tolerance, grid_tolerance: limits; None: the values of :data:`TOLERANCES`.

    Raises:
        UsageError: int8 without calibration, or precision fp32.
        ExportError: the model can't be converted.
    """
    converted = convert(loaded, model, precision, calibration)
    lowered = converted.model
    # The user's own samples, if given, determine the error; noise gives larger half-precision errors than images.
    feeds, scored, described = _samples(loaded, model, calibration, made_up=calibration is None)
    notes = [*(calibration.notes if calibration is not None else ()), *converted.notes]
    expected, source = Probe(model, plain=True), EagerBackend(loaded)
    loss = PrecisionLoss()
    eager: _Eager | None = None
    step(f"comparing {precision.upper()} with FP32 on {described}")
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
            "onnxruntime's CPU provider has no bfloat16 operators: the file was checked in float32 with rounded values"
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
    """Compares a bf16 file's outputs in eager PyTorch with the float32 file; stops if PyTorch can't run the model."""

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
        # The file may have theta as additional outputs.
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
    """Returns the feeds, which of them are real images, and a description; ``made_up`` adds generated samples."""
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
        described.append(f"{calibration.samples} calibration samples")
    return feeds, scored, ", ".join(described)


def _named(model: onnx.ModelProto, calibration: Calibration) -> list[dict[str, Array]]:
    """The user's samples by the names of the model's inputs."""
    names = [value.name for value in given_inputs(model.graph)]
    return [dict(zip(names, batch.values(), strict=True)) for batch in calibration.batches]
