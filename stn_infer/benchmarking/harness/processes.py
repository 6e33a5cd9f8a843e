"""Where rounds are run: in a fresh process each, or in this one."""

from __future__ import annotations

import errno
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from stn_infer.benchmarking.decode import decode
from stn_infer.benchmarking.harness.round import RoundReport, RoundTask
from stn_infer.benchmarking.harness.worker import CANNOT_WRITE, Task, work
from stn_infer.benchmarking.machine.monitor import busy_processes, cpu_share_in_use
from stn_infer.benchmarking.prepare.case import Prepared, Resolver, files_of, prepare
from stn_infer.benchmarking.request import Progress, Request
from stn_infer.benchmarking.result import Model
from stn_infer.errors import OutputError, UsageError
from stn_infer.isolation import python_child


class Workers(Protocol):
    """Runs rounds; tests have one without processes, on a virtual clock."""

    def prepare(self, request: Request, say: Progress) -> tuple[Model, ...]:
        """Prepare every case; what they turned out to be."""
        ...

    def run(self, case: int, task: RoundTask, say: Progress) -> RoundReport:
        """One round of one case.

        Raises:
            Crashed: the process died.
        """
        ...

    def disturbance(self) -> tuple[float, int]:
        """The share of all cores that others use now, and how many processes that are."""
        ...


class Crashed(Exception):
    """A round's process died; ``variant`` is what it was at, empty where that is not known."""

    def __init__(self, variant: str, how: str) -> None:
        super().__init__(how)
        self.variant, self.how = variant, how


class Processes:
    """The real one: a fresh process per round, or this one where the method says so.

    Args:
        folder: an empty one, for the models' files.
        resolve: loads the model that a case names.
    """

    def __init__(self, folder: Path, resolve: Resolver) -> None:
        self._folder, self._resolve = folder, resolve
        self.prepared: list[Prepared] = []

    def prepare(self, request: Request, say: Progress) -> tuple[Model, ...]:
        """See :class:`Workers`."""
        files = frozenset(which for name in request.variants for which in files_of(name))
        made = []
        for index, case in enumerate(request.cases):
            folder = self._folder / str(index)
            folder.mkdir()
            try:
                prepared, model = prepare(
                    case,
                    folder,
                    self._resolve,
                    files=files,
                    tolerance=request.tolerance,
                    seed=request.method.seed,
                    say=say,
                )
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise no_room(self._folder, str(error.strerror)) from error
            self.prepared.append(prepared)
            made.append(_with_library(model, request))
        if len({model.key for model in made}) < len(made):
            made = [replace(model, name=model.case.model) for model in made]
        if len({model.key for model in made}) < len(made):
            raise UsageError("a suite measures each model once per precision; put its batch sizes into one entry")
        return tuple(made)

    def run(self, case: int, task: RoundTask, say: Progress) -> RoundReport:
        """See :class:`Workers`."""
        whole = Task(self.prepared[case], task)
        return run_apart(whole, self._folder, say) if task.request.method.isolate else work(whole, say)

    def disturbance(self) -> tuple[float, int]:
        """See :class:`Workers`."""
        return cpu_share_in_use(0.3), busy_processes()


def no_room(folder: Path, why: str) -> OutputError:
    """What to say where a benchmark's own files cannot be written."""
    return OutputError(
        f"cannot write the benchmark's own files to {folder.parent}: {why}; set TMPDIR to another folder"
    )


def run_apart(task: Task, folder: Path, say: Progress) -> RoundReport:
    """Run a round in a process of its own.

    Raises:
        Crashed: it died; says at which variant, and how.
        OutputError: the folder's disk is full.
        KeyboardInterrupt: it was interrupted, which is not a failure of the variant.
    """
    question, answer, errors = folder / "task.json", folder / "answer.json", folder / "stderr.txt"
    answer.unlink(missing_ok=True)
    question.write_text(json.dumps(asdict(task)), encoding="utf-8")
    # The compiler's cache is this benchmark's own: the first round really compiles, the others take what it made.
    compiled = folder / "compiled"
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(compiled), "TRITON_CACHE_DIR": str(compiled / "triton")}
    at = ""
    with (
        errors.open("w") as sink,
        python_child(
            "stn_infer.benchmarking.harness.worker",
            [str(question), str(answer)],
            environment=environment,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            at = line.strip()
            say(at)
    if process.returncode != 0 or not answer.exists():
        tail = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        code = process.returncode
        if code == CANNOT_WRITE:
            raise no_room(folder, tail[-1] if tail else "a file cannot be written")
        how = f"signal {-code}" if code < 0 else f"exit code {code}" + (f": {tail[-1]}" if tail else "")
        variant = at.partition(",")[0]
        raise Crashed(variant if variant in task.round.variants else "", how)
    return decode(RoundReport, json.loads(answer.read_text(encoding="utf-8")))


def _with_library(model: Model, request: Request) -> Model:
    """``model`` with the plugin library's hash, where a variant may use it."""
    from stn_infer import plugin

    path = plugin.info().path if any("fused" in name or name == "ort-binding" for name in request.variants) else None
    if path is None:
        return model
    return replace(model, sha256={**model.sha256, "plugin library": plugin.sha256_of(path)})
