"""``benchmarks/feed.py``: every case on a few samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import feed
from stn_infer.backends.base import Backend, PixelBackend
from stn_infer.preprocess.rule import Preprocess


def test_the_backends_answer_with_scores() -> None:
    instant, pixels = feed.Instant((1, 28, 28)), feed.InstantPixels((3, 8, 8))
    assert isinstance(instant, Backend) and not isinstance(instant, PixelBackend)
    assert isinstance(pixels, PixelBackend)
    assert instant.run({"input": np.zeros((5, 1, 28, 28), np.float32)})["scores"].shape == (5, 10)
    assert pixels.run_pixels(np.zeros((5, 3, 8, 8), np.uint8), Preprocess("rgb"))["scores"].shape == (5, 10)


def test_every_case_predicts_all_samples(tmp_path: Path) -> None:
    feed.write_data(tmp_path, set(feed.CASES), 0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["color.npy", "float.npy", "gray.npy", "jpeg", "png"]
    for name in (*feed.CASES, "pillow-threads"):
        found = feed.measure_here(name, tmp_path, 0.0, 0.0)
        assert found["rate"] > 0 and found["peak_mb"] > 10


def test_a_tree_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    feed.write_data(tmp_path, {"npy-28-csv"}, 0.0)
    found = feed.measure_tree(Path(feed.__file__).parents[1], "npy-28-csv", tmp_path, 0.0, 0.0)
    assert found["rate"] > 0
