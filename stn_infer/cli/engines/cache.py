"""``stn-infer cache``: list or clear the cache of TensorRT engines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli.help import Group
from stn_infer.cli.output import echo, emit
from stn_infer.printing import counted

if TYPE_CHECKING:
    from stn_infer.backends.tensorrt.engine_cache import CacheEntry

folder_option = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the engine cache.  [default: the user's cache]",
)


@click.group(cls=Group, examples=("stn-infer cache list", "stn-infer cache clear"))
def command() -> None:
    """List or clear the cache of TensorRT engines.

    Beside them it keeps the times of TensorRT's kernels on each GPU, with which other engines are built faster.
    The least recently used engines are deleted when the cache exceeds 10 GiB; the environment variable
    STN_ENGINE_CACHE_GIB sets another limit.
    """


@command.command(name="list", examples=("stn-infer cache list", "stn-infer cache list --cache engines --json"))
@folder_option
def list_(cache: Path | None) -> None:
    """List the cached engines, most recently used first."""
    from stn_infer.api.engines.cache import engine_cache

    found = engine_cache(cache)
    entries = found.entries()
    emit({"folder": found.folder, "entries": entries}, lambda: _print(found.folder, entries))


def _print(folder: Path, entries: Sequence[CacheEntry]) -> None:
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        if entry.sidecar is None:
            what = "damaged"
        else:
            key = entry.sidecar.key
            what = f"{entry.sidecar.source}, {key.runtime} {key.runtime_version}, {key.gpu or key.sm}, {key.precision}"
        echo(f"{entry.path.stem}  {used}  {entry.size / 2**20:8.1f} MiB  {what}")
    echo(f"{counted(len(entries), 'engine')}, {sum(entry.size for entry in entries) / 2**20:.1f} MiB in {folder}")


@command.command(examples=("stn-infer cache clear", "stn-infer cache clear --cache engines"))
@folder_option
def clear(cache: Path | None) -> None:
    """Delete all cached engines except those that are being built, and the times of kernels."""
    from stn_infer.api.engines.cache import clear_cache

    deleted = clear_cache(cache)
    freed = sum(entry.size for entry in deleted) / 2**20
    emit({"deleted": deleted}, lambda: echo(f"deleted {counted(len(deleted), 'engine')}, {freed:.1f} MiB"))
