"""Pages of the site that live elsewhere in the repository, so that nothing is written twice.

The navigation of mkdocs.yml names them by their path. Links between pages are resolved here: in the repository a link
is relative to its file, and one to a file that is not a page becomes plain text with the file's path.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

import stn_infer
from stn_infer.cli.main import main

WIDTH = 80  # of the help texts: what fits beside the navigation
ROOT = Path(__file__).resolve().parents[2]
PUBLIC = "<!-- public names -->"  # in a page: the public functions and classes of the package
COMMANDS = "<!-- commands -->"  # likewise: the help of every command
_UNTESTED = ' title="not run by the tests"'  # of a code block: for the tests, not for readers
_LINK = re.compile(r"(!?)\[([^\]\n]*(?:\n[^\]\n]+)?)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^ *(```+|~~~+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that the navigation names outside of docs/."""
    for path in _paths(config["nav"]):
        if not (Path(config["docs_dir"]) / path).is_file():
            files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Resolves the links of a page; code stays as it is."""
    uri = page.file.src_uri
    markdown = markdown.replace(_UNTESTED, "")
    if PUBLIC in markdown:
        markdown = markdown.replace(PUBLIC, "\n\n".join(f"::: stn_infer.{name}" for name in _public_names()))
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n\n".join(_help(main, "stn-infer")))
    in_docs = (Path(config["docs_dir"]) / uri).is_file()
    folder = posixpath.dirname(f"docs/{uri}" if in_docs else uri)
    known = {file.src_uri for file in files}
    return relinked(markdown, folder, posixpath.dirname(uri), known)


def relinked(markdown: str, folder: str, page_folder: str, known: set[str]) -> str:
    """Markdown with the links of a site.

    Args:
        markdown: as it stands in the repository.
        folder: the file's folder in the repository.
        page_folder: the page's folder in the site.
        known: paths of all the site's files.
    """

    def replacement(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        found = path.removeprefix("docs/") if path.startswith("docs/") else path
        if found in known:
            return f"{image}[{text}]({posixpath.relpath(found, page_folder or '.')}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # the strict build reports it
        return text if f"`{path}`" in text or text == path else f"{text} (`{path}`)"

    return "".join(part if code else _LINK.sub(replacement, part) for code, part in _parts(markdown))


def _public_names() -> list[str]:
    return [name for name in stn_infer.__all__ if not name.startswith("_")]


def _help(command: click.Command, name: str, above: click.Context | None = None) -> Iterator[str]:
    """A section for a command and one for each of its own commands."""
    context = click.Context(command, info_name=name, parent=above, max_content_width=WIDTH, terminal_width=WIDTH)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None:
                yield from _help(found, below, context)


def _parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """(whether it is a code block, the text) of each part of a page."""
    fence = ""
    part: list[str] = []
    for line in markdown.splitlines(keepends=True):
        match = _FENCE.match(line)
        if match and not fence:
            yield False, "".join(part)
            fence, part = match[1], [line]
        elif match and match[1].startswith(fence):
            yield True, "".join([*part, line])
            fence, part = "", []
        else:
            part.append(line)
    yield bool(fence), "".join(part)


def _paths(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for entry in nav.values():
            yield from _paths(entry)
    else:
        for entry in nav:
            yield from _paths(entry)
