"""Predictions one after the other: lazily, in order, in constant memory, in several threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.data.held import Samples
from stn_infer.data.loader import Loader
from stn_infer.errors import InputError, ModelError
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.stream import Predictions, Stream, Taps
from stn_infer.predictions import Classifier
from stn_infer.preprocess.rule import Preprocess
from tests.api.test_run import FLOAT32, SCORES, Fake

GRAY = Preprocess.parse("gray,scale=1")


class Opened:
    """A stream over a fake backend; ``pulled`` counts what was asked of a generator."""

    def __init__(self, fake: Fake, workers: int = 2, batch_size: int = 4) -> None:
        self.loader = Loader(fake.inputs, GRAY)
        self.samples = Samples(self.loader.arrays, fake.inputs, GRAY)
        self.stream = Stream(
            fake,
            self.loader,
            Classifier(),
            Decoder((), fake.inputs, fake.outputs),
            seen=lambda batch: None,
            batch_size=batch_size,
            workers=workers,
        )
        self.pulled = 0

    def __call__(self, given: object, on_error: Any = "raise") -> Predictions:
        return Predictions(self.stream, self.samples.of(given), on_error)

    def pictures(
        self, count: int, *, broken: tuple[int, ...] = (), ends_with: Exception | None = None
    ) -> Iterator[Any]:
        for index in range(count):
            self.pulled += 1
            yield "missing.png" if index in broken else np.full((4, 4), index % 256, np.uint8)
        if ends_with is not None:
            raise ends_with


def by_value(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Scores whose first is the picture's value; the first batches take longest."""
    value = inputs["input"][:, 0, 0, 0]
    time.sleep(0.02 if value[0] < 8 else 0)
    return {"scores": np.stack([value, np.full_like(value, -1), np.full_like(value, -2)], axis=1)}


def values(found: Any) -> list[int]:
    return [int(it.outputs["scores"][0]) for it in found]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("workers", [1, 3])
def test_predictions_come_in_the_order_of_the_inputs(device: str, workers: int) -> None:
    opened = Opened(Fake(by_value, device=device), workers)
    assert values(opened(opened.pictures(50))) == list(range(50))
    assert values(opened([np.full((4, 4), value, np.uint8) for value in (7, 9)])) == [7, 9]
    assert values(opened(np.zeros((0, 1, 4, 4), np.float32))) == []
    opened.stream.close()


def test_nothing_is_read_that_is_not_asked_for() -> None:
    opened = Opened(Fake(by_value), workers=2, batch_size=4)
    found = opened(opened.pictures(10**6))
    assert opened.pulled == 0
    next(found)
    assert opened.pulled <= 4 * opened.stream.ahead
    for _ in range(400):
        next(found)
    assert opened.pulled <= 401 + 4 * (opened.stream.ahead + 1)
    del found  # what is left costs nothing, and the stream goes on
    assert values(opened(opened.pictures(3))) == [0, 1, 2]
    opened.stream.close()


def test_memory_does_not_grow_with_the_number_of_pictures() -> None:
    import tracemalloc

    opened = Opened(Fake(lambda inputs: {"scores": np.zeros((len(inputs["input"]), 3), np.float32)}), batch_size=16)
    found = opened(opened.pictures(1000))
    tracemalloc.start()
    try:
        for _ in range(300):
            next(found)
        early = tracemalloc.get_traced_memory()[0]
        for _ in range(700):
            next(found)
        assert tracemalloc.get_traced_memory()[0] < early + 50_000
    finally:
        tracemalloc.stop()
        opened.stream.close()


def test_a_broken_picture_costs_its_own_prediction() -> None:
    opened = Opened(Fake(by_value))
    found = list(opened(opened.pictures(10, broken=(3, 9)), "return"))
    assert [it.input for it in found if not it.ok] == ["missing.png"] * 2
    assert [it.error for it in found if not it.ok] == ["no such file: missing.png"] * 2
    assert values(it for it in found if it.ok) == [0, 1, 2, 4, 5, 6, 7, 8]
    raising = opened(opened.pictures(10, broken=(3, 9)))
    assert values(next(raising) for _ in range(3)) == [0, 1, 2]
    with pytest.raises(InputError, match=r"^no such file: missing\.png$"):
        next(raising)
    assert values(next(raising) for _ in range(5)) == [4, 5, 6, 7, 8]  # it goes on behind it
    with pytest.raises(InputError, match="missing"):
        next(raising)
    assert list(raising) == []
    opened.stream.close()


