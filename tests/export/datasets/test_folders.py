"""SVHN and CUB-200-2011 as tasks, from small folders in their formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Generator

from export.datasets.folders import VALIDATION, CubBirds, FolderTask, SvhnNumbers
from stn_infer.errors import InputError
from tests.support.photographs import write_birds, write_house_numbers

COUNT = VALIDATION + 3


@pytest.fixture(params=["svhn", "cub"])
def task(request: pytest.FixtureRequest, tmp_path: Path) -> FolderTask:
    if request.param == "svhn":
        write_house_numbers(tmp_path / "train", COUNT)
        write_house_numbers(tmp_path / "test", 4)
        return SvhnNumbers(tmp_path, 16)
    write_birds(tmp_path, COUNT, 4)
    return CubBirds(tmp_path, 16)


def test_an_epoch_has_each_training_picture_once(task: FolderTask) -> None:
    assert (task.samples, task.tests) == (COUNT - 2, 4)
    batches = list(task.epoch(8, Generator().manual_seed(0)))
    assert [len(batch.inputs) for batch in batches] == [8, 8, 5]
    inputs = torch.cat([batch.inputs for batch in batches])
    assert inputs.shape == (COUNT - 2, 3, 16, 16) and inputs.dtype == torch.uint8
    # each picture's brightness is its number
    levels = sorted(int(level) for level in inputs[:, 0, 8, 8])
    expected = [10 * number for number in range(COUNT) if number % VALIDATION]
    assert all(abs(level - value) < 3 for level, value in zip(levels, expected, strict=True))


def test_targets_belong_to_their_pictures(task: FolderTask) -> None:
    for batch in [*task.epoch(8, Generator().manual_seed(0)), *task.test("validation", 0), *task.test("test", 0)]:
        numbers = (batch.inputs[:, 0, 8, 8].float() / 10).round().long()
        if batch.targets.ndim == 2:
            assert batch.targets.tolist() == [[number // 10, number % 10, 10, 10, 10] for number in numbers.tolist()]
        else:
            assert batch.targets.tolist() == numbers.tolist()


def test_parts_are_apart_and_random_draws_come_from_them(task: FolderTask) -> None:
    assert sum(len(batch.inputs) for batch in task.test("validation", 0)) == 2
    assert sum(len(batch.inputs) for batch in task.test("test", 0)) == 4
    drawn = task.draw("validation", 5, Generator().manual_seed(0))
    numbers = {round(float(level) / 10) for level in drawn.inputs[:, 0, 8, 8]}
    assert numbers <= {0, VALIDATION}


def test_more_pictures_for_training(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("extra", 7), ("test", 2)):
        write_house_numbers(tmp_path / name, count)
    assert SvhnNumbers(tmp_path).samples == 11


def test_an_incomplete_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*digitStruct\.mat"):
        SvhnNumbers(tmp_path)
    write_birds(tmp_path, 1, 1)
    with pytest.raises(InputError, match="has no pictures for training"):
        CubBirds(tmp_path)
