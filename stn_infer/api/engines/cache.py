"""``cache``: list or clear the engines that ``build`` and the TensorRT backends store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stn_infer.backends.tensorrt.engine_cache import CacheEntry, EngineCache


def engine_cache(folder: Path | None = None) -> EngineCache:
    """The cache in ``folder``; None: the user's cache."""
    from stn_infer.backends.tensorrt.engine_cache import EngineCache, default_cache_folder

    return EngineCache(folder or default_cache_folder())


def clear_cache(folder: Path | None = None) -> tuple[CacheEntry, ...]:
    """Delete all cached engines except those that are being built, and return the deleted entries.

    Raises:
        OutputError: the folder belongs to another user, or a file in it cannot be deleted.
    """
    return engine_cache(folder).clear()
