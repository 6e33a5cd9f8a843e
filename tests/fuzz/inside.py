"""A case in this process, without limits and without the trial of third-party files: fast, for small harmless files."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner

from stn_infer.cli import main as cli
from stn_infer.repairs.trial import Verdict
from tests.fuzz.seeds import Command, Seed
from tests.fuzz.worker import Outcome, changes, hashes


def run(command: Command, case: Seed, folder: Path, *, trial: bool = False) -> Outcome:
    """Run a command line on the files of ``case`` in ``folder``, which is emptied before and afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    case.write(folder)
    trace = ""
    explain = cli._explain

    def explained(error: Exception, *rest: Any) -> tuple[str, int]:
        nonlocal trace
        message, code = explain(error, *rest)
        if message.startswith("internal error"):
            trace = "".join(traceback.format_exception(error))
        return message, code

    before, here = hashes(folder), Path.cwd()
    environment = {"STN_TRIAL_SECONDS": "60", "TMPDIR": str(folder / "tmp"), "COLUMNS": "200", "NO_COLOR": "1"}
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(cli, "_explain", explained))
        patches.enter_context(mock.patch.dict(os.environ, environment))
        patches.enter_context(mock.patch("tempfile.tempdir", None))
        patches.enter_context(mock.patch.dict("stn_infer.api.trusted._passed", clear=True))
        if not trial:
            patches.enter_context(mock.patch("stn_infer.repairs.trial.try_model", return_value=Verdict()))
        os.chdir(folder)
        started = time.process_time()
        try:
            result = CliRunner().invoke(cli.main, list(command))
        finally:
            seconds = time.process_time() - started
            os.chdir(here)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        trace = "".join(traceback.format_exception(result.exception))
    outcome = Outcome(
        result.exit_code, seconds, 0, result.output, result.stderr, trace, *changes(before, hashes(folder))
    )
    shutil.rmtree(folder, ignore_errors=True)
    return outcome
