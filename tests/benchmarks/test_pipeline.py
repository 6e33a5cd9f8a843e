"""``benchmarks/pipeline.py``: the overhead of a run beyond the model, on a few images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import pipeline
from stn_infer.api.open import open_backend
from stn_infer.arrays import Array
from stn_infer.data.images import decode
from stn_infer.errors import InputError
from stn_infer.preprocess.rule import Preprocess


def read(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_round_adds_up_the_time_of_both_steps(tmp_path: Path) -> None:
    pipeline.write(tmp_path, pipeline.noise(12, (28, 28)))
    backend = open_backend("tutorial-stn-r", threads=1)
    found = pipeline.measure(backend, tmp_path, 4, 1)
    backend.close()
    assert min(found.decode_alone, found.inference_alone, found.decode_within, found.inference_within) > 0
    assert found.wall > 0
    assert found.ratio_within(2) == 2 * found.wall / (found.decode_within + found.inference_within)


def test_ratios_are_to_all_cores() -> None:
    found = pipeline.Round(1.0, 3.0, 2.0, 6.0, wall=5.0)
    assert (found.ratio_alone(2), found.ratio_within(2)) == (2.5, 1.25)


def test_images_are_of_the_size_that_the_model_takes(tmp_path: Path) -> None:
    pipeline.write(tmp_path, pipeline.noise(1001, (5, 7)))
    files = sorted(tmp_path.rglob("*.png"))
    assert [file.relative_to(tmp_path).as_posix() for file in (files[0], files[-1])] == [
        "000/000000.png",
        "001/001000.png",
    ]
    assert read(files[3]).shape == (5, 7)


def test_digits_are_centered_or_resized(tmp_path: Path) -> None:
    for size, folder in (((42, 50), "large"), ((14, 28), "small")):
        digits = pipeline.digits(size)
        (tmp_path / folder).mkdir()
        pipeline.write(tmp_path / folder, [next(digits)])
        values = read(tmp_path / folder / "000" / "000000.png")
        assert values.shape == size and values.max() > 200
    assert read(tmp_path / "large" / "000" / "000000.png")[:7].max() == 0


def test_damaged_images_fail() -> None:
    with pytest.raises(InputError, match="is damaged or unreadable"):
        decode(next(pipeline.damaged(1)), Preprocess("gray"))


def test_growth_is_of_the_last_tenth_over_the_second() -> None:
    samples = tuple((share / 100, 100.0 + share) for share in range(101))
    assert pipeline.Memory(200.0, 1.0, samples).growth == 200 / 119
    assert pipeline.Memory(200.0, 1.0, samples[:50]).growth == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, True])
def test_memory_does_not_grow_with_the_inputs(tmp_path: Path, failing: bool) -> None:
    count = 24_000 * int(os.environ.get("STN_FAULTS", "1"))
    pipeline.write(tmp_path, pipeline.damaged(count) if failing else pipeline.noise(count, (28, 28)))
    found = pipeline.memory_of_run("tutorial-stn-r", tmp_path, count, failing=failing)
    assert 0 < found.growth < 1.05, found.samples
