"""Predictions one after the other: samples are read in batches as their predictions are asked for.

Whoever iterates hands out the samples, a few batches ahead; threads load them and run the model. Nothing runs beyond
these batches, so that an iteration that is left costs nothing, and an endless one takes constant memory. Batches are
those of ``run``, so that predictions are equal to the last bit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Self, get_args

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend, TensorSpec
from stn_infer.data.held import Held
from stn_infer.data.inputs import Sample
from stn_infer.data.loader import LoadedBatch, Loader
from stn_infer.errors import InputError, ModelError, of_input
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.groups import GroupPredictor, answered, waiting_threads
from stn_infer.pipeline.plan import shard_rows
from stn_infer.pipeline.prediction import Prediction, Warp
from stn_infer.pipeline.schedule import QUICK_SECONDS
from stn_infer.predictions import Classifier, Ranked

OnError = Literal["raise", "return"]
ON_ERROR: tuple[OnError, ...] = get_args(OnError)

_CLOSED = "this predictor is closed; open it again"

Samples = Iterator[Sample | Held]
Batch = tuple[Sample | Held, ...]


@dataclass(frozen=True)
class Taps:
    """The names of the additional outputs of a model that show what a sampler did; ``theta`` is "" for a plain one."""

    theta: str
    warped: str


def own_outputs(backend: Backend, taps: Sequence[Taps]) -> tuple[TensorSpec, ...]:
    """The outputs of the model itself."""
    hidden = {name for tap in taps for name in (tap.theta, tap.warped)}
    return tuple(spec for spec in backend.outputs if spec.name not in hidden)


@dataclass(frozen=True)
class _Part:
    """The results of the samples of a batch that have one size, [n, ...] each."""

    outputs: Mapping[str, Array]
    warps: Sequence[tuple[Array | None, Array]]
    ranked: Ranked | None
    decoded: Mapping[str, Array]

    def prediction(self, name: str, row: int) -> Prediction:
        ranked = self.ranked
        best = None if ranked is None else ranked.best(row)
        return Prediction(
            name,
            None if best is None else best.prediction,
            None if best is None else best.label,
            None if best is None else best.confidence,
            () if ranked is None else ranked.shown(row),
            {column: values[row : row + 1].tolist()[0] for column, values in self.decoded.items()},
            {output: values[row] for output, values in self.outputs.items()},
            tuple(Warp(None if theta is None else theta[row], warped[row]) for theta, warped in self.warps),
        )


@dataclass(frozen=True)
class _Answered:
    """The results of a batch: for each sample a part and the row in it, or why there is none."""

    names: Sequence[str]
    rows: Mapping[int, tuple[_Part, int]]
    errors: Mapping[int, str]

    def __iter__(self) -> Iterator[Prediction]:
        for index, name in enumerate(self.names):
            if index in self.errors:
                yield Prediction(name, error=self.errors[index])
            else:
                part, row = self.rows[index]
                yield part.prediction(name, row)


class Stream:
    """Runs one model on any number of iterations at once; safe to share between threads.

    Args:
        backend: on a CPU, each of ``workers`` threads runs it at the same time.
        loader: of samples for the backend.
        classifier: of the scores in the first output; None if it has none.
        decoder: of texts and boxes.
        seen: called with each batch by the thread that iterates.
        taps: the outputs that show what samplers did; these are no outputs of the model itself.
        batch_size: samples per call of the model.
        workers: threads.
    """

    def __init__(
        self,
        backend: Backend,
        loader: Loader,
        classifier: Classifier | None,
        decoder: Decoder,
        *,
        seen: Callable[[Batch], None],
        taps: Sequence[Taps] = (),
        batch_size: int,
        workers: int,
    ) -> None:
        self._loader, self._classifier, self._decoder, self._taps = loader, classifier, decoder, tuple(taps)
        self._outputs = [spec.name for spec in own_outputs(backend, self._taps)]
        self.seen = seen
        self._model = GroupPredictor(backend, loader, batch_size)
        self.batch_size, self._shard_rows = batch_size, shard_rows(backend)
        waiting = waiting_threads(backend)
        self._inferring = threading.Semaphore(waiting or workers)
        self.ahead = workers + waiting + 1
        self._pool = ThreadPoolExecutor(workers + waiting, thread_name_prefix="stn-predict")
        # as in schedule.py: one thread at a time loads small images, whose decoding holds the GIL
        self._loading = threading.Lock()
        self._alone, self._quick = True, False
        self._closed = False

    def batches(self, samples: Samples) -> Iterator[Batch]:
        """The samples in the batches in which ``run`` predicts them; none spans two of its shards."""
        return _Batches(samples, self.batch_size, self._shard_rows)

    def submit(self, batch: Batch, *, here: bool) -> Future[_Answered]:
        """Predict a batch in one of the threads; or in this one, with ``here`` or if that is quicker.

        Raises:
            ModelError: the stream is closed.
        """
        if self._closed:
            raise ModelError(_CLOSED)
        try:
            if not here and not (self._alone and self._quick):
                return self._pool.submit(self._answer, batch)
        except RuntimeError:
            raise ModelError(_CLOSED) from None
        future: Future[_Answered] = Future()
        try:
            future.set_result(self._answer(batch))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """End the threads; batches that wait are cancelled."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, batch: Batch) -> _Answered:
        start = time.perf_counter()
        loaded = self._load(batch)
        with self._inferring:
            answers = self._model.answers(loaded)
        self._quick = time.perf_counter() - start < QUICK_SECONDS
        errors = dict(loaded.errors)
        rows: dict[int, tuple[_Part, int]] = {}
        for group, outputs in zip(loaded.groups, answers, strict=True):
            if isinstance(outputs, str):  # the model does not take this size
                errors.update(dict.fromkeys(group.rows, outputs))
                continue
            own = {name: outputs[name] for name in self._outputs}
            if good := answered(group.rows, own, errors):
                count = len(group.rows)  # a sampler that returns several images per sample has no warp
                every = {name: values for name, values in outputs.items() if name in own or len(values) == count}
                part = self._part(every if len(good) == count else _chosen(every, good))
                rows.update((group.rows[index], (part, row)) for row, index in enumerate(good))
        return _Answered([sample.name for sample in batch], rows, errors)

    def _part(self, outputs: Mapping[str, Array]) -> _Part:
        own = {name: outputs[name] for name in self._outputs}
        return _Part(
            own,
            [
                (outputs[tap.theta] if tap.theta else None, outputs[tap.warped])
                for tap in self._taps
                if {tap.theta, tap.warped} - {""} <= outputs.keys()
            ],
            None if self._classifier is None else self._classifier.rank(own[self._outputs[0]]),
            self._decoder(own),
        )

    def _load(self, batch: Batch) -> LoadedBatch:
        if self._alone:
            with self._loading:
                loaded = self._loader.read(batch)
        else:
            loaded = self._loader.read(batch)
        self._alone = loaded.holds_the_lock
        return loaded


