"""Co-localization: canvases, boxes, IoU, and a loss that reads neither boxes nor classes."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from export.datasets import colocalize
from export.datasets.colocalize import Colocalization, intersection_over_union, window
from stn_infer.errors import UsageError
from tests.support.digits import plain_digits, use


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, plain_digits())
    monkeypatch.setattr(colocalize, "ENCODER_STEPS", 2)


@pytest.mark.parametrize("cluttered", [False, True])
def test_the_box_holds_the_digit(cluttered: bool) -> None:
    inputs, boxes = Colocalization(7, cluttered).draw("training", 30, Generator().manual_seed(0))
    assert inputs.shape == (30, 1, 84, 84) and inputs.dtype == torch.uint8
    assert boxes.min() >= 0 and boxes.max() <= 84
    for image, box in zip(inputs[:, 0], boxes.int(), strict=True):
        left, top, right, bottom = box.tolist()
        assert (right - left, bottom - top) == (28, 28)
        inside = image[top:bottom, left:right]
        assert int(inside[4:24, 4:24].min()) >= 190, "the class's own brightness"
        rest = image.clone()
        rest[top:bottom, left:right] = 0
        assert bool(rest.any()) == cluttered


def test_iou_of_known_boxes() -> None:
    first = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [2, 2, 2, 2], [3, 3, 1, 1]])
    second = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [2, 2, 6, 6], [5, 0, 9, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    expected = torch.tensor([1.0, 8 / 24, 4 / 28, 0, 0, 0])
    torch.testing.assert_close(intersection_over_union(first, second), expected)
    torch.testing.assert_close(intersection_over_union(second, first), expected)


def test_a_box_is_right_above_half() -> None:
    output = {"box": torch.tensor([[0.0, 0, 28, 28], [20, 20, 48, 48]])}
    judged = Colocalization().judge(output, torch.tensor([[0.0, 0, 28, 28], [0, 0, 28, 28]]))
    assert judged["error"].tolist() == [False, True]
    assert judged["iou"][0] == 1


class _Crops(nn.Module):
    """Crops at given places (x, y), as a localization network would choose them."""

    def __init__(self, place: Tensor) -> None:
        super().__init__()
        self.place = place

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return {"crop": window(input[:, 0], self.place, 28)[:, None]}


def test_the_loss_is_lower_at_the_object_and_reads_no_boxes() -> None:
    task = Colocalization(7)
    inputs, boxes = task.draw("training", 40, Generator().manual_seed(0))
    images = inputs.float() / 255

    def loss(place: Tensor, targets: Tensor) -> float:
        return float(task.loss(_Crops(place), images, targets, Generator().manual_seed(1)))

    right = boxes[:, :2].long()
    wrong = (right + 35) % 57
    assert loss(right, boxes) < 0.8 * loss(wrong, boxes)
    assert loss(right, boxes) == loss(right, torch.zeros_like(boxes))


def test_the_encoder_is_the_same_in_every_run_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = Colocalization(2).encoder
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    second = Colocalization(2).encoder
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(first(images), second(images))
    assert first(images).shape == (3, colocalize.ENCODED)
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_a_class_that_does_not_exist_is_rejected() -> None:
    with pytest.raises(UsageError, match="0 to 9, not 10"):
        Colocalization(10)
