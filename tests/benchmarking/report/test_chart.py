"""Bars as long as the figures, in a frame that holds them; what is drawn is also read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stn_infer.benchmarking.report.chart import Bar, Panel, as_file, in_page, panel
from stn_infer.benchmarking.request import QUICK
from stn_infer.benchmarking.result import BenchResult
from stn_infer.benchmarking.stats import Interval
from tests.support.benchmarking_sim import Simulated, Simulation, fixed, noisy
from tests.support.browser import Browser
from tests.support.paths import ROOT

HOSTILE = '<script>"&\x1b[2J'


def percents(svg: str, kind: str, attribute: str) -> list[float]:
    found = [it for it in ElementTree.fromstring(svg).iter() if kind in it.get("class", "")]
    return [float(it.attrib[attribute].removesuffix("%")) for it in found]


def test_bars_and_intervals_are_to_scale() -> None:
    bars = (Bar("a", True, Interval(4.0, 2.0, 8.0), "4x"), Bar("b", False, Interval(1.0, None, None), "1x"))
    svg = in_page([Panel("", bars)], "label")
    assert percents(svg, "bar", "width") == [25.0, 6.25]
    assert percents(svg, "interval", "x1") == [12.5, 12.5, 50.0]
    assert percents(svg, "interval", "x2") == [50.0, 12.5, 50.0]
    assert percents(svg, "equal", "x1") == [6.25, 6.25]  # 1x


def test_the_fastest_comes_first_and_a_failed_one_has_no_bar(measured: BenchResult) -> None:
    drawn = panel(measured, measured.models[0], 8, "eager")
    assert [bar.name for bar in drawn.bars] == [
        "stn-infer, onnxruntime CPU, no plugin",
        "torch.compile CPU",
        "PyTorch CPU",
        "torch.onnx.export, onnxruntime CPU",
        "stn-infer, onnxruntime CPU",
    ]
    assert [bar.ours for bar in drawn.bars] == [True, False, False, False, True]
    ratios = [bar.ratio.value if bar.ratio else None for bar in drawn.bars]
    assert ratios[:4] == pytest.approx([2.0, 4 / 3, 1.0, 2 / 3], rel=0.05) and ratios[4] is None
    assert drawn.bars[2].figure == "1x" and drawn.bars[4].figure == "failed: not timed"
    assert len(percents(in_page([drawn], ""), "bar", "width")) == 4


def test_an_unstable_pair_has_no_bar() -> None:
    backends = {"eager": Simulated(fixed(4.0)), "ort": Simulated(noisy(1.0, 0.9))}
    result = Simulation(backends, round_factor=lambda number, _: 1.0 + number).go(QUICK)
    ours = next(bar for bar in panel(result, result.models[0], 4, "eager").bars if bar.ours)
    assert (ours.ratio, ours.figure) == (None, "unstable: no ratio")


def test_a_missing_baseline_is_told(measured: BenchResult) -> None:
    rows = tuple(row for row in measured.measurements if row.variant != "eager")
    drawn = panel(replace(measured, measurements=rows), measured.models[0], 8, "eager")
    assert {bar.figure for bar in drawn.bars if bar.time} == {"nothing to compare with"}


def test_names_are_text_and_long_ones_are_cut_with_the_whole_beside() -> None:
    bar = Bar(HOSTILE * 9, False, Interval(2.0, None, None), "2x")
    for svg in (in_page([Panel(HOSTILE, (bar,))], HOSTILE), as_file([Panel(HOSTILE, (bar,))], HOSTILE)):
        root = ElementTree.fromstring(svg)
        assert not [it for it in root.iter() if it.tag.endswith("script")] and "\x1b" not in svg
        names = [it for it in root.iter() if it.tag.endswith("text") and it.get("class") is None]
        assert len(names[0].text or "") == 42 and names[0][0].text == HOSTILE.replace("\x1b", "\\x1b") * 9


@pytest.mark.slow
def test_a_file_holds_what_it_draws(browser: Browser, tmp_path: Path) -> None:
    bars = (
        Bar("model_name" * 9, True, Interval(123.4, 100.0, 888.8), "123x (100 to 889)", "12,345 ms"),
        Bar("b", False, None, "unstable: no ratio", "0.0100 ms"),
    )
    wide = as_file([Panel("model_name" * 9, bars), Panel("next", bars)], "label")
    for name, svg in (("wide", wide), ("readme", (ROOT / "docs" / "speedup.svg").read_text(encoding="utf-8"))):
        file = tmp_path / f"{name}.html"
        file.write_text(f'<!DOCTYPE html><body style="margin: 0">{svg}', encoding="utf-8")
        for scheme in ("light", "dark"):
            with browser.open(file, 1280, scheme) as shown:
                shown.picture(f"chart-{name}-{scheme}")
                assert shown.outside == []


def test_what_is_drawn_is_read() -> None:
    bars = (Bar("a", True, Interval(4.0, 2.0, 8.0), "4x (2 to 8)"), Bar("b", False, None, "unstable: no ratio"))
    sentence = "What it is. Photos: a: 4x (2 to 8); b: unstable: no ratio."
    assert ElementTree.fromstring(in_page([Panel("Photos", bars)], "What it is")).get("aria-label") == sentence
    file = ElementTree.fromstring(as_file([Panel("Photos", bars)], "What it is"))
    assert file[0].text == sentence and file.get("role") == "img"


def test_a_file_has_its_own_background_and_colors_for_dark_screens() -> None:
    svg = as_file([Panel("", (Bar("a", True, Interval(1.0, None, None), "1x"),))], "label")
    assert "var(--page)" in svg and "prefers-color-scheme: dark" in svg
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
