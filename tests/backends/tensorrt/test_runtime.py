"""Particularities of TensorRT's Python modules."""

from __future__ import annotations

import faulthandler
import gc

import pytest

from stn_infer.backends.tensorrt.runtime import TensorRT, created, make_logger


def test_garbage_collection_is_disabled_while_tensorrt_creates_a_builder() -> None:
    collecting: list[bool] = []
    assert created(lambda logger: collecting.append(gc.isenabled()) or logger, "logger") == "logger"
    assert collecting == [False] and gc.isenabled()
    with pytest.raises(ValueError, match="no driver"):
        created(lambda logger: (_ for _ in ()).throw(ValueError("no driver")).__next__(), None)
    assert gc.isenabled()


def test_a_builder_in_a_reference_cycle_does_not_block_the_next(rtx: TensorRT) -> None:
    """If a builder with another logger exists, TensorRT logs it while creating a builder, which calls into Python."""

    class Collecting(rtx.module.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: object, message: str) -> None:
            calls.append(message)
            if gc.isenabled():  # the collector may run here, though rarely
                gc.collect()

    calls: list[str] = []
    before = gc.get_threshold()
    gc.set_threshold(0)
    faulthandler.dump_traceback_later(60, exit=True)  # nothing else interrupts a wait for TensorRT's lock
    try:
        circle: list[object] = [created(rtx.module.Builder, make_logger(rtx.module))]
        circle.append(circle)
        del circle
        assert created(rtx.module.Builder, Collecting()) is not None
        assert calls
    finally:
        faulthandler.cancel_dump_traceback_later()
        gc.set_threshold(*before)
