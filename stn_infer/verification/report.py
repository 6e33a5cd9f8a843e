"""What a verification found: one report a backend, and the whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

from stn_infer.deviation import Deviation, worst
from stn_infer.errors import VerificationError
from stn_infer.reference.comparison import Flips, WarpDeviation
from stn_infer.verification.sampler_checks import SamplerCheck

GRID_TOLERANCE_PX = 1e-3
_WIDE = 1024  # float32 coordinates lose digits beyond this width

NOTHING = WarpDeviation(0.0, 0.0, 0, Flips())
Status = Literal["passed", "failed", "unavailable"]


@dataclass(frozen=True)
class GridDeviation:
    """One sampler in a model's runs against the reference.

    Attributes:
        sampler: its number, in the order in which the model runs them.
        mode: bilinear, nearest or bicubic.
        max_px: the largest distance along an axis between two sampling points, in input pixels.
        theta_px: the largest displacement of a corner of the output, in input pixels: what an error of theta does.
        width: the longest axis of the sampled image.
        warp: what it made of its own image and grid, against the float64 sampler.
        hint: what an error of the grid looks like; empty where it looks like nothing.
        flips: with mode nearest, how many output points read another pixel than at the reference's grid; both grids
            are within the tolerance of each other, so they lie on two sides of a tie.
        image: the largest difference of the sampled image from the reference's, over its scale.
    """

    sampler: int
    mode: str
    max_px: float
    theta_px: float = 0.0
    width: int = 1
    warp: WarpDeviation = NOTHING
    hint: str = ""
    flips: int = 0
    image: float = 0.0

    @property
    def points(self) -> int:
        """How many sampling points were compared."""
        return self.warp.flips.points

    def worse(self, other: GridDeviation) -> GridDeviation:
        """Both runs together."""
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
    """One backend against the reference.

    Attributes:
        backend: its name, one of ``RUNNERS``.
        status: ``passed``, ``failed``, or ``unavailable``, when it did not run.
        failures: why it failed, or why it is not available; the most telling first.
        about: runtime and version.
        outputs: the worst over all inputs.
        grids: one entry a sampler, the worst over all inputs; empty where they can't be paired with the reference's.
        checks: each sampler on its own.
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
        """The first failure, or why it is not available; empty for one that passed."""
        return self.failures[0] if self.failures else ""


@dataclass(frozen=True)
class Verification:
    """The outcome of a comparison.

    Attributes:
        reference: ``float64`` or ``float32``, the type in which the reference ran.
        title: what the reference was, such as ``float64 eager PyTorch``.
        tolerance: on each output's scaled error.
        backends: one report each.
        inputs: what was run, e.g. ``3 random, 1 random, 8 digits``.
        notes: what a reader should know.
    """

    reference: str
    title: str
    tolerance: float
    backends: tuple[BackendReport, ...]
    inputs: str
    notes: tuple[str, ...] = field(default=())

    @property
    def ran(self) -> tuple[BackendReport, ...]:
        """The backends that were there."""
        return tuple(report for report in self.backends if report.status != "unavailable")

    @property
    def ran_the_file(self) -> bool:
        """Whether a backend other than PyTorch ran: the source's being right says nothing of a file."""
        return any(not report.backend.startswith("eager") for report in self.ran)

    @property
    def emulated(self) -> bool:
        """Whether the file ran with its half-precision values rounded in float32, and in no other way."""
        ran = [report.backend for report in self.ran if not report.backend.startswith("eager")]
        return ran == ["ort-rounded"]

    @property
    def passed(self) -> bool:
        """Whether a backend ran, and every one that did passed."""
        return bool(self.ran) and all(report.status == "passed" for report in self.ran)

    @property
    def outputs(self) -> tuple[Deviation, ...]:
        """Each output at the backend where it is furthest off."""
        return worst(output for report in self.ran for output in report.outputs)

    @property
    def grids(self) -> tuple[GridDeviation, ...]:
        """Each sampler at the backend where it is furthest off."""
        found: dict[int, GridDeviation] = {}
        for grid in (grid for report in self.ran for grid in report.grids):
            found[grid.sampler] = max(found.get(grid.sampler, grid), grid, key=lambda deviation: deviation.max_px)
        return tuple(found.values())

    def summary(self) -> str:
        """One line: the worst output and the worst grid."""
        if not self.outputs:
            return "nothing ran"
        output = max(self.outputs, key=lambda deviation: deviation.scaled)
        parts = [f"output within {output.max_error:.1e} of {self.title.removesuffix(' PyTorch')}"]
        if self.grids:
            parts.append(f"grid within {max(grid.max_px for grid in self.grids):.1e} px")
        flips = sum(grid.flips for grid in self.grids)
        if any(grid.mode == "nearest" for grid in self.grids):
            parts.append(f"{flips} of {sum(grid.points for grid in self.grids)} nearest samples flipped")
        return ", ".join(parts)

    def check(self, name: str) -> None:
        """Raise unless passed; ``name`` is what the message calls the model.

        Raises:
            VerificationError: the first backend that failed, and why.
        """
        for report in self.ran:
            if report.status == "failed":
                raise VerificationError(f"{name}: {report.backend}: {report.reason} (reference: {self.title})")
        if not self.ran:
            raise VerificationError(f"{name}: no backend could be run")

    def to_json(self) -> str:
        """The whole as JSON; what is not finite is a string."""
        content = {"passed": self.passed, **asdict(self)}
        for report, shown in zip(self.backends, content["backends"], strict=True):
            shown["outputs"] = [
                {"name": output.name, "max_error": output.max_error, "scale": output.scale} for output in report.outputs
            ]
            shown["grids"] = [
                {**asdict(grid), "points": grid.points, "warp": asdict(grid.warp)} for grid in report.grids
            ]
            shown["checks"] = [{**asdict(check), "expected": str(check.expected)} for check in report.checks]
        return json.dumps(_plain(content), indent=1)


def failures(
    outputs: Iterable[Deviation],
    grids: Sequence[GridDeviation],
    checks: Sequence[SamplerCheck],
    tolerance: float,
    grid_tolerance: float,
    image_tolerance: float | None = None,
) -> tuple[str, ...]:
    """What is out of tolerance, the most telling first; written so that not-a-number fails."""
    found = [check.problem for check in checks if check.problem]
    for grid in grids:
        limit = grid_tolerance * max(1.0, grid.width / _WIDE)
        if not grid.max_px <= limit or not grid.theta_px <= 2 * limit:
            found.append(
                f"sampler {grid.sampler} is off by {max(grid.max_px, grid.theta_px):.2e} px, expected at most "
                f"{limit:.0e} px" + (f"; it looks like {grid.hint}" if grid.hint else "")
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


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value
