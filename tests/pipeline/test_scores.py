"""Scores against values that are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_infer.pipeline.scores import (
    BoxScore,
    Classification,
    SequenceScore,
    edit_distance,
    intersection_over_union,
)


def test_confusion_precision_and_recall() -> None:
    ranked = [[0, 2], [1, 2], [1, 0], [1, 0], [0, 1]]
    names = ("cat", "dog", "owl")
    assert Classification.of([0, 0, 1, 1, 1], ranked, names, top_k=2).top_k_accuracy == 0.8
    found = Classification.of([0, 0, 1, 1, 1], ranked, names)
    assert (found.top_k, found.top_k_accuracy, found.top_label) == (None, None, "")
    assert found.accuracy == pytest.approx(0.6)
    assert found.confusion == ((1, 1, 0), (1, 2, 0), (0, 0, 0))
    cat, dog, owl = found.classes
    assert (cat.samples, cat.precision, cat.recall) == (2, 0.5, 0.5)
    assert (dog.label, dog.precision, dog.recall) == ("dog", pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (owl.samples, owl.precision, owl.recall) == (0, None, None)


def test_sequences() -> None:
    found = SequenceScore.of(["123", "45", ""], ["123", "54", "7"])
    assert found.error == pytest.approx(2 / 3)
    assert found.character_error == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edit_distance_is_a_metric(one: str, two: str, three: str) -> None:
    assert (edit_distance(one, two) == 0) == (one == two)
    assert edit_distance(one, three) <= edit_distance(one, two) + edit_distance(two, three)


def test_boxes() -> None:
    first = np.array([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [3, 3, 1, 1], [2, 2, 2, 2]])
    second = np.array([[0.0, 0, 4, 4], [2, 0, 6, 4], [5, 0, 9, 4], [0, 0, 4, 4], [2, 2, 2, 2]])
    expected = [1, 8 / 24, 0, 0, 0]
    np.testing.assert_allclose(intersection_over_union(first, second), expected)
    np.testing.assert_allclose(intersection_over_union(second, first), expected)
    found = BoxScore.of(first, second)
    assert found.mean_iou == pytest.approx(sum(expected) / 5) and found.above_half == pytest.approx(0.2)
