"""``Predictor``: a model that is open and predicts whatever a program holds, as ``run`` predicts files."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from stn_infer.api.open import exported, open_backend, open_resolved
from stn_infer.api.source import EngineFile, OnnxModel, names_the_file, resolve
from stn_infer.backends.base import Backend, TensorSpec
from stn_infer.backends.batching import row_axis
from stn_infer.backends.embedded import taking_pictures
from stn_infer.budget import Budget
from stn_infer.data.held import Layout, Samples
from stn_infer.data.loader import Loader, resolve_preprocess, tell_assumption
from stn_infer.errors import InputError, ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.formats import check_classes, has_classes
from stn_infer.pipeline.plan import classifier_of
from stn_infer.pipeline.prediction import Prediction
from stn_infer.pipeline.stream import ON_ERROR, Batch, OnError, Predictions, Stream, Taps, own_outputs
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.load import LoadedModel
from stn_infer.sources.reference import WeightsLike

if TYPE_CHECKING:
    from torch import nn


class Predictor:
    """An open model that is called with pictures and gives predictions, the same as ``run`` to the last bit.

    Several threads may call one predictor at the same time. As a context manager it closes what it opened.

    Args:
        model: an ONNX file or its bytes, a module or any source that ``export`` takes (exported in memory and
            verified), an engine (with ``backend`` tensorrt or tensorrt-rtx), or an open backend, which stays open.
        backend: ``ort``, ``eager``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: samples per call of the model.
        workers: threads that read and predict; None: one per core, divided by ``threads``. PyTorch's backends have 1.
        threads: of the runtime inside one call, on a CPU. Many pictures are fastest with 1, single ones with more.
        preprocess: how images become inputs; as text, changes to the preprocessing in the model's file.
        labels, activation, top_k, threshold: as for ``run``.
        warps: also give theta and the warped image of each sampler of the main graph, of an ONNX file or a model that
            is exported. The outputs may then differ in the last bits from those without it.
        errors: ``raise``: a sample that cannot be read or predicted raises InputError in its turn, after which the
            iteration can be continued; ``return``: its prediction has ``error``.
        strict: an error instead of a warning (``errors.AssumptionWarning``) where the preprocessing has to be assumed.
        weights, input_shapes, allow_code: of a source, as for ``export``.
        budget: as for ``lint``.

    Raises:
        UsageError: options that do not fit the model or each other.
        SourceError, ModelError, ExportError, MissingDependencyError: the model cannot be loaded or run.
    """

    def __init__(
        self,
        model: str | Path | bytes | nn.Module | LoadedModel | Backend,
        *,
        backend: str = "ort",
        device: str = "cpu",
        batch_size: int = 64,
        workers: int | None = None,
        threads: int = 1,
        preprocess: Preprocess | str | None = None,
        labels: Sequence[str] | None = None,
        activation: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        warps: bool = False,
        errors: OnError = "raise",
        strict: bool = False,
        weights: WeightsLike | None = None,
        input_shapes: Sequence[tuple[int, ...]] | None = None,
        allow_code: bool = False,
        budget: Budget | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("workers", workers), ("threads", threads)):
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name} is an integer of at least 1, not {value!r}")
        if errors not in ON_ERROR:
            raise UsageError(f"errors is one of {', '.join(ON_ERROR)}, not {errors!r}")
        if isinstance(labels, str):
            raise UsageError(f"labels is a list with one name per class, not {labels!r}")
        in_torch = (model.name if isinstance(model, Backend) else backend) in (
            "eager",
            "compile",
        )  # its number of threads is a setting of the whole process
        self._owned: Backend | None = None
        taps: tuple[Taps, ...] = ()
        if isinstance(model, Backend):
            if weights is not None or input_shapes is not None or warps:
                raise UsageError("the backend is already open; weights, input_shapes and warps apply to a model")
            opened = model
        else:
            opened, taps = _opened(
                model,
                backend,
                device,
                None if in_torch or device.startswith("cuda") else threads,
                warps,
                weights=weights,
                input_shapes=input_shapes,
                allow_code=allow_code,
                budget=budget,
            )
            self._owned = opened
        try:
            opened = taking_pictures(opened)
            self._backend = opened
            self.outputs: tuple[TensorSpec, ...] = own_outputs(opened, taps)
            self._own, self._given, self._strict = opened.metadata.preprocess, preprocess, strict
            self.preprocess = resolve_preprocess(opened.inputs, self._own, preprocess)
            decoder = Decoder(opened.metadata.decodings, opened.inputs, self.outputs)
            classifier = classifier_of(opened.metadata, activation, labels, top_k=top_k, threshold=threshold)
            check_classes(self.outputs, classifier.labels, activation, top_k, threshold, decoder=decoder)
            axis = row_axis(opened.inputs, self.outputs)
            self._loader = Loader(opened.inputs, self.preprocess, axis, opened.device)
            cores = len(os.sched_getaffinity(0))
            self._stream = Stream(
                opened,
                self._loader,
                classifier if has_classes(self.outputs, decoder) else None,
                decoder,
                seen=self._tell_assumption,
                taps=taps,
                batch_size=batch_size,
                workers=workers or (1 if in_torch else max(1, cores // threads)),
            )
        except BaseException:
            if self._owned is not None:
                self._owned.close()
            raise
        self._errors: OnError = errors
        self._samples = Samples(self._loader.arrays, opened.inputs, self.preprocess)
        self._told, self._closed, self._lock = False, False, threading.Lock()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self._backend.inputs

    @property
    def metadata(self) -> ModelMetadata:
        """What the model's file says about its inputs and classes."""
        return self._backend.metadata

    def __call__(self, inputs: object, *, layout: Layout | None = None) -> Predictions:
        """The predictions for ``inputs``, in order, computed while they are iterated.

        Args:
            inputs: a path (a file, a folder, a pattern or ``@list.txt``), a Pillow image, the bytes of an image file,
                an array or a tensor of one or more pictures, a mapping of arrays by the model's inputs, or an iterable
                of any of these, such as a generator, which is advanced a few batches ahead, by the thread that
                iterates.
            layout: what the axes of uint8 arrays are: ``HW``, ``HWC``, ``CHW``, ``NHW``, ``NHWC`` or ``NCHW``; None:
                found by their lengths (:mod:`stn_infer.data.held`). Floating-point arrays are inputs that are
                preprocessed already. Colors are RGB.

        Raises:
            UsageError: ``inputs`` is none of these, or there is no such layout.
            ModelError: the predictor is closed.
        """
        if self._closed:
            raise ModelError("this predictor is closed; open it again")
        return Predictions(self._stream, self._samples.of(inputs, layout), self._errors)

    def one(self, input: object, *, layout: Layout | None = None) -> Prediction:
        """The prediction for one picture.

        Raises:
            InputError: there is no picture in ``input``, or several; or as iterating does.
            UsageError, ModelError: as for a call.
        """
        found = self(input, layout=layout)
        first = next(found, None)
        if first is None or next(found, None) is not None:
            raise InputError(f"expected one picture, got {'none' if first is None else 'several'}")
        return first

    def close(self) -> None:
        """End the threads and close the backend, if it was not given open; further calls do nothing."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._stream.close()
            if self._owned is not None:
                self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed, " if self._closed else ""
        return f"<Predictor: {state}{self._backend.name} on {self._backend.device}>"

    def _tell_assumption(self, batch: Batch) -> None:
        """Warn once, with the first pictures, if how they become inputs is assumed."""
        if not self._told and self._loader.has_pixels(batch):
            self._told = not self._strict
            tell_assumption(self.preprocess, self._own, self._given, strict=self._strict)


@names_the_file
def _opened(
    model: str | Path | bytes | nn.Module | LoadedModel,
    backend: str,
    device: str,
    threads: int | None,
    warps: bool,
    *,
    weights: WeightsLike | None,
    input_shapes: Sequence[tuple[int, ...]] | None,
    allow_code: bool,
    budget: Budget | None,
) -> tuple[Backend, tuple[Taps, ...]]:
    """The model in a backend, and the outputs that show what its samplers did, with ``warps``."""
    if not warps:
        opened = open_backend(
            model,
            backend,
            device,
            threads,
            weights=weights,
            input_shapes=input_shapes,
            allow_code=allow_code,
            budget=budget,
        )
        return opened, ()
    if backend in ("eager", "compile"):
        raise UsageError(f"warps are outputs of the graph, which PyTorch does not have, not of backend {backend!r}")
    found = resolve(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    if isinstance(found, EngineFile):
        raise UsageError("warps are outputs of the graph, which an engine no longer has; give the ONNX file")
    return _tapped(found, backend, device, threads, budget)


def _tapped(
    found: OnnxModel | LoadedModel, backend: str, device: str, threads: int | None, budget: Budget | None
) -> tuple[Backend, tuple[Taps, ...]]:
    from stn_infer.fusion.fuse import fuse
    from stn_infer.fusion.op import is_op
    from stn_infer.proto.load import parse_model
    from stn_infer.reference.taps import tap

    content = exported(found)
    proto = parse_model(content) if isinstance(content, bytes) else OnnxModel(content).load()
    if not any(map(is_op, proto.graph.node)):
        proto, _ = fuse(proto)
    tapped = tap(proto, inlined=False, wanted=("theta", "warped"))
    taps = tuple(Taps(names.get("theta", ""), names["warped"]) for names in tapped.taps)
    return open_resolved(OnnxModel(tapped.model.SerializeToString()), backend, device, threads, budget), taps
