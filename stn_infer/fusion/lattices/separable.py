"""Bases that cost a file no bytes: each row is a product of one function per axis, which a few nodes multiply out.

So are x, y, z, 1 and their products: the bases of affine maps, homographies and rational polynomials. A basis of
1024x1024 takes 12 MiB for an affine map, its factors 24 KiB. Runtimes fold the nodes into a constant when they load the
file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from stn_infer.proto.edit import NewNodes

Float32 = NDArray[np.float32]

_PRODUCT = ("Mul", "Reshape")
# Of a row's largest value: what float32 rounds, twice.
_ROUNDING = 2.5e-7


def factors_of(basis: NDArray[np.float64], output_size: Sequence[int]) -> list[Float32] | None:
    """Returns one factor per axis whose broadcast product is the basis in float32; None if there are none.

    Args:
        basis: [K, P], P = prod(output_size).
        output_size: (H, W) or (D, H, W).

    Returns:
        [K, H, 1] and [K, 1, W]; [K, D, 1, 1], [K, 1, H, 1] and [K, 1, 1, W] for volumes.
    """
    rank = len(output_size)
    factors = [
        np.empty((len(basis), *(n if i == axis else 1 for i in range(rank)))) for axis, n in enumerate(output_size)
    ]
    for number, row in enumerate(basis):
        values = row.reshape(output_size)
        peak = np.unravel_index(int(np.abs(values).argmax()), values.shape)
        height = values[peak]
        fibers = [values[tuple(slice(None) if i == axis else peak[i] for i in range(rank))] for axis in range(rank)]
        # The axis that changes most keeps the row's own values; the others are relative to the peak.
        own = int(np.argmax([np.ptp(fiber) for fiber in fibers]))
        for axis, fiber in enumerate(fibers):
            factors[axis][number] = (fiber if axis == own or not height else fiber / height).reshape(
                factors[axis].shape[1:]
            )
        product = np.asarray(1.0)
        for factor in factors:
            product = product * factor[number]
        if not np.abs(product - values).max() <= _ROUNDING * abs(height):
            return None
    return [factor.astype(np.float32) for factor in factors]


def add_product(new: NewNodes, factors: Sequence[Float32]) -> str:
    """Adds the nodes that multiply out :func:`factors_of`; returns the name of the basis [K, P]."""
    name, *others = (new.constant(f"basis_{axis}", factor) for axis, factor in enumerate(factors))
    for other in others:
        name = new.node("Mul", [name, other], "product")
    return new.node("Reshape", [name, new.constant("basis_shape", np.array([len(factors[0]), -1]))], "basis")


def read_constant(
    name: str, constants: Mapping[str, onnx.TensorProto], makers: Mapping[str, onnx.NodeProto]
) -> NDArray[np.generic]:
    """Returns an initializer, or what :func:`add_product` multiplies out; raises KeyError if it is neither."""
    if name in constants:
        return numpy_helper.to_array(constants[name])
    maker = makers[name]
    if maker.op_type not in _PRODUCT:
        raise KeyError(name)
    first, second = (read_constant(source, constants, makers) for source in maker.input)
    if maker.op_type == "Mul":
        return np.asarray(np.multiply(first, second))
    return first.reshape([int(length) for length in second])
