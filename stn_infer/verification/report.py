"""The result of a verification: one report per backend, and the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stn_infer.deviation import Deviation, worst
from stn_infer.errors import VerificationError
from stn_infer.json_text import json_text
from stn_infer.reference.comparison import Flips, WarpDeviation
from stn_infer.verification.sampler_checks import SamplerCheck

GRID_TOLERANCE_PX = 1e-3
_WIDE = 1024  # float32 coordinates lose digits beyond this width

_NO_DEVIATION = WarpDeviation(0.0, 0.0, 0, Flips())
Status = Literal["passed", "failed", "unavailable"]


@dataclass(frozen=True)
class GridDeviation:
    """The deviation of one sampler in a model's runs from the reference.

    Attributes:
        sampler: its index, in the order in which the model runs its samplers.
        mode: bilinear, nearest or bicubic.
        max_px: the largest distance along an axis between two sampling points, in input pixels.
        theta_px: the largest displacement of a corner of the output, in input pixels: the effect of an error of theta.
        width: the longest axis of the sampled image.
        warp: the deviation of its warped image from the float64 sampler's, given the same image and grid.
        hint: the likely cause of an error of the grid; empty if none is known.
        flips: with mode nearest, how many output points read another pixel than at the reference's grid; both grids
            are within the tolerance of each other, so such points lie on two sides of a tie.
        image: the largest difference of the sampled image from the reference's, over its scale.
    """

    sampler: int
    mode: str
    max_px: float
    theta_px: float = 0.0
    width: int = 1
    warp: WarpDeviation = _NO_DEVIATION
    hint: str = ""
    flips: int = 0
    image: float = 0.0

    @property
    def points(self) -> int:
        """The number of sampling points that were compared."""
        return self.warp.flips.points

    def worse(self, other: GridDeviation) -> GridDeviation:
        """Combine the deviations of two runs: the larger values, and the sum of the flips."""
        return GridDeviation(
            self.sampler,
            self.mode,
            max(self.max_px, other.max_px),
            max(self.theta_px, other.theta_px),
            max(self.width, other.width),
            self.warp + other.warp,
            self.hint or other.hint,
            self.flips + other.flips,
            max(self.image, other.image),
        )


@dataclass(frozen=True)
class BackendReport:
    """The comparison of one backend with the reference.

    Attributes:
        backend: its name, one of ``RUNNERS``.
        status: ``passed``, ``failed``, or ``unavailable`` if it did not run.
        failures: why it failed, or why it is unavailable; the most specific reason first.
        about: runtime and version.
        outputs: the worst deviation of each output over all inputs.
        grids: one entry per sampler, the worst over all inputs; empty if the samplers cannot be paired with the
            reference's.
        checks: each sampler in isolation.
    """

    backend: str
    status: Status
    failures: tuple[str, ...] = ()
    about: str = ""
    outputs: tuple[Deviation, ...] = ()
    grids: tuple[GridDeviation, ...] = ()
    checks: tuple[SamplerCheck, ...] = ()

    @property
    def reason(self) -> str:
        """The first failure, or why the backend is unavailable; empty if it passed."""
        return self.failures[0] if self.failures else ""


@dataclass(frozen=True)
class Verification:
    """The outcome of a comparison.

    Attributes:
        reference: ``float64`` or ``float32``, the type in which the reference ran.
        title: a description of the reference, such as ``float64 eager PyTorch``.
        tolerance: the limit on each output's scaled error.
        backends: one report per backend.
        inputs: the inputs that were run, such as ``3 random, 1 random, 8 images``.
        notes: remarks on how the comparison was made.
        batch_dependent: the outputs of a sample that depend on the other samples of its batch.
    """

    reference: str
    title: str
    tolerance: float
    backends: tuple[BackendReport, ...]
    inputs: str
    notes: tuple[str, ...] = field(default=())
    batch_dependent: tuple[str, ...] = ()

    @property
    def ran(self) -> tuple[BackendReport, ...]:
        """The reports of the backends that were available."""
        return tuple(report for report in self.backends if report.status != "unavailable")

    @property
    def ran_the_file(self) -> bool:
        """Whether a backend other than PyTorch ran: a correct source does not show that the file is correct."""
        return any(not report.backend.startswith("eager") for report in self.ran)

    @property
    def emulated(self) -> bool:
        """Whether the file ran only with its half-precision values emulated in float32."""
        ran = [report.backend for report in self.ran if not report.backend.startswith("eager")]
        return ran == ["ort-rounded"]

    @property
    def passed(self) -> bool:
        """Whether at least one backend ran, and all that ran passed."""
        return bool(self.ran) and all(report.status == "passed" for report in self.ran)

    @property
    def outputs(self) -> tuple[Deviation, ...]:
        """The worst deviation of each output over all backends."""
        return worst(output for report in self.ran for output in report.outputs)

    @property
    def grids(self) -> tuple[GridDeviation, ...]:
        """The worst deviation of each sampler over all backends."""
        found: dict[int, GridDeviation] = {}
        for grid in (grid for report in self.ran for grid in report.grids):
            found[grid.sampler] = max(found.get(grid.sampler, grid), grid, key=lambda deviation: deviation.max_px)
        return tuple(found.values())

    def summary(self) -> str:
        """One line with the worst output and the worst grid."""
        if not self.outputs:
            return "no backend ran"
        error = max(deviation.scaled for deviation in self.outputs)
        parts = [f"max relative output error {error:.1e} vs. {self.title.replace('eager ', '')}"]
        if self.grids:
            parts.append(f"max grid error {max(grid.max_px for grid in self.grids):.1e} px")
        flips = sum(grid.flips for grid in self.grids)
        if any(grid.mode == "nearest" for grid in self.grids):
            parts.append(f"{flips} of {sum(grid.points for grid in self.grids)} nearest samples flipped")
        return ", ".join(parts)

    def check(self, name: str) -> None:
        """Raise an error if the verification did not pass; ``name`` is the model's name in the message.

        Raises:
            VerificationError: a backend failed, or none ran; the message names the first that failed and the reason.
        """
        for report in self.ran:
            if report.status == "failed":
                raise VerificationError(f"{name}: {report.backend}: {report.reason} (reference: {self.title})")
        if not self.ran:
            raise VerificationError(f"{name}: no backend could run")

    def to_json(self) -> str:
        """The verification as JSON; non-finite numbers are strings."""
        return json_text(self)

    def json_content(self) -> dict[str, Any]:
        """Whether it passed, and its fields."""
        content = {"passed": self.passed, **asdict(self)}
        for report, shown in zip(self.backends, content["backends"], strict=True):
            shown["outputs"] = [
                {"name": output.name, "max_error": output.max_error, "scale": output.scale} for output in report.outputs
            ]
            shown["grids"] = [
                {**asdict(grid), "points": grid.points, "warp": asdict(grid.warp)} for grid in report.grids
            ]
            shown["checks"] = [{**asdict(check), "expected": str(check.expected)} for check in report.checks]
        return content


def failures(
    outputs: Iterable[Deviation],
    grids: Sequence[GridDeviation],
    checks: Sequence[SamplerCheck],
    tolerance: float,
    grid_tolerance: float,
    image_tolerance: float | None = None,
) -> tuple[str, ...]:
    """A message for each value out of tolerance, the most specific first; NaN is out of tolerance."""
    found = [check.problem for check in checks if check.problem]
    for grid in grids:
        limit = grid_tolerance * max(1.0, grid.width / _WIDE)
        if not grid.max_px <= limit or not grid.theta_px <= 2 * limit:
            found.append(
                f"sampler {grid.sampler} is off by {max(grid.max_px, grid.theta_px):.2e} px, expected at most "
                f"{limit:.0e} px" + (f"; likely cause: {grid.hint}" if grid.hint else "")
            )
        image_limit = tolerance if image_tolerance is None else image_tolerance
        if not grid.image <= image_limit:
            found.append(
                f"the image that sampler {grid.sampler} reads is off by {grid.image:.2e} of its scale, "
                f"expected at most {image_limit:.0e}"
            )
        problem = grid.warp.problem()
        if problem:
            found.append(f"sampler {grid.sampler} ({grid.mode}) in the model: {problem}")
    found += [
        f"output {output.name!r} is off by {output.max_error:.2e} ({output.scaled:.2e} of its scale), "
        f"expected at most {tolerance:.0e}"
        for output in outputs
        if not output.scaled <= tolerance
    ]
    return tuple(found)
