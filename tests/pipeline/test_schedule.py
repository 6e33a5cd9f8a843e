from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from stn_infer.pipeline.schedule import Schedule


@dataclass(frozen=True)
class Item:
    number: int
    holds_the_lock: bool


class Busy:
    """The number of threads in each step, now and at most."""

    def __init__(self) -> None:
        self.most: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._lock = threading.Lock()

    def enter(self, *steps: str) -> None:
        with self._lock:
            for step in steps:
                self._now[step] = self._now.get(step, 0) + 1
                self.most[step] = max(self.most.get(step, 0), self._now[step])

    def leave(self, *steps: str) -> None:
        with self._lock:
            for step in steps:
                self._now[step] -= 1


def make(
    count: int, *, workers: int, inferring: int, small: bool = True, seed: int = 0, ahead: int = 3
) -> tuple[Schedule[int, Item, int], Busy, list[int], list[int]]:
    """A schedule of ``count`` batches with random step times, its concurrency, and the dealt and finished batches."""
    chance, busy = random.Random(seed), Busy()
    pauses = [[chance.uniform(0, 0.002) for _ in range(3)] for _ in range(count)]
    dealt: list[int] = []
    finished: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(count):
            dealt.append(number)
            busy.most["under way"] = max(busy.most.get("under way", 0), len(dealt) - len(finished))
            yield number

    def load(number: int) -> Item:
        busy.enter("load", "python")
        time.sleep(pauses[number][0])
        busy.leave("load", "python")
        return Item(number, small)

    def infer(item: Item) -> int:
        busy.enter("infer")
        time.sleep(pauses[item.number][1])
        busy.leave("infer")
        return -item.number

    def finish(number: int, item: Item, answer: int) -> None:
        assert number == item.number == -answer
        busy.enter("finish", "python")
        time.sleep(pauses[number][2])
        finished.append(number)
        busy.leave("finish", "python")

    return Schedule(batches(), load, infer, finish, workers, inferring, ahead), busy, dealt, finished


@pytest.mark.parametrize("workers, inferring", [(1, 1), (2, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("small", [True, False])
def test_everything_is_finished_in_order(workers: int, inferring: int, small: bool) -> None:
    schedule, busy, dealt, finished = make(60, workers=workers, inferring=inferring, small=small, seed=workers)
    schedule.run()
    assert dealt == finished == list(range(60))
    assert busy.most["infer"] <= inferring
    assert busy.most["finish"] == 1
    # batches waiting before the model, in it, and after it
    assert busy.most["under way"] <= 2 * (3 + workers)


def test_small_images_are_loaded_by_one_thread_and_large_ones_by_several() -> None:
    schedule, busy, *_ = make(60, workers=4, inferring=4, small=True)
    schedule.run()
    assert busy.most["python"] == 1
    schedule, busy, *_ = make(60, workers=4, inferring=4, small=False)
    schedule.run()
    assert busy.most["load"] > 1


def test_no_thread_is_idle_while_a_step_may_run() -> None:
    """The model runs in both threads at once, although only one thread may load."""
    clock = threading.Barrier(2, timeout=5)

    def together(_: object) -> int:
        clock.wait()  # passes only if both threads wait here
        return 0

    Schedule(iter(range(8)), lambda n: Item(n, True), together, lambda *_: None, 2, 2, 3).run()


def test_no_batches() -> None:
    schedule, _, _, finished = make(0, workers=3, inferring=3)
    schedule.run()
    assert finished == []


@pytest.mark.parametrize("step", ["batches", "load", "infer", "finish"])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_ends_the_run(step: str, workers: int) -> None:
    schedule, _, dealt, finished = make(1000, workers=workers, inferring=workers)
    original = getattr(schedule, step)

    def batches() -> Iterator[int]:
        for number in original:
            if number == 7:
                raise OSError("the disk is gone")
            yield number

    def failing(first: int | Item, *rest: object) -> object:
        if (first.number if isinstance(first, Item) else first) == 7:
            raise OSError("the disk is gone")
        return original(first, *rest)

    setattr(schedule, step, batches() if step == "batches" else failing)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        schedule.run()
    assert threading.active_count() == before
    assert finished == list(range(len(finished))) and len(finished) <= 7
    assert len(dealt) < 40


def test_ctrl_c_ends_the_run() -> None:
    schedule, _, _, finished = make(100_000, workers=2, inferring=2)
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    before = threading.active_count()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        schedule.run()
    timer.join()
    assert threading.active_count() == before
    assert 0 < len(finished) < 100_000


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("quick", [True, False])
def test_writes_run_one_at_a_time_in_order_beside_other_steps(workers: int, quick: bool) -> None:
    schedule, busy, _, finished = make(90, workers=workers, inferring=workers, seed=workers)
    written: list[int] = []
    finish, infer = schedule.finish, schedule.infer

    def finish_some(number: int, item: Item, answer: int) -> Callable[[], None] | None:
        finish(number, item, answer)
        return None if number % 10 < 9 else lambda: write(number)

    def write(number: int) -> None:
        busy.enter("write")
        time.sleep(0.01)
        assert len(finished) <= number + 1 + 10, "at most one more file is collected meanwhile"
        written.append(number)
        busy.leave("write")

    schedule.finish = finish_some
    schedule.infer = (lambda item: -item.number) if quick else infer
    schedule.run()
    assert finished == list(range(90)) and written == list(range(9, 90, 10))
    assert busy.most["write"] == 1 and busy.most["python"] == 1


def test_what_was_answered_before_an_error_is_finished_and_written() -> None:
    """The model fails on batch 7 while batch 3 is still being written."""
    failed = threading.Event()
    steps: list[str] = []

    def infer(item: Item) -> int:
        if item.number == 7:
            failed.set()
            raise OSError("the device is gone")
        return 0

    def finish(number: int, *_: object) -> Callable[[], None] | None:
        steps.append(f"finish {number}")
        return (lambda: write(number)) if number in (3, 5) else None

    def write(number: int) -> None:
        failed.wait(timeout=20)
        steps.append(f"write {number}")

    schedule = Schedule(iter(range(100)), lambda n: Item(n, True), infer, finish, 2, 2, 9)
    with pytest.raises(OSError, match="the device is gone"):
        schedule.run()
    assert [step for step in steps if "finish" in step] == [f"finish {number}" for number in range(7)]
    assert [step for step in steps if "write" in step] == ["write 3", "write 5"]


def test_a_write_that_fails_ends_the_run() -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    finished: list[int] = []

    def finish(number: int, *_: object) -> Callable[[], None]:
        finished.append(number)
        return fail

    schedule = Schedule(iter(range(1000)), lambda n: Item(n, True), lambda _: 0, finish, 2, 2, 3)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is full"):
        schedule.run()
    assert threading.active_count() == before and len(finished) < 10
