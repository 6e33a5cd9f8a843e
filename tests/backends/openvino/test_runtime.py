"""OpenVINO's messages on one line, and what to install where it is missing."""

from __future__ import annotations

import sys

import pytest

from stn_infer.backends.openvino.runtime import load_openvino, reason
from stn_infer.errors import MissingDependencyError


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "Exception from src/inference/src/cpp/core.cpp:105:\nCheck 'false' failed at src/report.cpp:151:\n"
            "FrontEnd API failed with OpConversionFailure:\nModel wasn't fully converted. Failed operations detailed "
            "log:\n-- Conv-18 with a message:\nthe rank has to be known\n\nSummary:\n"
            "-- No conversion rule found for operations: stn.SpatialTransformer",
            "No conversion rule found for operations: stn.SpatialTransformer",
        ),
        (
            "Exception from src/core.cpp:1:\nException from src/plugin.cpp:2:\nthe shapes do not fit",
            "the shapes do not fit",
        ),
        (
            "Exception from src/core.cpp:1:\n[cpu]: Check 'a == b' failed at src/shape.cpp:77: [cpu]reshape: wrong",
            "[cpu]: [cpu]reshape: wrong",
        ),
        ("Exception from src/core.cpp:1:", "Exception from src/core.cpp:1:"),
        ("", "RuntimeError"),
    ],
)
def test_a_reason_is_one_line_without_places(message: str, told: str) -> None:
    assert reason(RuntimeError(message)) == told


def test_a_missing_openvino_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stn-infer\[openvino\]'"):
        load_openvino()
