"""Products of a cut's parameters: the parameters of grids such as a rotation about a predicted center.

A grid may be a sum of products ``c_k(sample) * b_k(pixel)`` whose coefficients are themselves products of values that
do not vary with the pixel. It is then a polynomial in these values, and affine in the polynomial's monomials. The proof
gives the terms (which tensors are multiplied with each other); the monomials are their elements' products.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Term = tuple[str, ...]


@dataclass(frozen=True)
class Monomials:
    """Products of a few of a unit's parameters.

    Attributes:
        indices: [M, degree], the parameters in each product, ascending; Q stands for the number 1.
        parameters: Q.
    """

    indices: NDArray[np.int64]
    parameters: int

    def __len__(self) -> int:
        return len(self.indices)

    def values(self, parameters: Float64) -> Float64:
        """Returns the products [n, M] of parameters [n, Q]."""
        padded = np.concatenate([parameters, np.ones((len(parameters), 1))], axis=1)
        products: Float64 = padded[:, self.indices].prod(axis=2)
        return products

    def points(self) -> Float64:
        """Returns parameters [M, Q] at which the values determine a polynomial in these monomials and a constant.

        Each point is the sum of the unit vectors of one monomial. With each monomial, its divisors are among the
        monomials, so the interpolation is unique (Newton's on a lower set).
        """
        units = np.concatenate([np.eye(self.parameters), np.zeros((1, self.parameters))])
        return np.asarray(units[self.indices].sum(axis=1))

    def some(self, chosen: NDArray[np.bool_]) -> Monomials:
        """Returns the chosen monomials [M]."""
        return Monomials(self.indices[chosen], self.parameters)


def monomials_of(
    terms: Iterable[Term], places: Mapping[str, range], supports: NDArray[np.bool_], limit: int
) -> Monomials | None:
    """Returns the monomials of a polynomial, and their divisors. None if there are more than ``limit``.

    Args:
        terms: the tensors in each product, a tensor may occur more than once.
        places: the parameters of each tensor.
        supports: [Q, S], the parts of the result that depend on each parameter; no part depends on a product of
            parameters that have no part in common.
        limit: the largest number.
    """
    found: set[tuple[int, ...]] = set()
    for term in terms:
        partial: dict[tuple[int, ...], NDArray[np.bool_]] = {(): np.ones(supports.shape[1], bool)}
        for tensor in term:
            longer = {}
            for product, support in partial.items():
                for index in places[tensor]:
                    common = support & supports[index]
                    if common.any():
                        longer[tuple(sorted((*product, index)))] = common
                if len(longer) > 4 * limit:
                    return None
            partial = longer
        for product in partial:
            for length in range(1, len(product) + 1):
                found.update(combinations(product, length))
        if len(found) > limit:
            return None
    found = found or {(0,)}  # the result depends on no parameter, although it is computed from them
    degree = max(map(len, found))
    count = len(supports)
    padded = [(*product, *[count] * (degree - len(product))) for product in sorted(found, key=lambda p: (len(p), p))]
    return Monomials(np.array(padded, np.int64).reshape(-1, degree), count)
