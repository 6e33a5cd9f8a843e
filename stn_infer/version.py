"""The installed package's version, and how earlier versions spelled names."""

from __future__ import annotations

__version__ = "1.0.0"

_OLD_SPELLINGS = (("colour", "color"), ("grey", "gray"), ("localisation", "localization"))


def respelled(name: str) -> str:
    """A key or value from a file of an earlier version, in the current spelling."""
    for old, new in _OLD_SPELLINGS:
        name = name.replace(old, new)
    return name
