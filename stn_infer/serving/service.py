"""What a model's folder in a Triton repository serves, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from stn_infer.backends.base import TensorSpec
from stn_infer.errors import UsageError
from stn_infer.predictions import Scores

Platform = Literal["python", "onnxruntime", "tensorrt"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
#: The parameter of config.pbtxt with the number of threads, by platform.
THREADS = {"python": "threads", "onnxruntime": "intra_op_thread_count"}
#: What registers the plugins in TensorRT when it is loaded; beside the plugin library.
REGISTER_FILE = "libstn_plugins_register.so"
#: A dynamic size in trials and examples.
EXAMPLE_SIZE = 32
#: ``top_k`` where the number of classes is not known.
ALL_CLASSES = 2**31 - 1
#: Triton's data types, by numpy's; strings are ``STRING``.
DATA_TYPES = {
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
}


@dataclass(frozen=True)
class Classes:
    """The predictions that the Python platform adds to a model's outputs, one row per sample.

    Attributes:
        scores: what the model's first output is.
        top_k: the number of classes in each prediction, best first.
        labels: the name of each class; empty if they have none.
        names: the outputs, by what they have: ``prediction``, ``label`` (if there are labels) and ``confidence``.
    """

    scores: Scores
    top_k: int
    labels: tuple[str, ...]
    names: dict[str, str]

    @classmethod
    def of(cls, outputs: Sequence[TensorSpec], scores: Scores, top_k: int, labels: Sequence[str]) -> Classes:
        """Predictions beside a model's own outputs, whose names are taken."""
        taken = {spec.name for spec in outputs}
        wanted = ("prediction", "label", "confidence") if labels else ("prediction", "confidence")
        names = {name: _free(name, taken) for name in wanted}
        return cls(scores, min(top_k, outputs[0].shape[1] or top_k), tuple(labels), names)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One model in a repository.

    Attributes:
        name: of its folder, by which clients ask for it.
        platform: what runs it.
        on_gpu: whether its instances run on the server's GPUs.
        inputs, outputs: the model's own; axis 0 is the batch.
        classes: the predictions that are added; None: none.
        labels: the name of each class of the first output, for Triton's classification extension; empty: none.
        max_batch: the largest batch, of one request or of several that are joined.
        preferred: the batch size that the model is best at; None: none.
        profiles: the number of optimization profiles of an engine, all of which each instance uses.
        joins: whether requests are joined to batches; not for outputs that depend on the other samples of a batch.
        queue_delay: microseconds that a request waits for others, if an instance is free.
        instances: of the model, for each GPU or on the CPU.
        threads: of onnxruntime in each instance on a CPU; 0: one per core.
        library: the name of the plugin library's file in the model's folder; empty: none.
        warms: whether the server runs zeros before it serves, at batch 1 and ``max_batch``.
    """

    name: str
    platform: Platform = "python"
    on_gpu: bool = False
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: Classes | None = None
    labels: tuple[str, ...] = ()
    max_batch: int = 64
    preferred: int | None = None
    profiles: int = 1
    joins: bool = True
    queue_delay: int = 0
    instances: int = 1
    threads: int = 0
    library: str = ""
    warms: bool = True

    def added(self) -> tuple[tuple[str, str, int | None], ...]:
        """The outputs of ``classes``: name, data type and length."""
        if self.classes is None:
            return ()
        types = {"prediction": "INT64", "label": "STRING", "confidence": "FP32"}
        length = self.classes.top_k if self.outputs[0].shape[1] else None
        return tuple((name, types[what], length) for what, name in self.classes.names.items())


def data_type(spec: TensorSpec) -> str:
    """Triton's data type of an input or output.

    Raises:
        UsageError: Triton has none.
    """
    name = np.dtype(spec.dtype).name
    if name not in DATA_TYPES:
        raise UsageError(f"Triton has no data type for {spec.name!r}, which has {name} values")
    return DATA_TYPES[name]


def served_shape(spec: TensorSpec) -> tuple[int | None, ...]:
    """The shape of an input or output for clients, batch first; one value per sample has an axis, as Triton wants."""
    return spec.shape if len(spec.shape) > 1 else (*spec.shape, 1)


def _free(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free(f"{name}_", taken)
