"""The page opens with its verdict, needs no other file and runs no script; in a browser it fits, light and dark."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stn_infer.benchmarking.report.page import page
from stn_infer.benchmarking.result import BenchResult
from tests.support.browser import WIDTHS, Browser

pytest.importorskip("matplotlib", reason="matplotlib is in the report extra")

HOSTILE = '<img src=x onerror="alert(1)">\x1b[2J&'


@pytest.fixture(scope="module")
def hostile(measured: BenchResult) -> BenchResult:
    """Two models of long and hostile names, a variant of the user's own, a command, a reason and a machine likewise."""
    (model,) = measured.models
    own = f"package.{'long' * 20}:{HOSTILE}"
    rows = tuple(
        replace(row, variant=own, runs_on={"runtime": HOSTILE * 3}) if row.variant == "compile" else row
        for row in measured.measurements
    )
    rows = tuple(replace(row, reason=HOSTILE) if row.reason else row for row in rows)
    named = replace(model, name=f"{HOSTILE}{'name' * 30}")
    return replace(
        measured,
        command=f"stn-infer bench {HOSTILE} {'option' * 40}",
        machine=replace(measured.machine, cpu=HOSTILE * 4),
        models=(model, named),
        measurements=(*rows, *(replace(row, model=named.name) for row in rows)),
    )


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib's plots take seconds; test_files.py and the tests in a browser have them."""
    monkeypatch.setattr("stn_infer.benchmarking.report.plots.plots", lambda result, model: [])


@pytest.mark.usefixtures("without_plots")
def test_the_order_of_the_page(measured: BenchResult) -> None:
    text = page(measured)
    places = [text.index(piece) for piece in ('<p class="verdict">', "<figure>", "<table>", "<h2>Environment")]
    places += [text.index("<pre tabindex"), text.index("<summary>Notes")]
    assert places == sorted(places)
    assert '<pre tabindex="0"><code>stn-infer bench model.onnx</code></pre>' in text
    assert "Speedup over PyTorch CPU at batch 8" in text
    assert "<summary>Speedups at other batch sizes</summary>" in text and "Speedup over PyTorch CPU at batch 1" in text
    assert "stn-infer, onnxruntime CPU, no plugin<br><code>ort</code>" in text
    assert "<pre" not in page(replace(measured, command=""))  # made through the Python API


@pytest.mark.usefixtures("without_plots")
def test_names_are_text_and_nothing_is_loaded(hostile: BenchResult) -> None:
    text = page(hostile)
    assert "<img" not in text and "<script" not in text and "\x1b" not in text
    assert not re.search(r'(src|href)="(?!#)', text) and not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_is_readable(hostile: BenchResult, width: int, browser: Browser, tmp_path: Path) -> None:
    text = page(hostile)
    assert "<img" not in text and "\x1b" not in text
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    for scheme in ("light", "dark"):
        with browser.open(tmp_path / "report.html", width, scheme) as shown:
            shown.picture(f"bench-{width}-{scheme}")
            for state in ("folded", "unfolded"):
                assert shown.overflow <= 0, state
                assert shown.faint() == [], state
                shown.unfold()
            assert shown.outside == []
            assert shown.value("document.querySelectorAll('.chart .bar').length") == 2 * 2 * 4
            assert shown.problems == []


@pytest.mark.slow
def test_on_paper_it_is_light_and_unfolded(measured: BenchResult, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page(measured), encoding="utf-8")
    with browser.open(tmp_path / "report.html", 1280, "dark") as shown:
        notes = "document.querySelector('details:last-of-type li').checkVisibility()"
        assert not shown.value(notes)
        shown.on_paper()
        assert shown.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert shown.value(notes)
        shown.picture("bench-paper")
