from __future__ import annotations

import re

from benchmarks import readme
from tests.support.paths import ROOT


def test_the_figures_match_the_result_files() -> None:
    texts = [page.read_text(encoding="utf-8") for page in readme.PAGES]
    for text in texts:
        assert readme.filled(text) == text, "run benchmarks/readme.py"
    assert readme.PLOT.read_text(encoding="utf-8") == readme.plot(), "run benchmarks/readme.py"
    for name in readme.BLOCKS:
        assert f"<!-- figures: {name} -->" in "".join(texts)


def test_a_changed_figure_is_detected() -> None:
    text = readme.RESULTS_PAGE.read_text(encoding="utf-8")
    block = re.search(r"<!-- figures: models -->.*?(\d\.\d\d) %", text, re.DOTALL)
    assert block is not None
    changed = text[: block.start(1)] + "0.01" + text[block.end(1) :]
    assert readme.filled(changed) == text != changed


def test_pages_that_the_readme_links_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", readme.README.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_every_command_is_in_the_readme() -> None:
    from stn_infer.cli.main import COMMANDS

    text = readme.README.read_text(encoding="utf-8")
    assert len(text.split()) < 900  # read in two minutes, tables skimmed
    assert not [name for name in COMMANDS if f"`{name}`" not in text]


def test_the_headline_result_is_complete_and_timed() -> None:
    result = readme.peers()
    assert result.complete
    assert not result.request.method.quick
    rows = [result.get(variant, 256, "tutorial-stn-r") for variant in readme.NAMES]
    assert all(row.status == "timed" for row in rows)
    assert "not available" not in readme.warps()
