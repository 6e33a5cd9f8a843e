"""Importing third-party checkpoints of published text rectifiers, each as a :class:`SpatialTransformer`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stn_infer.foreign.registry import FOREIGN, Foreign

if TYPE_CHECKING:
    from stn_infer.foreign.aster import import_aster
    from stn_infer.foreign.dtrb import import_dtrb

__all__ = ["FOREIGN", "Foreign", "import_aster", "import_dtrb"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'stn_infer.foreign' has no attribute {name!r}")
    return getattr(import_module(f"stn_infer.foreign.{name.removeprefix('import_')}"), name)  # these need torch
