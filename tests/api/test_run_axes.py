"""`run` and `show` of files whose inputs do not share one batch axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from stn_infer.api.run import run
from stn_infer.api.show import look
from stn_infer.errors import UsageError
from tests.support.batch_axes import arrays_of, file_of, output_of


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_arrays_of_all_samples_go_with_those_of_their_file(kind: str, tmp_path: Path) -> None:
    """Batches of 2 from files of 3 and 2 samples: the second has other values for all of its samples."""
    onnx.save(file_of(kind), tmp_path / "m.onnx")
    files = [arrays_of(kind, 3, seed=1), arrays_of(kind, 2, seed=2)]
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path, arrays in zip(paths, files, strict=True):
        np.savez(path, **arrays)  # type: ignore[arg-type]
    wanted = np.concatenate([output_of(kind, arrays) for arrays in files])
    done = run(tmp_path / "m.onnx", paths, tmp_path / "out", format="npz", batch_size=2)
    assert (done.ok, done.failed) == (5, 0)
    (shard,) = (tmp_path / "out").glob("predictions-*.npz")
    with np.load(shard) as stored:
        np.testing.assert_allclose(stored["output"], wanted, atol=1e-6)
    looks = look(tmp_path / "m.onnx", paths)
    assert [each.name for each in looks] == ["a.npz[0]", "a.npz[1]", "a.npz[2]", "b.npz[0]", "b.npz[1]"]
    np.testing.assert_allclose(np.stack([each.warps[0].warped for each in looks]), wanted, atol=1e-6)


def test_samples_on_a_later_axis_are_refused(tmp_path: Path) -> None:
    onnx.save(file_of("later"), tmp_path / "m.onnx")
    np.savez(tmp_path / "a.npz", **arrays_of("later", 3))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="input 'theta' has its samples on axis 1; expected them on axis 0"):
        run(tmp_path / "m.onnx", [tmp_path / "a.npz"], tmp_path / "out", format="npz")
    with pytest.raises(UsageError, match="input 'theta' has its samples on axis 1; expected them on axis 0"):
        look(tmp_path / "m.onnx", [tmp_path / "a.npz"])
