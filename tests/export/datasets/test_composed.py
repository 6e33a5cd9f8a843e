"""Sets composed from digits: labels that belong to what is drawn, the same samples for the same seed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from export.datasets import composed
from export.datasets.composed import Addition, HouseNumbers, Volumes
from export.datasets.task import Task
from stn_infer.errors import UsageError
from tests.support.digits import plain_digits, use


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, plain_digits())


def seed(value: int = 0) -> Generator:
    return Generator().manual_seed(value)


@pytest.mark.parametrize("task", [Addition(), HouseNumbers(32), Volumes(28)], ids=["addition", "numbers", "volumes"])
def test_the_same_seed_gives_the_same_samples(task: Task) -> None:
    first, again, other = (task.draw("test", 6, seed(value)) for value in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)
    assert first.inputs.dtype == torch.uint8 and first.targets.dtype == torch.int64


def test_the_sum_is_of_the_digits_in_the_two_channels() -> None:
    batch = Addition().draw("training", 50, seed())
    assert batch.inputs.shape == (50, 2, 42, 42)
    digits = (batch.inputs.flatten(2).amax(2).long() - 50) / 20
    torch.testing.assert_close(digits.sum(1), batch.targets.float(), atol=0.1, rtol=0)


def test_without_distortions_both_digits_are_in_the_middle() -> None:
    batch = Addition().draw("training", 20, seed(), strength=0.0)
    inside = torch.zeros(42, 42, dtype=torch.bool)
    inside[11:31, 11:31] = True
    assert ((batch.inputs > 40) == inside).all()


def test_numbers_have_one_to_five_digits_and_then_none() -> None:
    batch = HouseNumbers(32).draw("training", 200, seed())
    assert batch.inputs.shape == (200, 3, 32, 32) and batch.targets.shape == (200, 5)
    none = batch.targets == 10
    lengths = (~none).sum(1)
    assert set(lengths.tolist()) == {1, 2, 3, 4, 5}
    assert all(bool(row[int(length) :].all()) for row, length in zip(none, lengths, strict=True))


@pytest.mark.parametrize(("strength", "longest"), [(0.0, 1), (0.5, 3), (1.0, 5)])
def test_numbers_are_shorter_at_less_than_full_strength(strength: float, longest: int) -> None:
    lengths = (HouseNumbers(32).draw("training", 200, seed(), strength).targets < 10).sum(1)
    assert set(lengths.tolist()) == set(range(1, longest + 1))


def test_a_number_is_drawn_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """On black, without noise, in white, and not rotated, brightness along the row names the digits."""
    monkeypatch.setattr(composed, "piece", lambda size, generator: torch.zeros(3, size, size))
    monkeypatch.setattr(
        HouseNumbers, "_colors", staticmethod(lambda backgrounds, generator: torch.full((300, 3), 250.0))
    )
    batch = HouseNumbers(128).draw("training", 300, seed())
    straight = 0
    for image, target in zip(batch.inputs[:, 0].float(), batch.targets, strict=True):
        digits = target[target < 10]
        bright = image > 35
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        assert rows[0] >= 1 and rows[-1] <= 126 and columns[0] >= 1 and columns[-1] <= 126, "nothing is cut off"
        first, last = image[:, columns[0] + 5], image[:, columns[-1] - 5]
        expected = [250 * (50 + 20 * int(digit)) / 255 for digit in (digits[0], digits[-1])]
        straight += abs(float(first.max()) - expected[0]) < 20 and abs(float(last.max()) - expected[1]) < 20
    assert straight > 270, "noise adds up to 16 levels, and rotated ends are thin"


def test_volumes_are_turned_digits() -> None:
    batch = Volumes(32).draw("training", 20, seed())
    assert batch.inputs.shape == (20, 1, 32, 32, 32)
    brightest = (batch.inputs.flatten(1).amax(1).float() - 50) / 20
    torch.testing.assert_close(brightest, batch.targets.float(), atol=0.1, rtol=0)
    filled = (batch.inputs > 25).float().mean(dim=(1, 2, 3, 4))
    assert bool((filled > 0.01).all()) and bool((filled < 0.2).all())


def test_rotations_are_rotations() -> None:
    found = composed._rotation(torch.rand(5, 3) * 2 - 1)
    torch.testing.assert_close(found @ found.transpose(1, 2), torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("make", "size"), [(HouseNumbers, 31), (Volumes, 27)])
def test_sizes_that_are_too_small_are_rejected(make: type, size: int) -> None:
    with pytest.raises(UsageError, match=f"{size}"):
        make(size)


def test_an_extruded_digit_is_sampled_as_the_solid_is() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (28, 28), generator=generator).float()
    solid = torch.zeros(1, 1, 28, 28, 28)
    solid[:, :, 7:21] = image
    for size in (28, 41):
        theta = torch.cat([torch.eye(3) * 1.4, torch.zeros(3, 1)], 1) + 0.3 * torch.randn(3, 4, generator=generator)
        grid = F.affine_grid(theta[None], [1, 1, size, size, size], align_corners=False)
        expected = F.grid_sample(solid, grid, align_corners=False)[0, 0]
        found = composed._extruded(image, theta, size).float()
        assert (found > 0).any()
        assert (found - expected).abs().max() <= 0.501  # rounded