def test_an_output_of_nan_is_an_error() -> None:
    def one_nan(inputs: Mapping[str, Array]) -> dict[str, Array]:
        scores = by_value(inputs)["scores"]
        scores[inputs["input"][:, 0, 0, 0] == 2] = np.nan
        return {"scores": scores}

    opened = Opened(Fake(one_nan))
    found = list(opened(opened.pictures(5), "return"))
    assert found[2].error == "the model's output 'scores' contains NaN for this input"
    assert values(found[:2] + found[3:]) == [0, 1, 3, 4]
    with pytest.raises(InputError, match=r"^\[2\]: the model's output"):
        list(opened(opened.pictures(5)))
    opened.stream.close()


def test_an_error_of_the_generator_comes_after_what_it_gave() -> None:
    opened = Opened(Fake(by_value))
    found = opened(opened.pictures(6, ends_with=KeyError("mine")))
    assert values(next(found) for _ in range(6)) == list(range(6))
    with pytest.raises(KeyError, match="mine"):
        next(found)
    assert list(found) == []
    opened.stream.close()


def test_an_error_of_the_runtime_ends_it_and_not_the_stream() -> None:
    broken = True

    def failing(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if broken:
            raise ModelError("out of memory")
        return by_value(inputs)

    opened = Opened(Fake(failing))
    with pytest.raises(ModelError, match="out of memory"):
        list(opened(opened.pictures(20), "return"))
    broken = False
    assert values(opened(opened.pictures(2))) == [0, 1]
    opened.stream.close()


def test_a_size_that_the_model_does_not_take_costs_only_its_own_pictures() -> None:
    """Outputs of different sizes are no problem: each prediction has its own."""

    def halved(inputs: Mapping[str, Array]) -> dict[str, Array]:
        image = inputs["input"]
        if image.shape[2] % 2:
            raise ModelError("the height is odd")
        return {"scores": image[:, 0, ::2, 0], "small": image[:, :, ::2, ::2]}

    specs = [TensorSpec("scores", (None, None), FLOAT32), TensorSpec("small", (None, 1, None, None), FLOAT32)]
    opened = Opened(Fake(halved, [TensorSpec("input", (None, 1, None, None), FLOAT32)], specs))
    sizes = (4, 6, 5, 4)
    found = list(opened([np.full((size, size), size, np.uint8) for size in sizes], "return"))
    assert [it.error or it.outputs["small"].shape for it in found] == [
        (1, 2, 2),
        (1, 3, 3),
        "the height is odd",
        (1, 2, 2),
    ]
    opened.stream.close()


def test_several_threads_at_once() -> None:
    opened = Opened(Fake(by_value), workers=3)
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        given = (np.full((4, 4), (number * 10 + index) % 256, np.uint8) for index in range(60))
        results[number] = values(opened(given))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [(number * 10 + index) % 256 for index in range(60)] for number in range(4)}
    opened.stream.close()


def test_a_stream_that_is_closed() -> None:
    opened = Opened(Fake(by_value), workers=1)
    found = opened(opened.pictures(1000))
    next(found)
    opened.stream.close()
    with pytest.raises(ModelError, match="this predictor is closed; open it again"):
        list(found)


@pytest.mark.parametrize("shard_rows", [10, 64])
def test_batches_are_those_of_run(monkeypatch: pytest.MonkeyPatch, shard_rows: int) -> None:
    monkeypatch.setattr("stn_infer.pipeline.stream.shard_rows", lambda backend: shard_rows)
    fake = Fake(by_value)
    opened = Opened(fake, workers=1)
    assert len(list(opened(opened.pictures(25)))) == 25
    assert fake.batches == ([4, 4, 2, 4, 4, 2, 4, 1] if shard_rows == 10 else [4] * 6 + [1])
    opened.stream.close()


