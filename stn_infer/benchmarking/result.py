"""A benchmark's result: the models, the machine, the rounds and every row with its raw samples; and its JSON file.

benchmarks/schema/bench-result.schema.json describes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stn_infer.benchmarking.decode import decode
from stn_infer.benchmarking.machine.monitor import Machine, Reading
from stn_infer.benchmarking.record import CaseKey, Measurement
from stn_infer.benchmarking.request import Case, Request
from stn_infer.errors import UsageError
from stn_infer.json_text import json_text
from stn_infer.metadata import Precision

#: 3 has int8, ``inputs`` of a case, ``left_out`` of a row and ``gpu_held_back_ns`` of a reading.
SCHEMA_VERSION = 3

_OLDEST = 2  # what it lacks has defaults that mean the same

#: Among a model's hashes: the samples that INT8 was calibrated on.
CALIBRATION = "int8 samples"


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a case turned out to be.

    Attributes:
        name: its name in the tables; two cases of one result never share a name and a precision.
        case: the request for it.
        input_shapes: of its inputs, without batch.
        inputs: what was fed, e.g. ``handwritten digits``.
        inputs_sha256: batch size (as text) to the hash of all input bytes.
        reference: what outputs were verified against.
        tolerance: on each output's error over its scale.
        sha256: file or weights to its hash: ``weights``, ``plain``, ``portable``, ``plugin library``, ``file``: the
            ONNX file that was given, and ``int8 samples``: the INT8 calibration data.
        build_s: seconds to make each file.
        notes: what a reader must know about it.
    """

    name: str
    case: Case
    input_shapes: tuple[tuple[int, ...], ...]
    inputs: str
    inputs_sha256: Mapping[str, str]
    reference: str
    tolerance: float
    sha256: Mapping[str, str]
    build_s: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> CaseKey:
        """What identifies it in a result."""
        return self.name, self.case.precision


@dataclass(frozen=True, kw_only=True)
class RoundLog:
    """One finished round of one model: what the machine did meanwhile, and who else used it.

    Attributes:
        model, precision: its case.
        round: its number.
        seconds: wall time, opening and warming up included.
        others: the share of all cores that other processes used, just before.
        busy_processes: how many other processes used more than 5 % of a core just before.
        readings: the machine, between turns.
    """

    model: str
    precision: Precision
    round: int
    seconds: float
    others: float
    busy_processes: int
    readings: tuple[Reading, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies it in a result: model, precision, round."""
        return self.model, self.precision, self.round


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A benchmark, finished or not.

    Attributes:
        command: the command line that made it; empty when it was made through the Python API.
        created: when it began, UTC.
        request: what was asked for.
        machine, versions: where; ``versions`` holds packages, driver and CUDA.
        settings: what else times depend on: TF32, environment variables of thread pools.
        models: one per case.
        log: the finished rounds.
        measurements: one row for each model, batch size and variant.
    """

    command: str
    created: str
    request: Request
    machine: Machine
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    models: tuple[Model, ...]
    log: tuple[RoundLog, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether every variant that could be run gave the reference's outputs, where it was asked to."""
        return all(measurement.status != "failed" for measurement in self.measurements)

    @property
    def stages_of_kernels(self) -> bool:
        """Whether a row's shares are of its kernels' time alone, and its median also holds copies and launches."""
        return self.request.device != "cpu" and self.request.method.boundary != "device"

    @property
    def complete(self) -> bool:
        """Whether all rounds are in it."""
        return len(self.log) == len(self.models) * self.request.method.rounds

    def get(self, variant: str, batch_size: int, model: str | None = None) -> Measurement:
        """The measurement of ``variant`` at ``batch_size``; of the first model unless one is named.

        Raises:
            KeyError: it was not asked for.
        """
        for row in self.measurements:
            if (row.variant, row.batch_size) == (variant, batch_size) and model in (None, row.model):
                return row
        raise KeyError(f"{variant} at batch size {batch_size}")

    def rows(self, model: Model, batch_size: int | None = None) -> list[Measurement]:
        """A model's rows, at one batch size or at all."""
        mine = [row for row in self.measurements if row.case_key == model.key]
        return [row for row in mine if batch_size in (None, row.batch_size)]

    def case_name(self, case: CaseKey) -> str:
        """A model among the others; empty where it is the only one."""
        return case_name([model.key for model in self.models], case)

    def row_name(self, row: Measurement) -> str:
        """A row's variant, after its model where there are several."""
        return ", ".join(filter(None, (self.case_name(row.case_key), row.variant)))

    def to_json(self) -> str:
        """All of it, with the figures that follow from the samples beside them; times in milliseconds."""
        content = asdict(self)
        for row, measurement in zip(content["measurements"], self.measurements, strict=True):
            row["figures"] = measurement.figures
        return json_text({"schema_version": content.pop("schema_version"), **content}) + "\n"


def case_name(cases: Collection[CaseKey], case: CaseKey) -> str:
    """A case among others, by name and precision: either where they differ in it, both, or nothing."""
    return " in ".join(part for index, part in enumerate(case) if len({each[index] for each in cases}) > 1)


def read_result(path: Path) -> BenchResult:
    """The result in a file that ``bench -o`` wrote.

    Raises:
        UsageError: there is no such file, or it is not a result of this version or the one before.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: expected a result of `bench -o`; {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: expected a result of `bench -o`, which is JSON; this is not") from None
    if not isinstance(content, dict) or "schema_version" not in content:
        raise UsageError(f"{path}: expected a result of `bench -o`; it has no schema_version")
    version = content["schema_version"]
    if type(version) is not int or not _OLDEST <= version <= SCHEMA_VERSION:
        newer = type(version) is int and version > SCHEMA_VERSION
        advice = "a newer stn-infer wrote it, which can read it" if newer else "measure again"
        raise UsageError(f"{path}: expected schema version {_OLDEST} to {SCHEMA_VERSION}, it is {version!r}; {advice}")
    try:
        result = replace(decode(BenchResult, content), schema_version=SCHEMA_VERSION)
        _check(result)
        return result
    except KeyError as error:
        raise UsageError(f"{path}: expected a result of `bench -o`; it is damaged (it lacks {error})") from None
    except (TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{path}: expected a result of `bench -o`; it is damaged ({error})") from None


def _check(result: BenchResult) -> None:
    """Raise ValueError where figures could not be made of a result that has the right form."""
    models = {(model.name, model.case.precision) for model in result.models}
    if not models:
        raise ValueError("it holds no model")
    for row in result.measurements:
        name = f"{row.variant} at batch {row.batch_size}"
        if (row.model, row.precision) not in models:
            raise ValueError(f"{name} is of {row.model!r}, which is none of its models")
        if row.status == "timed" and not (row.rounds and all(row.by_round)):
            raise ValueError(f"{name} is timed and lacks samples")
        if not all(0 < sample < math.inf for sample in row.samples_ms):
            raise ValueError(f"{name} has a sample that is not a time")
