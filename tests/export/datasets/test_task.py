"""What every task shares: an epoch's size, test samples that do not change, and how sequences are judged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, nn

from export.datasets.task import Batch, Part, Task


class Counting(Task):
    samples, tests = 50, 450

    def draw(self, part: Part, count: int, generator: Generator) -> Batch:
        values = torch.randint(100, (count, 3), generator=generator)
        return Batch(values.to(torch.uint8), values % 4)


def test_an_epoch_has_all_samples() -> None:
    assert [len(batch.targets) for batch in Counting().epoch(20, Generator())] == [20, 20, 10]


def test_test_samples_depend_on_the_seed_alone() -> None:
    first, again, other = (torch.cat([b.inputs for b in Counting().test("test", seed)]) for seed in (1, 1, 2))
    assert len(first) == 450
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_sequence_is_right_if_every_place_is() -> None:
    targets = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    predicted = torch.tensor([[1, 2, 3], [1, 2, 0], [0, 0, 0]])
    judged = Counting().judge(F.one_hot(predicted, 4), targets)
    assert judged["error"].tolist() == [False, True, True]
    torch.testing.assert_close(judged["digit_error"], torch.tensor([0, 1 / 3, 1]))
    assert list(Counting().judge(F.one_hot(predicted[:, 0], 4), targets[:, 0])) == ["error"]


def test_the_loss_of_a_sequence_is_the_mean_over_its_places() -> None:
    logits, targets = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
    network = nn.Identity()
    expected = sum(F.cross_entropy(logits[:, place], targets[:, place]) for place in range(3)) / 3
    torch.testing.assert_close(Counting().loss(network, logits, targets, Generator()), expected)
