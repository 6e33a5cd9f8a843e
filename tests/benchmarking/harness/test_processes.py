"""Processes of their own: what is not a variant's fault."""

from __future__ import annotations

import contextlib
import errno
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from stn_infer.api.bench import make_request, resolve_case
from stn_infer.benchmarking.harness import processes, worker
from stn_infer.benchmarking.request import Case, Method
from stn_infer.errors import OutputError


def test_a_full_disk_is_no_variants_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, str] = {}

    @contextlib.contextmanager
    def died(
        module: str, arguments: list[str], environment: dict[str, str], stderr: TextIO, **streams: object
    ) -> Iterator[Any]:
        assert module == worker.__name__
        asked.update(environment)
        stderr.write("a warning\nNo space left on device\n")
        yield types.SimpleNamespace(stdout=["eager, batch 2\n"], returncode=worker.CANNOT_WRITE)

    monkeypatch.setattr(processes, "python_child", died)
    nothing = types.SimpleNamespace(variants=("eager",))
    task = worker.Task(nothing, nothing)  # type: ignore[arg-type]
    monkeypatch.setattr(processes, "asdict", lambda it: {})
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        processes.run_apart(task, tmp_path, lambda text: None)
    assert asked["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")  # no leftovers of the user's: a cold compile

    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(processes, "prepare", full)
    request = make_request([Case("cnn")], ["eager"], "cpu", 1, None, Method())
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        processes.Processes(tmp_path, resolve_case).prepare(request, lambda text: None)
