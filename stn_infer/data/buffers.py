"""Memory for batches that is used again and again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array

# Smaller arrays come from memory that the allocator keeps. The kernel clears larger ones page by page when they are
# first written, which takes longer than filling them with pixels.
_SMALLEST = 1 << 18
_MOST_FREE = 8


class Buffers:
    """Hands out arrays and takes their memory back; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[NDArray[np.uint8]] = []
        self._taken: WeakValueDictionary[int, NDArray[np.uint8]] = WeakValueDictionary()

    def take(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array of any content, C-contiguous."""
        size = prod(shape) * dtype.itemsize
        if size < _SMALLEST:
            return np.empty(shape, dtype)
        with self._lock:
            fitting = [memory for memory in self._free if size <= len(memory) <= 2 * size]
            memory = min(fitting, key=len) if fitting else np.empty(size, np.uint8)
            self._free = [other for other in self._free if other is not memory]
            self._taken[id(memory)] = memory
        array: Array = memory[:size].view(dtype).reshape(shape)
        return array

    def give_back(self, array: Array) -> None:
        """Let the memory of ``array`` be used again, if :meth:`take` handed it out; the array may be a view of it."""
        root: object = array
        while isinstance(root, np.ndarray) and root.base is not None:
            root = root.base
        with self._lock:
            memory = self._taken.pop(id(root), None)
            if memory is not None:
                self._free = [*self._free, memory][-_MOST_FREE:]
