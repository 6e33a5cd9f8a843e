"""How many workers run the model at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from stn_infer.arrays import Array
from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import UsageError
from stn_infer.pipeline.inference import run_job
from stn_infer.pipeline.plan import RunOptions
from tests.support.onnx_files import affine_model


class Counting(OrtBackend):
    """Counts the calls that run at the same time; each waits for others for a while."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model, threads=1)
        self.most = self._now = 0
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.01)
        try:
            return super().run(inputs)
        finally:
            with self._lock:
                self._now -= 1


@pytest.mark.parametrize(("callers", "most"), [(1, {1}), (2, {1, 2}), (None, {2, 3, 4}), (9, {2, 3, 4})])
def test_callers_bound_the_calls_at_once(callers: int | None, most: set[int], tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.zeros((16, 1, 8, 8), np.float32))
    backend = Counting(affine_model().SerializeToString())
    options = RunOptions(batch_size=1, format="npz", workers=4, callers=callers)
    run_job(backend, [str(tmp_path / "inputs.npy")], tmp_path / "job", options, model="model", model_sha256="")
    assert backend.most in most


def test_no_callers() -> None:
    with pytest.raises(UsageError, match="callers is at least 1, not 0"):
        RunOptions(callers=0)