class _Batches(Iterator[Batch]):
    """The samples of an iterator in batches.

    What the iterator raises comes after what it gave before. Ctrl-C comes at once, and nothing that was given is lost.
    If the iterator, such as a generator, does not survive it, the end is an error and not taken for the last sample.
    """

    def __init__(self, samples: Samples, batch_size: int, shard_rows: int) -> None:
        self._samples, self._batch_size, self._shard_rows = samples, batch_size, shard_rows
        self._room = shard_rows
        self._held: list[Sample | Held] = []
        self._failed: Exception | None = None
        self._over = self._interrupted = False

    def __next__(self) -> Batch:
        before = len(self._held)
        try:
            if not self._over:
                self._held.extend(islice(self._samples, min(self._batch_size, self._room) - before))
        except Exception as error:
            self._failed, self._over = error, True
        except BaseException:
            self._interrupted = True
            raise
        if len(self._held) > before:
            self._interrupted = False
        batch, self._held = tuple(self._held), []
        if batch:
            self._room = self._room - len(batch) or self._shard_rows
            return batch
        failed, self._failed = self._failed, None
        if self._interrupted and failed is None:
            self._interrupted, self._over = False, True
            failed = InputError(
                "the iterator of the inputs was interrupted and gives nothing more; start again with it"
            )
        raise failed or StopIteration


def _chosen(outputs: Mapping[str, Array], rows: Sequence[int]) -> dict[str, Array]:
    return {name: values[list(rows)] for name, values in outputs.items()}


class Predictions(Iterator[Prediction]):
    """Predictions in the order of the inputs, computed while they are iterated.

    Args:
        stream: what predicts.
        samples: advanced by the thread that iterates.
        on_error: ``raise``: a sample without a prediction raises an error in its turn, after which the iteration can
            be continued; ``return``: it has a :class:`Prediction` with ``error``.

    Iterating raises:
        InputError: a sample cannot be read, has the wrong size or makes the model return NaN, with ``raise``.
        ModelError: the model cannot be run, or the predictor is closed.
        Whatever the given iterator raises, after the predictions of what it gave before.
    """

    def __init__(self, stream: Stream, samples: Samples, on_error: OnError) -> None:
        self._stream, self._batches, self._on_error = stream, stream.batches(samples), on_error
        self._waiting: deque[Future[_Answered]] = deque()
        self._ready: Iterator[Prediction] = iter(())
        self._first = True
        self._left: Batch | None = None  # taken from the samples, and interrupted before it was handed out
        self._failed: Exception | None = None

    def __repr__(self) -> str:
        return "<Predictions: iterate to compute them>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Prediction:
        found = next(self._ready, None)
        while found is None:
            self._ready = iter(self._next_batch())
            found = next(self._ready, None)
        if found.error and self._on_error == "raise":
            raise InputError(of_input(found.input, found.error))
        return found

    def _next_batch(self) -> _Answered:
        """The next batch; hands out others until it is there, or enough are waiting."""
        while len(self._waiting) < self._stream.ahead and not (self._waiting and self._waiting[0].done()):
            try:
                batch = self._left or next(self._batches, None)
            except Exception as error:  # of the user's iterator: after the predictions of what came before it
                self._failed, batch = error, None
            if batch is None:
                break
            self._left = batch
            self._stream.seen(batch)
            alone = self._first and len(batch) < self._stream.batch_size
            self._waiting.append(self._stream.submit(batch, here=alone))
            self._left, self._first = None, False
        if not self._waiting:
            failed, self._failed = self._failed, None
            raise failed or StopIteration
        wait((self._waiting[0],))  # Ctrl-C leaves the batch in its place
        try:
            return self._waiting.popleft().result()
        except CancelledError:
            raise ModelError(_CLOSED) from None
