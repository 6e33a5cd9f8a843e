"""Inputs that a source accepts, made up or from the user's examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array

if TYPE_CHECKING:
    from stn_infer.sources.load import LoadedModel


def zeros(loaded: LoadedModel, batch: int = 1) -> list[Array]:
    """Inputs [N, *shape] of zeros, N being the batch size that the source is tied to, else ``batch``."""
    return [np.zeros((loaded.fixed_batch or batch, *shape), np.float32) for shape in loaded.input_shapes]
