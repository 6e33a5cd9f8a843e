"""What a benchmark refuses in one line, and what it leaves to be timed."""

from __future__ import annotations

import contextlib
import errno
import types
from pathlib import Path
from typing import TextIO

import onnx
import onnx.parser
import pytest
import torch
from torch import nn

from stn_infer.api.bench import bench, make_request
from stn_infer.benchmarking.harness import processes, worker
from stn_infer.benchmarking.request import Case, Method
from stn_infer.errors import ModelError, OutputError, UsageError

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '
SHAPE = [(1, 8, 8)]


def test_an_output_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        bench("no-such-model", output=tmp_path / "nowhere" / "result.json")


class Raising(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("always")


def test_a_model_that_fails_or_takes_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Raising fails on float32 inputs \[2, 1, 8, 8\]: always"):
        bench(f"{__name__}:Raising", batch_sizes=(2,), variants=("eager",), input_shapes=SHAPE)
    for text, message in (
        ("g (int64[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }", r"input 'x' takes tensor\(int64\)"),
        ("g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }", r"fixed fails on float32 inputs \[2, 4\]"),
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


def test_a_full_disk_is_no_variants_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, str] = {}

    class Died(contextlib.AbstractContextManager["Died"]):
        returncode = worker.CANNOT_WRITE

        def __init__(self, command: list[str], stderr: TextIO, **named: object) -> None:
            self.stdout = ["eager, batch 2\n"]
            asked.update(named["env"])  # type: ignore[call-overload]
            stderr.write("a warning\nNo space left on device\n")

        def __exit__(self, *raised: object) -> None: ...

    monkeypatch.setattr(processes.subprocess, "Popen", Died)
    nothing = types.SimpleNamespace(sys_path=())
    task = worker.Task(nothing, 0, ("eager",), 1e-5, "cpu", 1, Method())  # type: ignore[arg-type]
    monkeypatch.setattr(processes, "asdict", lambda it: {})
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        processes.run_apart(task, tmp_path, lambda text: None)
    assert asked["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")  # no leftovers of the user's: a cold compile

    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(processes, "prepare", full)
    request = make_request([Case("cnn")], ["eager"], "cpu", 1, None, Method())
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        processes.Processes(request, tmp_path).prepare(request, lambda text: None)


def test_binding_leaves_the_first_call_to_be_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stn_infer.benchmarking.prepare.case import prepare
    from stn_infer.benchmarking.variants import ort as ort_variants

    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(HEAD + "g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"), path)
    prepared, _ = prepare(
        Case(str(path), batch_sizes=(2,)),
        tmp_path,
        files=frozenset(("plain", "portable")),
        tolerance=None,
        seed=0,
        say=lambda text: None,
    )
    runner = ort_variants.OrtRunner("ort-binding", prepared, "cpu", 1, Method())
    ran: list[str] = []
    session = runner.backend.session

    class Watched:
        def run(self, *arguments: object) -> object:
            ran.append("run")
            return session.run(*arguments)

        def __getattr__(self, name: str) -> object:
            return getattr(session, name)

    monkeypatch.setattr(runner.backend, "_session", Watched())
    expected = prepared.expected(2)
    bound = runner.bind(expected.inputs)
    assert not ran
    assert expected.error(bound.outputs()) < 1e-4
    runner.close()


def test_inputs_of_the_users_are_refused_where_bench_writes_the_files(tmp_path: Path) -> None:
    method = Method(boundary="end-to-end")
    with pytest.raises(UsageError, match="inputs of yours are fed at the boundaries host and device"):
        bench("cnn", inputs=[tmp_path], method=method)
    with pytest.raises(UsageError, match="end to end fcn reads files that bench writes"):  # of a suite's cases, too
        make_request([Case("cnn"), Case("fcn", inputs=(str(tmp_path),))], None, "cpu", 1, None, method)
