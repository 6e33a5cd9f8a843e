"""Sizes to try where a file leaves more open than the batch: two at a time, to tell what follows a size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

Shapes = Mapping[str, tuple[int, ...]]
_BASES = (32, 64, 224, 16)


def plausible_shapes(model: onnx.ModelProto) -> Iterator[tuple[Shapes, Shapes]]:
    """Pairs of shapes by input name, without the batch, likeliest first; none where nothing else is open.

    An axis' symbol stands for one size everywhere. Axes are given sizes of their own first, so that none passes for
    another, and then one size in common, as some networks want it.
    """
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: _sizes(value) for value in model.graph.input if value.name not in initialised}
    symbols = list(dict.fromkeys(size for sizes in inputs.values() for size in sizes if isinstance(size, str)))
    if not symbols:
        return
    for step in (32, 0):
        for base in _BASES:
            # the second pair's distances differ from the first's, so that no quotient stays the same
            first, second = (
                {symbol: start + place * apart for place, symbol in enumerate(symbols)}
                for start, apart in ((base, step), (base + 32, 2 * step))
            )
            yield _filled(inputs, first), _filled(inputs, second)


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Sizes without the batch; a number, or the symbol of an open one (made up where it has none)."""
    dims = list(value.type.tensor_type.shape.dim)[1:]
    return tuple(d.dim_value or d.dim_param or f"{value.name} {axis}" for axis, d in enumerate(dims, 1))


def _filled(inputs: Mapping[str, tuple[int | str, ...]], sizes: Mapping[str, int]) -> Shapes:
    return {
        name: tuple(sizes[size] if isinstance(size, str) else size for size in shape) for name, shape in inputs.items()
    }
