"""Every rule has a number for ever and a text, and the page of rules is made of these texts."""

from __future__ import annotations

import re

from stn_infer.lint_rules.catalog import RULES, page
from tests.support.paths import ROOT


def test_the_page_of_rules_is_up_to_date() -> None:
    stored = (ROOT / "docs" / "lint-rules.md").read_text(encoding="utf-8")
    assert stored == page(), "run: python -m stn_infer.lint_rules.catalog > docs/lint-rules.md"


def test_every_code_has_a_rule() -> None:
    sources = [*(ROOT / "stn_infer" / "lint_rules").glob("*.py"), ROOT / "stn_infer" / "api" / "lint.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    used = set(re.findall(r'(?:LintFinding|_finding)\(\s*"([a-z0-9-]+)"', text))
    codes = {rule.code for rule in RULES}
    assert len(used) > 25 and used <= codes


def test_numbers_tell_the_severity_and_are_counted_up() -> None:
    assert len({rule.number for rule in RULES}) == len({rule.code for rule in RULES}) == len(RULES)
    for severity in ("error", "warning", "info"):
        numbers = [rule.number for rule in RULES if rule.severity == severity]
        assert numbers == [f"{severity[0].upper()}{index:03}" for index in range(1, len(numbers) + 1)]


def test_numbers_of_released_rules_stay() -> None:
    """A number in a user's configuration means the same rule for ever; new rules are added here."""
    released = {"E001": "does-not-run", "E009": "opset-20-trap", "W001": "affine-grid", "W007": "fusable-grid"}
    released |= {"W013": "opset-too-old", "I001": "static-size", "I010": "no-sampler"}
    found = {rule.number: rule.code for rule in RULES}
    assert {number: found[number] for number in released} == released


def test_every_text_is_whole_sentences() -> None:
    for rule in RULES:
        for text in (rule.meaning, rule.concerns, rule.remedy):
            assert text.endswith(".") and "  " not in text, rule.code
