"""The page needs no other file, names in it are text, and it fits a telephone and a desk."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import LintReport, TargetVerdict
from stn_infer.lint_rules.web_page import to_html
from tests.support.browser import WIDTHS, Browser

HOSTILE = '<script src="https://example.org/x.js"></script>\x1b[2J&"\''
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The page's elements, its text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(count: int = 3, name: str = "node", path: str = "model.onnx") -> LintReport:
    findings = [
        LintFinding("cpu-sampler", "warning", f"{name}{index}", "grid", f"may run on the CPU {name}", source="net.py:7")
        for index in range(count)
    ]
    refused = LintFinding("target-refused", "error", name, "", f"no rule for {name}", True, target="openvino")
    verdicts = (
        TargetVerdict("openvino", "refused", "OpenVINO 2026.4.1", improved_by="optimize", outcome_after="supported"),
        TargetVerdict("tensorrt==10.3", "not judged", "what is known", (f"their::{name} (2 nodes)",)),
        TargetVerdict("onnxruntime", "supported", "onnxruntime 1.31.1"),
    )
    return LintReport(Path(path), 18, 9, (refused, *findings), verdicts)


def test_it_needs_no_other_file_and_runs_no_script() -> None:
    text = to_html(report())
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "a", "form"})
    assert not any({"src", "href", "style", "onload", "onclick"} & attributes.keys() for _, attributes in page.tags)
    assert re.search(r"url\(|@import|https?:", text) is None
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in page.tags)


def test_it_says_what_the_report_says() -> None:
    page = Page(to_html(report()))
    for piece in (
        "model.onnx (opset 18): 1 error, 3 warnings, 0 infos; 1 [*] fixable by optimize",
        "openvino: refused",
        "OpenVINO 2026.4.1; supported after optimize",
        "tensorrt==10.3: not judged",
        "Not judged: their::node (2 nodes)",
        "error[E010] openvino: a target refuses the file",
        "warning[W006] onnxruntime's CUDA provider may run the sampler on the CPU",
        "node0 (net.py:7) may run on the CPU node",
        "What to do: optimize writes an op of domain stn",
        "stn-infer optimize model.onnx -o fixed.onnx",
    ):
        assert piece in page.text, piece


def test_names_are_text() -> None:
    page = Page(to_html(report(name=HOSTILE, path=f"{HOSTILE.replace('/', '_')}.onnx")))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "\x1b" not in page.text and '<script src="https://example.org/x.js"></script>\\x1b[2J&"\'0' in page.text


def test_many_findings_are_folded_and_none_is_lost() -> None:
    page = Page(to_html(report(count=30)))
    assert "10 more" in page.text and all(f"node{index} " in page.text for index in range(30))


def test_a_file_without_findings() -> None:
    page = Page(to_html(LintReport(Path("model.onnx"), 18, 9, ())))
    assert "None." in page.text and "Targets" not in page.text


def test_styles_for_dark_screens_and_paper() -> None:
    text = to_html(report())
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    named = set(re.findall(r"var\(--([a-z]+)\)", text))
    light, dark = (set(re.findall(r"--([a-z]+):", block)) for block in re.findall(r":root \{([^}]*)\}", text))
    assert named and named <= light == dark


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_is_readable(width: int, browser: Browser, tmp_path: Path) -> None:
    text = to_html(report(count=25, name="/model/" + "encoder_block_" * 20, path=f"{'long' * 50}.onnx"))
    (tmp_path / "lint.html").write_text(text, encoding="utf-8")
    for scheme in ("light", "dark"):
        with browser.open(tmp_path / "lint.html", width, scheme) as shown:
            shown.picture(f"lint-{width}-{scheme}")
            shown.unfold()
            assert shown.overflow <= 0
            assert shown.faint() == []
            assert shown.problems == []
