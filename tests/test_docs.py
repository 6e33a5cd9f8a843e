"""The pages: their code runs, their commands exist, the site has no broken link and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import click
import pytest

from stn_infer.cli.main import main
from tests.support.browser import Browser
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages whose code runs from top to bottom in an empty folder.
RUN = ("first-model", "deployment", "python-api")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title, its text."""

    language: str
    title: str
    text: str

    @property
    def runs(self) -> bool:
        return self.language in ("sh", "python") and not self.title


def blocks(page: Path) -> Iterator[Block]:
    pattern = r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$'
    for match in re.finditer(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield Block(match[1], match[2] or "", match[3])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_code_of_a_page_runs(name: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{work}"}
    ran = 0
    for number, block in enumerate(blocks(ROOT / "docs" / f"{name}.md")):
        if block.title.endswith(".py"):
            (work / block.title).write_text(block.text)
        elif block.runs:
            command = ["bash", "-ec", block.text] if block.language == "sh" else [sys.executable, "-c", block.text]
            done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"block {number} of {name}.md:\n{block.text}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran >= 2
    if name == "first-model":
        assert {"digits.onnx", "sampled.png", "predictions"} <= {path.name for path in work.iterdir()}


@pytest.mark.parametrize("name", RUN)
def test_a_block_that_does_not_run_says_why(name: str) -> None:
    for block in blocks(ROOT / "docs" / f"{name}.md"):
        if block.language in ("sh", "python", "cpp") and not block.runs:
            assert re.match(r"needs |not run by the tests|\w+\.py$", block.title), block


def lines(page: Path) -> Iterator[str]:
    """The command lines of a page, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.strip().startswith("stn-infer ") and (fenced or line.startswith("    ")):
            yield line.partition("#")[0].strip()


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for line in lines(page):
        command: click.Command = main
        context = click.Context(main, info_name="stn-infer")
        words = shlex.split(line.replace("$(", "").replace(")", ""))[1:]
        while words and isinstance(command, click.Group) and not words[0].startswith("-"):
            found = command.get_command(context, words[0])
            assert found is not None, line
            command, words = found, words[1:]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        named = {word.partition("=")[0] for word in words if word.startswith("-") and len(word) > 1}
        assert named <= options | {"--help", "-h"}, line


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "stn_infer").rglob("*.py"))
    code = re.sub(r'"\n\s+f?"', "", code)  # one string over several lines
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [
        message
        for title in re.findall(r"^\*\*(.*?)\*\* ", page, re.MULTILINE)
        if not re.match("TensorRT:|CUDA:", title)  # theirs
        for message in re.findall('"(.*?)"', title)
    ]
    assert len(messages) >= 4
    for message in messages:
        for part in re.split(r"\.\.\.|stn::Sampler", message):  # what is put in
            assert part.strip(" ,:") in code, message


class Links(HTMLParser):
    """The links, anchors and loaded files of a page of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag in ("script", "img", "iframe") and "src" in given:
            self.loaded.add(given["src"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loaded.add(given.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_no_broken_link(site: Path) -> None:
    pages: dict[Path, Links] = {}
    for path in site.rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    assert len(pages) > 20
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        broken += [f"{path.name} loads {link}" for link in page.loaded if urlsplit(link).scheme in ("http", "https")]
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append(f"{path.name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.name}: no anchor {link}")
    assert broken == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_every_page_of_the_site_fits_and_is_readable(
    width: int, scheme: Literal["light", "dark"], site: Path, browser: Browser
) -> None:
    found = []
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":  # its links are for a server
            continue
        with browser.open(path, width, scheme) as page:
            name = "-".join(path.relative_to(site).with_suffix("").parts)
            page.picture(f"docs-{name}-{width}-{scheme}")
            problems = [*page.faint(), *page.missing, *page.problems]
            found += [(name, problem) for problem in (*problems, *(["too wide"] if page.overflow > 0 else []))]
    assert found == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= named
    assert all((ROOT / "docs" / name).is_file() or (ROOT / name).is_file() for name in named)
