"""One-line errors of a benchmark."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from torch import nn

from stn_infer.api.bench import bench, make_request
from stn_infer.benchmarking.request import Case, Method
from stn_infer.errors import ModelError, OutputError, UsageError

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '
SHAPE = [(1, 8, 8)]


def test_an_output_that_cannot_be_written_is_reported_before_measuring(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        bench("no-such-model", output=tmp_path / "nowhere" / "result.json")


class Raising(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("always")


def test_a_model_that_fails_or_takes_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"Raising fails in PyTorch \(eager, float32\) on \[2, 1, 8, 8\]: ValueError: always"
    ):
        bench(f"{__name__}:Raising", batch_sizes=(2,), variants=("eager",), input_shapes=SHAPE)
    for text, message in (
        ("g (int64[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }", r"input 'x' takes tensor\(int64\)"),
        ("g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }", r"fails while running fixed.onnx on x \[2, 4\]"),
        (
            "g () => (float[4] y) { y = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() }",
            "expected a model with inputs",
        ),
    ):
        path = tmp_path / "fixed.onnx"
        onnx.save(onnx.parser.parse_model(HEAD + text), path)
        with pytest.raises((ModelError, UsageError), match=message):
            bench(path, batch_sizes=(2,), variants=("ort-plain",))


def test_a_batch_that_is_too_large_for_memory_is_one_line() -> None:
    with pytest.raises(ModelError, match="batch size 1000000000000 of fcn does not fit into memory"):
        bench("fcn", batch_sizes=(10**12,), variants=("eager",))


def test_own_inputs_are_refused_at_the_end_to_end_boundary(tmp_path: Path) -> None:
    method = Method(boundary="end-to-end")
    with pytest.raises(UsageError, match="--inputs apply only at the boundaries host and device"):
        bench("cnn", inputs=[tmp_path], method=method)
    with pytest.raises(UsageError, match="at end-to-end, fcn reads files that bench writes"):  # of a suite's cases, too
        make_request([Case("cnn"), Case("fcn", inputs=(str(tmp_path),))], None, "cpu", 1, None, method)
