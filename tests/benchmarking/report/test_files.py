"""Reports: Markdown, CSV and one HTML page that needs no other file, all from the same figures."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stn_infer.benchmarking.report import tables
from stn_infer.benchmarking.report.explain import explanation
from stn_infer.benchmarking.report.files import as_csv, markdown, page, write_report
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.result import BenchResult
from stn_infer.errors import OutputError
from tests.support.benchmarking_sim import Simulated, Simulation, fixed, noisy

METHOD = Method(rounds=6, seconds=0.1, samples=132, turns=2, warmup_seconds=0.01, rates=(50.0,), concurrency=(1,))


@pytest.fixture(scope="module")
def result() -> BenchResult:
    backends = {
        "eager": Simulated(noisy(2.0)),
        "ort-plain": Simulated(noisy(3.0)),
        "ort": Simulated(noisy(1.0)),
        "ort-fused": Simulated(fixed(0.5), off_by=1.0),
    }
    made = Simulation(backends, batch_sizes=(1, 8)).go(METHOD)
    stages = {
        "ort-plain": {"grid": 2.0, "sampling": 0.5, "rest": 0.5},
        "ort": {"grid": 0.1, "sampling": 0.5, "rest": 0.4},
    }
    rows = tuple(replace(row, stages=stages.get(row.variant)) for row in made.measurements)
    return replace(made, measurements=rows, command="stn-infer bench <script>alert(1)</script>")


def test_markdown_has_each_row_and_the_interval(result: BenchResult) -> None:
    text = markdown(result)
    row = next(line for line in text.splitlines() if line.startswith("| 8 | ort |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert float(cells[2]) == pytest.approx(1.0, rel=0.02)
    assert re.fullmatch(r"[12]\.\d\dx \(\d\.\d\d to \d\.\d\d\)", cells[6])
    assert "| 8 | ort-fused | failed |" in text
    assert text.startswith("# Benchmark: simulated\n\nAt batch 8, stn-infer (onnxruntime CPU, no plugin, 1.0")
    assert text.index("](speedup.svg)") < text.index("| batch |")
    assert "- Device: cpu, 1 thread\n" in text and "- Method: 6 rounds, " in text
    assert "## Environment" in text and "    stn-infer bench <script>alert(1)</script>" in text
    assert text.index("<details><summary>Notes</summary>") < text.index("- not timed: ort-fused")
    assert "not timed: ort-fused at batch 8: outputs are off" in text


def test_csv_has_full_figures(result: BenchResult) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(result))))
    assert len(rows) == 8
    row = next(row for row in rows if (row["variant"], row["batch_size"]) == ("eager", "8"))
    assert float(row["p50_ms"]) == result.get("eager", 8).median_ms
    assert float(row["p95_ms"]) == result.get("eager", 8).percentiles[95]
    assert row["p99_ms"] == ""  # too few samples
    failed = next(row for row in rows if row["variant"] == "ort-fused")
    assert (failed["status"], failed["p50_ms"], failed["samples_per_second"]) == ("failed", "", "")


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(result: BenchResult) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the report extra")
    text = page(result)
    assert page(result) == text
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!#)', text)
    assert text.count("<svg") == 5  # speedups at two batch sizes, latency and throughput, percentiles, stages
    assert "Execution provider of each GridSample" in text and "Under load" in text and "Cold start" in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)
    assert "latency from the due time" in text.lower()


def test_the_sentence_says_what_the_difference_is_due_to(result: BenchResult) -> None:
    fastest, because = explanation(result)
    assert fastest.startswith("at batch 8 ort is the fastest: ")
    assert "because computing the sampling grid takes 67% of ort-plain's time and 10% of ort's" in because


def test_a_difference_between_runtimes_is_told_stage_by_stage(result: BenchResult) -> None:
    def told(**stages: dict[str, float]) -> str:
        rows = tuple(replace(row, stages=stages.get(row.variant.replace("-", "_"))) for row in result.measurements)
        return explanation(replace(result, measurements=rows))[0]

    known = told(eager={"grid": 1.0, "sampling": 2.0, "rest": 1.0}, ort={"grid": 0.1, "sampling": 0.5, "rest": 0.4})
    # of medians of 2 ms and 1 ms: shares of a quarter, a half and a quarter, and of 10, 50 and 40 %
    found = re.findall(r"([\d.]+) ms (in [a-z ]+) \(([\d.]+) to ([\d.]+)\)", known)
    assert [it[1] for it in found] == ["in the sampling", "in the sampling grid", "in the rest of the network"]
    wanted = [(0.5, 1.0, 0.5), (0.4, 0.5, 0.1), (0.1, 0.5, 0.4)]
    for figures, (saved, _, before, after) in zip(wanted, found, strict=True):
        assert (float(saved), float(before), float(after)) == pytest.approx(figures, rel=0.05)
    merged = told(eager={"sampling": 2.0, "rest": 2.0}, ort={"grid": 0.1, "sampling": 0.5, "rest": 0.4})
    assert "in the grid and the rest of the network" in merged and "in the sampling grid" not in merged
    assert "saved" not in told(eager={"grid": 1.0, "sampling": 2.0, "rest": 1.0})


def test_four_files_are_written(result: BenchResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the report extra")
    paths = write_report(result, tmp_path / "new")
    assert [path.name for path in paths] == ["report.md", "report.csv", "report.html", "speedup.svg"]
    assert all(path.stat().st_size > 500 for path in paths)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_report(result, tmp_path / "file")


def test_a_heading_names_any_function(result: BenchResult) -> None:
    named = "my_file|.py:run_<b>it"
    rows = tuple(replace(row, variant=named) for row in result.measurements if row.variant == "ort")
    lines = markdown(replace(result, measurements=rows)).splitlines()
    (heading,) = (line for line in lines if line.startswith("| batch | variant | median"))
    assert r"| speedup over my\_file\|.py:run\_&lt;b&gt;it (95 % CI) |" in heading


def test_every_row_is_compared_with_what_the_heading_names(result: BenchResult) -> None:
    """A baseline that could be timed at one batch size only is not replaced by another at the next."""
    rows = tuple(
        replace(row, status="unavailable", rounds=()) if row.key[2:] == (8, "eager") else row
        for row in result.measurements
    )
    partial = replace(result, measurements=rows)
    (model,) = partial.models
    assert tables.compared_with(partial, model) == "eager"
    assert tables.speedup_over(partial, model, partial.get("ort", 1)) != ""
    assert tables.speedup_over(partial, model, partial.get("ort", 8)) == ""
