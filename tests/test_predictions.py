from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from stn_infer.activation import ACTIVATIONS
from stn_infer.errors import UsageError
from stn_infer.predictions import Candidate, Classifier, Scores, resolve_scores

VALUES = np.float32([[1.0, 3.0, 2.0, -4.0], [0.5, 0.5, -2.0, 0.5]])
LABELS = ("a", "b", "c", "d")


def softmax(
    values: np.ndarray[tuple[int, ...], np.dtype[np.floating]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    powers = np.exp(values.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_best_class_and_its_softmax() -> None:
    found = Classifier(labels=LABELS).rank(VALUES)
    assert found.classes.tolist() == [1, 0]
    np.testing.assert_allclose(found.confidences, softmax(VALUES).max(axis=1), rtol=1e-7)
    assert found.shown(0) == (found.best(0),)
    assert found.best(1) == Candidate(0, "a", pytest.approx(float(softmax(VALUES)[1, 0])))


def test_top_k_is_in_the_order_of_the_scores_and_equal_ones_by_number() -> None:
    found = Classifier(top_k=3).rank(VALUES)
    assert found.order.tolist() == [[1, 2, 0], [0, 1, 3]]
    assert found.counts.tolist() == [3, 3]
    np.testing.assert_allclose(found.values[0], softmax(VALUES)[0, [1, 2, 0]], rtol=1e-7)
    assert [each.label for each in found.shown(0)] == [None, None, None]


def test_more_than_there_are_classes() -> None:
    assert Classifier(top_k=9).rank(VALUES).order.shape == (2, 4)


def test_a_sigmoid_shows_all_classes_above_the_threshold() -> None:
    found = Classifier(Scores("sigmoid"), LABELS).rank(VALUES)
    assert [[each.label for each in found.shown(row)] for row in range(2)] == [["b", "c", "a"], ["a", "b", "d"]]
    np.testing.assert_allclose(found.values[0, :2], 1 / (1 + np.exp([-3.0, -2.0])), rtol=1e-7)
    strict = Classifier(Scores("sigmoid"), threshold=0.9).rank(VALUES)
    assert strict.counts.tolist() == [1, 0]
    assert strict.shown(1) == ()
    assert strict.classes.tolist() == [1, 0]


def test_a_sigmoid_with_top_k() -> None:
    assert Classifier(Scores("sigmoid"), top_k=4).rank(VALUES).counts.tolist() == [4, 4]
    assert Classifier(Scores("sigmoid"), top_k=2, threshold=0.5).rank(VALUES).counts.tolist() == [2, 2]
    assert Classifier(Scores("sigmoid"), top_k=2, threshold=0.9).rank(VALUES).counts.tolist() == [1, 0]


@pytest.mark.parametrize("scores", [Scores("none"), Scores("softmax", True), Scores("sigmoid", True)])
def test_probabilities_get_no_second_activation(scores: Scores) -> None:
    values = np.float32([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    found = Classifier(scores).rank(values)
    assert found.confidences.tolist() == values.max(axis=1).tolist()


def test_logarithms_of_probabilities_become_probabilities() -> None:
    expected = softmax(VALUES)
    found = Classifier(top_k=4).rank(np.log(expected))
    np.testing.assert_allclose(found.values, -np.sort(-expected, axis=1), rtol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_without_bounds(activation: str) -> None:
    values = np.float32(
        [[np.inf, 0, -np.inf], [np.inf, np.inf, 1], [-np.inf] * 3, [1e30, -1e30, 0], [3e38, 2e38, -3e38]]
    )
    found = Classifier(resolve_scores(None, activation), top_k=3).rank(values)
    assert found.order[0].tolist() == [0, 1, 2]
    assert not np.isnan(found.values).any()
    if activation == "softmax":
        assert found.values.round(6).tolist()[:3] == [[1, 0, 0], [0.5, 0.5, 0], [np.float32(1 / 3).round(6)] * 3]
    if activation == "sigmoid":
        assert found.values[0].tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int64])
def test_other_types_of_scores(dtype: type[np.generic]) -> None:
    values = np.array([[1, 5, 3], [20, 0, 7]]).astype(dtype)
    found = Classifier(top_k=3).rank(values)
    assert found.order.tolist() == [[1, 2, 0], [0, 2, 1]]
    np.testing.assert_allclose(found.values, -np.sort(-softmax(values.astype(np.float64)), axis=1), rtol=1e-6)


def test_the_number_of_samples_does_not_matter() -> None:
    values = np.random.default_rng(0).standard_normal((33, 100)).astype(np.float32)
    whole = Classifier(top_k=5).rank(values)
    for row in range(len(values)):
        single = Classifier(top_k=5).rank(values[row : row + 1])
        assert (single.order[0] == whole.order[row]).all()
        assert (single.values[0] == whole.values[row]).all()


def test_no_samples() -> None:
    for shape in ((0, 4), (0, 0)):
        found = Classifier(top_k=2).rank(np.zeros(shape, np.float32))
        assert (len(found), found.values.dtype) == (0, np.float32)


def test_fewer_labels_than_classes() -> None:
    with pytest.raises(UsageError, match="predicts class 1, given 1 label"):
        Classifier(labels=("a",)).rank(VALUES).best(0)


def test_what_is_given_known_or_assumed() -> None:
    assert resolve_scores(None, None) == Scores("softmax")
    assert resolve_scores(Scores("sigmoid"), None) == Scores("sigmoid")
    assert resolve_scores(Scores("sigmoid"), "softmax") == Scores("softmax")
    assert resolve_scores(Scores("softmax", True), "softmax") == Scores("softmax", True)
    assert resolve_scores(Scores("softmax", True), "none") == Scores("none")
    with pytest.raises(UsageError, match="itself ends in a softmax"):
        resolve_scores(Scores("softmax", True), "sigmoid")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resolve_scores(None, "tanh"), "softmax, sigmoid, none, not 'tanh'"),
        (lambda: Scores("none", True), "cannot be a part"),
        (lambda: Classifier(top_k=0), "at least 1, not 0"),
        (lambda: Classifier(threshold=0.5), "activation sigmoid, not softmax"),
        (lambda: Classifier(Scores("sigmoid"), threshold=1.5), "between 0 and 1"),
    ],
)
def test_wrong_options(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UsageError, match=message):
        make()


def test_json() -> None:
    scores = Scores("sigmoid", True)
    assert Scores.from_json(json.loads(json.dumps(asdict(scores)))) == scores
    for damaged in ([], {"activation": "relu"}, {"applied": 1}, {"more": 1}, None):
        with pytest.raises((ValueError, TypeError, UsageError)):
            Scores.from_json(damaged)
