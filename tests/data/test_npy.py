from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stn_infer.arrays import fits
from stn_infer.data.buffers import Buffers
from stn_infer.data.npy import NpyFile


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f4", "<i8"])
def test_slices_of_rows(tmp_path: Path, order: str, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 200, (50, 3, 5)).astype(dtype)
    np.save(tmp_path / "x.npy", np.asarray(values, order=order))  # type: ignore[call-overload]
    file = NpyFile(str(tmp_path / "x.npy"))
    for start, count in ((0, 50), (7, 1), (40, 10), (45, 10), (50, 3), (60, 3), (3, 0)):
        rows = file.rows(start, count, Buffers())
        assert rows.dtype == dtype
        assert np.array_equal(rows, values[start : start + count])
    assert np.array_equal(file.whole(), values)


def test_a_file_that_shrinks_gives_the_whole_rows_that_are_left(tmp_path: Path) -> None:
    path, values = tmp_path / "x.npy", np.random.default_rng(0).random((50, 20))
    np.save(path, values)
    file = NpyFile(str(path))
    for size, left in ((128 + 10 * 160, 10), (128 + 10 * 160 - 1, 9), (128, 0), (0, 0)):
        with path.open("r+b") as opened:
            opened.truncate(size)
        assert np.array_equal(file.rows(0, 50, Buffers()), values[:left])


def test_fits() -> None:
    assert fits((3, 4), (3, None)) and fits((), ())
    assert not fits((3, 4), (3,)) and not fits((3, 4), (4, None))
