"""Slots against streams that run their work late: no buffer is written while a step of another call may read it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from stn_infer.arrays import Array
from stn_infer.backends.slots import SLOTS, CudaStreams, Slot, Slots, Stream
from tests.support.streams_standin import Inline, Late


def double(tensors: Sequence[Tensor], slot: Slot) -> Sequence[Tensor]:
    """A model with a result in the slot's own memory, as engines have, and one that is its input."""
    result = slot.memory("result", tensors[0].shape, tensors[0].dtype)
    torch.mul(tensors[0], 2, out=result)
    return [result, tensors[0]]


def batch(number: int, rows: int = 6) -> Array:
    return np.full((rows, 3), number, np.float32)


def wrong_batches(slots: Slots, calls: int) -> list[int]:
    """The calls, made from several threads, whose outputs are not theirs."""

    def call(number: int) -> bool:
        rows = 6 if number % 5 else 4  # two sizes, as at the end of a job
        twice, same = slots.run([batch(number, rows)], double)
        return np.array_equal(twice, 2 * batch(number, rows)) and np.array_equal(same, batch(number, rows))

    with ThreadPoolExecutor(5) as pool:
        return [number for number, right in enumerate(pool.map(call, range(calls))) if not right]


@pytest.mark.parametrize("count", [1, SLOTS])
def test_every_call_gets_its_own_outputs(count: int) -> None:
    streams = Late()
    assert wrong_batches(Slots(streams, count), 60) == [] and streams.errors == []


@pytest.mark.parametrize("ignored", ["wait", "synchronize"])
def test_without_one_of_the_orders_outputs_are_wrong(ignored: str) -> None:
    """The streams run late enough to show a missing event."""
    try:
        wrong = wrong_batches(Slots(Late([ignored], seconds=0.01)), 20)
    except (ValueError, IndexError):  # outputs that are not there yet
        return
    assert wrong


def test_calls_overlap() -> None:
    """A call's copy to the device runs while the model computes for the call before."""
    streams, uploaded = Late(seconds=0), threading.Event()
    slots = Slots(streams, 2)

    def waits_for_the_next_copy(tensors: Sequence[Tensor], slot: Slot) -> Sequence[Tensor]:
        assert uploaded.wait(60), "the second call's copy waits for the first call's model"
        return tensors

    def tells(tensors: Sequence[Tensor], slot: Slot) -> Sequence[Tensor]:
        return tensors

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slots.run, [batch(1)], waits_for_the_next_copy)
        while slots.free() == 2:
            pass
        second = pool.submit(slots.run, [batch(2)], tells)
        while slots.free():
            pass
        streams.enqueue("up", uploaded.set)  # behind the second call's copy, if that is enqueued
        assert np.array_equal(first.result(60)[0], batch(1)) and np.array_equal(second.result(60)[0], batch(2))
    assert streams.errors == []


def test_memory_is_used_again_and_has_a_limit() -> None:
    streams = Inline()
    slots = Slots(streams, 1)
    for _ in range(3):
        slots.run([batch(1, 5)], double)
    made = len(streams.made)
    assert made == 5  # input and output, here and there, and the model's result
    for rows in range(6, 12):
        slots.run([batch(1, rows)], double)
    slots.run([batch(1, 11)], double)
    assert len(streams.made) == 7 * made
    slots.run([batch(1, 5)], double)  # its memory was dropped
    assert len(streams.made) == 8 * made


def test_a_call_that_fails_costs_no_slot() -> None:
    def fails(tensors: Sequence[Tensor], slot: Slot) -> Sequence[Tensor]:
        raise ValueError("no")

    slots = Slots(Inline(), 2)
    for _ in range(5):
        with pytest.raises(ValueError, match="no"):
            slots.run([batch(1)], fails)
    assert slots.free() == 2 and np.array_equal(slots.run([batch(3)], double)[0], batch(6))


def test_a_failed_call_waits_for_what_it_has_enqueued() -> None:
    """It may use the slot's memory."""

    class Fails(Late):
        def __init__(self) -> None:
            super().__init__(seconds=0.02)
            self.done: list[str] = []

        def enqueue(self, stream: Stream, work: Callable[[], None]) -> None:
            if stream == "down":
                raise RuntimeError("out of memory")
            super().enqueue(stream, work)
            super().enqueue(stream, lambda: self.done.append(stream))

    streams = Fails()
    slots = Slots(streams, 1)
    for count in (1, 2):
        with pytest.raises(RuntimeError, match="out of memory"):
            slots.run([batch(1)], double)
        assert streams.done == ["up", "compute"] * count and slots.free() == 1


def test_arrays_of_any_layout_and_type() -> None:
    slots = Slots(Inline())
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    for array in (pixels, pixels[..., ::-1].transpose(0, 3, 1, 2), np.arange(6, dtype=np.uint16), np.ones((), bool)):
        (same,) = slots.run([array], lambda tensors, slot: tensors)
        assert same.dtype == array.dtype and np.array_equal(same, array)
    (half,) = slots.run([batch(1)], lambda tensors, slot: [tensors[0].bfloat16()])
    assert half.dtype == np.uint16 and (half == 0x3F80).all()


def test_close_waits_for_calls_and_releases_memory() -> None:
    streams, order = Late(seconds=0.01), list[str]()
    slots = Slots(streams)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(slots.run, [batch(number)], double) for number in range(3)]
        while slots.free():
            pass
        slots.close(lambda: order.extend("done" if call.done() or not slots.free() else "running" for call in calls))
        assert all(np.array_equal(call.result()[1], batch(number)) for number, call in enumerate(calls))
    assert order == ["done"] * 3 and slots.free() == SLOTS
    assert np.array_equal(slots.run([batch(2)], double)[0], batch(4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu() -> None:
    assert wrong_batches(Slots(CudaStreams(torch.device("cuda", 0))), 300) == []
