"""The version, and what names it: a release without one of them fails here."""

from __future__ import annotations

import re
from datetime import date

from stn_infer.version import __version__
from tests.support.paths import ROOT

#: MAJOR.MINOR.PATCH, with a suffix between releases.
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(\.dev\d+|rc\d+)?")


def numbers(version: str) -> tuple[int, ...]:
    found = _VERSION.fullmatch(version)
    assert found is not None, version
    return tuple(map(int, found.groups()[:3]))


def is_release() -> bool:
    """Whether the version has no suffix."""
    return re.fullmatch(r"[\d.]+", __version__) is not None


def test_the_changelog_has_the_version_with_its_date_and_the_newest_first() -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(.+)\] - (\d{4}-\d\d-\d\d)", section) for section in sections[1:]]
    assert None not in released, sections
    versions = [(numbers(found[1]), date.fromisoformat(found[2])) for found in released if found]
    assert versions == sorted(set(versions), reverse=True)
    if numbers(__version__)[0] >= 1:
        newest = versions[0][0] if versions else (0,)
        assert newest == numbers(__version__) if is_release() else newest < numbers(__version__)


def test_the_exported_models_are_of_the_last_release() -> None:
    """Their bytes name the version, so a release makes them again."""
    named = re.search(r"with stn-infer ([^,\s]+),", (ROOT / "export" / "MODELS.md").read_text(encoding="utf-8"))
    assert named is not None
    assert named[1] == __version__ if is_release() else numbers(named[1]) <= numbers(__version__)
