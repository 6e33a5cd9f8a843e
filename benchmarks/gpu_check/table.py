"""Put measured times beside the predictions of NOTES.md.

python -m benchmarks.gpu_check.table benchmarks/results/gpu-NAME.jsonl
python benchmarks/gpu_check/table.py BEFORE.jsonl AFTER.jsonl      # a column for each file
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu_check.records import Record, read
from benchmarks.gpu_check.steps import ROOT

NOTES = ROOT / "benchmarks" / "NOTES.md"
_SPELLINGS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "channels-last": "channels last"}


@dataclass(frozen=True)
class Predicted:
    """A prediction of NOTES.md: a case, and its time in microseconds."""

    case: str
    microseconds: float


def predictions(notes: str) -> dict[str, Predicted]:
    """The predictions in the tables of NOTES.md, by :func:`key_of` their cases.

    A table of predictions has the columns ``case`` and ``predicted``. An empty case is that of the row above; the last
    row of a case is of the newest kernel.
    """
    found: dict[str, Predicted] = {}
    columns: list[str] | None = None
    case = ""
    for line in notes.splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if columns is None:
            columns, case = cells, ""
        elif {"case", "predicted"} <= set(columns) and len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            case = row["case"] or case
            number = re.search(r"\d+(\.\d+)?", row["predicted"])
            if number and case:
                found[key_of(case)] = Predicted(case, float(number[0]))
    return found


def key_of(case: str) -> str:
    """A case's name, whichever way it is spelled."""
    text = case.lower()
    for spelling, name in _SPELLINGS.items():
        text = text.replace(spelling, name)
    return " ".join(sorted(re.findall(r"[\w.]+", text)))


def table(results: Mapping[str, list[Record]], notes: str) -> str:
    """A Markdown table of the times on the device, a row for each case.

    Args:
        results: the records of each result, by its name; of several rows of one case and variant, the last counts.
        notes: the text of NOTES.md.
    """
    predicted = predictions(notes)
    times = {name: _times(records) for name, records in results.items()}
    cases = list(dict.fromkeys(case for found in times.values() for case in found))
    head = ["case", "predicted us, H100"]
    for name in times:
        head += [f"{name}: us", "of the copy", "over eager", "over compile"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for case in cases:
        expected = predicted.get(key_of(case))
        cells = [case, "" if expected is None else f"{expected.microseconds:g}"]
        for found in times.values():
            cells += _cells(found.get(case, {}))
        lines.append(f"| {' | '.join(cells)} |")
    measured = {key_of(case) for case in cases}
    lines += [f"{one.case}: predicted, not measured" for key, one in predicted.items() if key not in measured]
    return "\n".join(lines)


def _times(records: list[Record]) -> dict[str, dict[str, float]]:
    """Microseconds on the device by case and variant, for the cases with a warp."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        if record.kind == "row":
            found.setdefault(record.case, {})[str(record.values["variant"])] = 1000 * float(record.values["device_ms"])
    return {case: times for case, times in found.items() if "fused" in times}


def _cells(times: Mapping[str, float]) -> list[str]:
    """Our time, its share of the copy's bandwidth, and the speedups."""
    if "fused" not in times:
        return [""] * 4
    ratios = {name: f"{times[name] / times['fused']:.2f}" for name in ("copy", "eager", "compile") if name in times}
    return [f"{times['fused']:.1f}", *(ratios.get(name, "") for name in ("copy", "eager", "compile"))]


def summary(path: Path, run: str) -> str:
    """What a run of the check has measured: ratios, and what failed."""
    return "\n".join(_lines([record for record in read(path) if record.run == run]))


def _lines(records: list[Record]) -> Iterator[str]:
    for record in records:
        if record.kind == "figure":
            name, value, target = (record.values[key] for key in ("name", "value", "target"))
            verdict = "ok" if record.values["reached"] else "MISSED"
            yield f"{name:72} {value:7.2f}  target {target:5.2f}  {verdict}"
    for record in records:
        if record.kind in ("failure", "note"):
            yield f"{record.step}: {record.case}: {'FAILED' if record.kind == 'failure' else 'omitted'}: " + str(
                record.values["reason"]
            )


def main(argv: list[str] | None = None) -> None:
    """Print the table; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files of figures, gpu-NAME.jsonl")
    arguments = parser.parse_args(argv)
    for path in arguments.results:
        if not path.is_file():
            raise SystemExit(f"{path}: there is no such file")
    results = {path.stem: list(read(path)) for path in arguments.results}
    print(table(results, NOTES.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
