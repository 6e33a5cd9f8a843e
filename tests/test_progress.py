from __future__ import annotations

import threading

from stn_infer.progress import detail, step, told_to


class Heard(list[str]):
    """A listener that keeps what it is told."""

    def step(self, text: str) -> None:
        self.append(f"step {text}")

    def detail(self, text: str) -> None:
        self.append(f"detail {text}")


def test_the_innermost_listener_is_told() -> None:
    outer, inner = Heard(), Heard()
    step("to nobody")
    with told_to(outer):
        step("one")
        with told_to(inner):
            detail("two")
        step("three")
        thread = threading.Thread(target=step, args=("of another thread",))
        thread.start()
        thread.join()
    detail("to nobody")
    assert (outer, inner) == (["step one", "step three"], ["detail two"])
