"""Runtimes that run a model, behind one small protocol; a runtime is imported when it is opened."""

from stn_infer.backends.base import Array, Backend, TensorSpec
from stn_infer.backends.open import BACKENDS, open_backend

__all__ = ["BACKENDS", "Array", "Backend", "TensorSpec", "open_backend"]
