"""What is particular to TensorRT's Python modules."""

from __future__ import annotations

import faulthandler
import gc

import pytest

from stn_infer.backends.tensorrt.runtime import TensorRT, created, make_logger


def test_nothing_is_collected_while_tensorrt_makes_a_builder() -> None:
    collecting: list[bool] = []
    assert created(lambda logger: collecting.append(gc.isenabled()) or logger, "logger") == "logger"
    assert collecting == [False] and gc.isenabled()
    with pytest.raises(ValueError, match="no driver"):
        created(lambda logger: (_ for _ in ()).throw(ValueError("no driver")).__next__(), None)
    assert gc.isenabled()


def test_a_builder_in_a_circle_does_not_stop_the_next(rtx: TensorRT) -> None:
    """With another's logger TensorRT says so while it makes a builder, which calls into Python."""

    class Collecting(rtx.module.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: object, message: str) -> None:
            calls.append(message)
            if gc.isenabled():  # as the collector itself would do, if rarely
                gc.collect()

    calls: list[str] = []
    before = gc.get_threshold()
    gc.set_threshold(0)
    faulthandler.dump_traceback_later(60, exit=True)  # a lock of TensorRT's is not interrupted otherwise
    try:
        circle: list[object] = [created(rtx.module.Builder, make_logger(rtx.module))]
        circle.append(circle)
        del circle
        assert created(rtx.module.Builder, Collecting()) is not None
        assert calls
    finally:
        faulthandler.cancel_dump_traceback_later()
        gc.set_threshold(*before)