def test_an_interrupted_wait_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer.pipeline import stream

    opened = Opened(Fake(by_value), workers=2, batch_size=4)
    found = opened(opened.pictures(12))
    waited = stream.wait

    def interrupted(futures: Any) -> Any:
        monkeypatch.setattr(stream, "wait", waited)
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(found)
    assert values(found) == list(range(12))
    opened.stream.close()


def test_an_interrupted_call_of_the_model_loses_nothing() -> None:
    calls: list[int] = []

    def once(inputs: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(len(inputs["input"]))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return by_value(inputs)

    opened = Opened(Fake(once), workers=1, batch_size=8)
    found = opened(opened.pictures(3))  # one short batch, which runs in this thread
    with pytest.raises(KeyboardInterrupt):
        next(found)
    assert values(found) == [0, 1, 2]
    opened.stream.close()


def test_a_closed_stream_predicts_nothing_in_this_thread_either() -> None:
    opened = Opened(Fake(by_value))
    opened.stream.close()
    with pytest.raises(ModelError, match="this predictor is closed"):
        next(opened(opened.pictures(1)))


def test_warps_are_no_outputs_to_judge_and_several_per_sample_are_left_out() -> None:
    def warped(inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = by_value(inputs)
        count = len(found["scores"])
        return {**found, "one": np.full((count, 1, 2, 2), np.nan, np.float32), "two": np.zeros((2 * count, 1, 2, 2))}

    shape = (None, 1, 2, 2)
    fake = Fake(warped, outputs=[*SCORES, TensorSpec("one", shape, FLOAT32), TensorSpec("two", shape, FLOAT32)])
    opened = Opened(Fake(warped))
    stream = Stream(
        fake,
        opened.loader,
        Classifier(),
        Decoder((), fake.inputs, SCORES),
        seen=lambda batch: None,
        taps=[Taps("", "one"), Taps("", "two")],
        batch_size=4,
        workers=1,
    )
    found = list(Predictions(stream, opened.samples.of(opened.pictures(6)), "raise"))
    assert values(found) == list(range(6))
    assert [len(it.warps) for it in found] == [1] * 6 and np.isnan(found[0].warps[0].warped).all()
    stream.close()


def test_an_interrupted_generator_is_not_taken_for_complete() -> None:
    opened = Opened(Fake(by_value), workers=1, batch_size=4)
    pictures = list(opened.pictures(9))

    def given() -> Iterator[Any]:
        yield from pictures[:6]
        raise KeyboardInterrupt

    found = opened(given())
    seen = []
    with pytest.raises(KeyboardInterrupt):  # before the first predictions or after some
        for prediction in found:
            seen += values([prediction])
    with pytest.raises(InputError, match="the iterator of the inputs was interrupted and gives nothing more"):
        for prediction in found:
            seen += values([prediction])
    assert seen == [0, 1, 2, 3, 4, 5]
    assert list(found) == []
    opened.stream.close()


class Interrupted(Iterator[Any]):
    """An iterator that is interrupted once, and goes on."""

    def __init__(self, given: Iterator[Any]) -> None:
        self.given, self.count = given, 0

    def __next__(self) -> Any:
        self.count += 1
        if self.count == 7:
            raise KeyboardInterrupt
        return next(self.given)


@pytest.mark.parametrize("total", [6, 7, 9])
def test_an_iterator_that_survives_ctrl_c_goes_on(total: int) -> None:
    opened = Opened(Fake(by_value), batch_size=4)
    batches = opened.stream.batches(Interrupted(opened.samples.of(opened.pictures(total))))
    assert len(next(batches)) == 4
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert len(next(batches)) == min(4, total - 4)
    if total == 6:  # nothing tells its end from that of an iterator that broke
        with pytest.raises(InputError, match="was interrupted"):
            next(batches)
    assert sum(map(len, batches)) == max(0, total - 8)
    opened.stream.close()
