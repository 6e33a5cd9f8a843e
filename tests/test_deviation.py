"""The comparator's policies: scale, non-finite values, noise, integers."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from stn_infer.deviation import CEILING, MARGIN, Level, bfloat16, compare, errors, float32_tolerance, largest_error
from stn_infer.errors import ModelError


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("expected", "actual", "error"),
    [
        *[(inf, inf, 0), (-inf, -inf, 0), (nan, nan, 0), (1, 1.5, 0.5), (0, 1e-39, 0), (0, 1e-30, 1e-30)],
        *[(-inf, inf, inf), (inf, 1, inf), (1, inf, inf)],
        *[(1, nan, inf), (nan, 1, inf), (nan, inf, inf), (inf, nan, inf)],
    ],
)
def test_non_finite_values_must_be_equal(expected: float, actual: float, error: float) -> None:
    for reference in (np.float32, np.float64):
        found = errors(np.array([expected], reference), floats(actual))
        assert found == pytest.approx(error, rel=1e-6, abs=0)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1e-2, 1.0, 1e4])
def test_an_output_is_judged_on_its_own_scale(magnitude: float) -> None:
    wanted = np.array([0.3, -1.0, 0.0]) * magnitude
    assert compare("y", wanted, wanted * (1 + 5e-5)).scaled == pytest.approx(5e-5)
    assert compare("y", np.append(wanted, [-inf, nan]), np.append(wanted, [-inf, nan])).scaled == 0


def test_empty_and_zero_outputs_have_a_scale() -> None:
    assert compare("y", floats(), floats()).scaled == 0
    assert compare("y", floats(0, 0), floats(0, 0)).scaled == 0
    assert compare("y", floats(0, 0), floats(0, 1e-9)).scaled == pytest.approx(1e-9)
    assert compare("y", floats(0, 1e-40), floats(0, 1e-39)).scaled == 0, "either may be flushed to zero"
    assert compare("y", floats(nan), floats(0)).scaled == inf


def test_the_remainder_of_a_cancellation_has_scale_1() -> None:
    left, noisy = np.full(4, 1e-17), floats(6e-8, -3e-8, 0, 0)
    level = Level.of(left, [noisy])
    assert level.magnitude == 1e-17 and level.noise == pytest.approx(6e-8) and level.scale() == 1
    assert compare("y", left, floats(0, 0, 1e-7, 0), level.scale()).scaled == pytest.approx(1e-7)
    assert Level.of(left, [floats(0, 0, 0, 0)]).scale() == 1, "float32 may be exact by chance"
    assert Level(0.01, 0.99 * 0.01 * CEILING / MARGIN).scale() == 0.01
    assert Level(0.01, 1.01 * 0.01 * CEILING / MARGIN).scale() == 1
    assert Level(5.0, 1.0).scale() == 5.0, "the magnitude, where it is larger"


def test_noise_is_finite_and_comes_from_matching_shapes() -> None:
    assert Level.of(floats(1, -inf), [floats(2, inf), floats(inf, -inf)]) == Level(1.0, 1.0)
    assert Level.of(floats(1), [floats(1, 2)]) == Level(1.0), "an array of another shape is ignored"
    assert Level(1.0, 2.0) | Level(3.0, 1.0) == Level(3.0, 2.0)


def test_rounding_is_noise_over_scale_and_raises_a_tolerance() -> None:
    assert Level(0.1, 1e-6).rounding == pytest.approx(1e-5)
    assert Level(1e-9, 1e-6).rounding == pytest.approx(1e-6), "noise alone, over a scale of 1"
    assert Level(10.0, 1.0).rounding == pytest.approx(0.1)
    assert float32_tolerance(1e-5, 1.0) == CEILING


def test_the_error_of_labels_is_the_share_that_differs() -> None:
    labels = np.array([1, 2, 3, 4])
    assert largest_error(labels, np.array([1, 2, 3, 900])) == 0.25
    assert compare("y", labels == 1, labels == 2).scaled == 0.5
    assert compare("y", labels[:0], labels[:0]).scaled == 0


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ModelError, match=r"output 'y' has shape \[1\], expected \[2\]"):
        compare("y", floats(1, 2), floats(1))


def test_bfloat16_rounds_to_nearest() -> None:
    assert bfloat16(np.array([1 + 2**-8, 1 + 3 * 2**-8, -inf])).tolist() == [1, 1 + 2**-6, -inf]
