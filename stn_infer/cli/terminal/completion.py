"""What the shell completes after Tab: names of models and networks, and the files that an argument can take.

Each function is the ``shell_complete`` of a parameter. Only tables of names are imported, and nothing is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

MODELS = (".onnx", ".pt2", ".toml")
CHECKPOINTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def complete_files(*suffixes: str) -> Completer:
    """Files with one of ``suffixes``, and folders."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return list(_files(incomplete, suffixes))

    return complete


def complete_paths(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Any files, as the shell completes them."""
    return [CompletionItem(incomplete, type="file")]


def complete_source(*more: str) -> Completer:
    """Shipped models, networks and published models by their names, then files that are models, and ``more`` words."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from stn_infer.foreign.registry import FOREIGN
        from stn_infer.models import NETWORKS, SHIPPED

        kinds = ((more, "command"), (SHIPPED, "shipped model"), (NETWORKS, "network"), (FOREIGN, "published model"))
        named = [CompletionItem(name, help=kind) for names, kind in kinds for name in names]
        return [*_files(incomplete, MODELS), *(item for item in named if item.value.startswith(incomplete))]

    return complete


def complete_variant(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What ``bench`` can measure."""
    from stn_infer.benchmarking.variants.names import VARIANTS

    return [CompletionItem(name, help=what) for name, what in VARIANTS.items() if name.startswith(incomplete)]


def complete_rule(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The rules of ``lint``, by number."""
    from stn_infer.lint_rules.catalog import RULES

    return [CompletionItem(it.number, help=it.code) for it in RULES if it.number.startswith(incomplete.upper())]


def _files(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[CompletionItem]:
    """Folders first: a shell that completes folders by itself forgets what came before."""
    folder, start = os.path.split(incomplete)
    try:
        entries = sorted(Path(folder or ".").iterdir())
    except OSError:  # there is no such folder, or it cannot be read
        return
    # the names are printed into a shell: only what a line of a terminal can hold
    known = [it for it in entries if it.name.startswith(start) and it.name.isprintable()]
    visible = [it for it in known if start.startswith(".") or not it.name.startswith(".")]
    if any(it.is_dir() for it in visible):
        yield CompletionItem(incomplete, type="dir")
    for it in visible:
        if it.suffix.lower() in suffixes and it.is_file():
            yield CompletionItem(os.path.join(folder, it.name))
