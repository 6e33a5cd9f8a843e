"""The field's words: what readers would stumble over is written nowhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

_RATES = (
    r"\b(ms|milliseconds|seconds|samples|calls|bytes|values|parameters|one|twice|once|column|line|entry|thread|"
    r"worker|phrase|row|digest|count|file|shard|op|rule|engine|kernel|channel) an? "
    r"(call|sample|second|core|line|channel|file|user|pixel|round|batch|row|machine|process|class|color|"
    r"architecture|seed|transformer|block|shard|kernel|sampler|runtime|backend|command|output|input)\b"
)
#: What is not written, and what is written instead.
WORDS = {
    r"\bbe had\b": "available",
    r"\bwithout a word\b": "silently",
    r"\bto and fro\b": "host-device copies",
    r"(?<!there )\bis no (?!longer\b|more\b|less\b)(?=[a-z])": "is not a",
    r"\btimes as fast\b": "speedup over",
    _RATES: "per",
    r"\bverbs?\b": "commands",
    r"\bof yours\b|\bof one's own\b": "your own",
    r"\banew\b": "again",
    r"\bpassed over\b": "skipped",
    r"\bto be taken with care\b|\bnot steady\b|\bnothing to quote\b": "unstable measurement; low confidence",
    r"\bfrozen? the size\b": "baked the size in as a constant",
    r"\bhonest\b": "",
    r"\b(colour|centre|behaviour|neighbour|localisation|normalise|optimise|quantise|initialise|serialise)": "American",
}
#: Files that quote, or that record the past.
EXCEPT = (
    *("tests/test_english.py", "CHANGELOG.md", "LICENSE", "benchmarks/results/"),
    *("stn_infer/version.py", "stn_infer/layers.py", "tests/test_metadata.py"),  # the spelling of earlier versions
)
_TEXT = (".py", ".md", ".toml", ".cpp", ".hpp", ".h", ".cu", ".txt")


def _texts() -> Iterator[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if name.endswith(_TEXT) and not name.startswith(EXCEPT):
            yield ROOT / name


@pytest.mark.parametrize(("pattern", "instead"), WORDS.items(), ids=[f"{index}" for index in range(len(WORDS))])
def test_what_is_not_written(pattern: str, instead: str) -> None:
    found = []
    for path in _texts():
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(pattern, text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {match[0]!r}, write {instead!r}")
    assert found == []
