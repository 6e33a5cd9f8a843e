"""The gate: who is alone is alone, and waits for a bounded number of others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from stn_infer.backends.gate import Gate


def test_who_is_alone_is_alone() -> None:
    gate, inside, wrong = Gate(), [0, 0], list[tuple[int, int]]()

    def call(number: int) -> None:
        alone = number % 4 == 0
        with gate.alone() if alone else gate.shared():
            inside[alone] += 1
            shared, lonely = inside
            if lonely > 1 or (lonely and shared):
                wrong.append((shared, lonely))
            threading.Event().wait(0.0005)
            inside[alone] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(call, range(200)))
    assert wrong == [] and inside == [0, 0]


def test_calls_that_come_later_let_the_one_that_waits_go_first() -> None:
    gate, order, entered = Gate(), list[str](), threading.Event()

    def alone() -> None:
        with gate.alone():
            order.append("alone")

    def shared() -> None:
        with gate.shared():
            order.append("shared")

    threads = [threading.Thread(target=target, daemon=True) for target in (alone, shared)]
    with gate.shared():
        threads[0].start()
        while gate._waiting == 0:
            entered.wait(0.001)
        threads[1].start()
        entered.wait(0.02)
        assert order == []
    for thread in threads:
        thread.join(60)
    assert order == ["alone", "shared"]


def test_an_error_opens_the_gate() -> None:
    gate = Gate()
    for enter in (gate.alone, gate.shared):
        try:
            with enter():
                raise ValueError
        except ValueError:
            pass
    with gate.alone():
        pass
