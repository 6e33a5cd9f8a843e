"""Convolutions and average pooling with numpy, in the precision of the inputs; any number of spatial axes.

Source: the ONNX operators Conv, ConvTranspose, AveragePool and GlobalAveragePool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stn_infer.arrays import Array, along
from stn_infer.fusion.operators.inputs import Attributes, Operator, first, optional

# Limit on the elements of the copied windows that are held at once.
_MAX_COPIED = 2**22


def _spatial(attributes: Attributes, name: str, count: int) -> list[int]:
    return [int(value) for value in attributes.get(name) or [1] * count]


def _pads(
    attributes: Attributes, lengths: Sequence[int], extents: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding at both ends of each spatial axis; ``extents`` are the windows' lengths with their gaps."""
    mode, count = str(attributes.get("auto_pad", "NOTSET")), len(lengths)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for length, extent, stride in zip(lengths, extents, strides, strict=True):
            total = max((-(-length // stride) - 1) * stride + extent - length, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if mode == "SAME_UPPER" else (more, less))
        return found
    pads = [0] * (2 * count) if mode == "VALID" else list(attributes.get("pads") or [0] * (2 * count))
    return list(zip(pads[:count], pads[count:], strict=True))


def _conv(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, weight, bias = first(inputs), inputs[1], optional(inputs, 2)
    assert weight is not None
    count, groups = data.ndim - 2, int(attributes.get("group", 1))
    kernel, strides = weight.shape[2:], _spatial(attributes, "strides", count)
    dilations = _spatial(attributes, "dilations", count)
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    padded = np.pad(data, [(0, 0), (0, 0), *_pads(attributes, data.shape[2:], extents, strides)])
    spatial = tuple(range(2, data.ndim))
    windows = sliding_window_view(padded, extents, axis=spatial)
    steps = [slice(None, None, stride) for stride in strides]
    windows = windows[(slice(None), slice(None), *steps, *(slice(None, None, dilation) for dilation in dilations))]
    after = windows.shape[2 : 2 + count]
    result = np.empty((len(data), weight.shape[0], *after), np.result_type(data, weight))
    taken, made = weight.shape[1], weight.shape[0] // groups
    several = max(1, _MAX_COPIED // max(1, taken * prod(kernel) * prod(after)))
    # [n, c, *after, *kernel] -> [n, *after, c, *kernel]
    order = (0, *range(2, 2 + count), 1, *range(2 + count, 2 + 2 * count))
    for group, start in product(range(groups), range(0, len(data), several)):
        part = windows[start : start + several, group * taken : (group + 1) * taken].transpose(order)
        matrix = weight[group * made : (group + 1) * made].reshape(made, -1)
        values = part.reshape(-1, matrix.shape[1]) @ matrix.T
        values = np.moveaxis(values.reshape(*part.shape[: 1 + count], made), -1, 1)
        result[start : start + several, group * made : (group + 1) * made] = values
    return [result if bias is None else result + bias.reshape(-1, *[1] * count)]


def _transposed(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, weight, bias = first(inputs), inputs[1], optional(inputs, 2)
    assert weight is not None
    count, groups = data.ndim - 2, int(attributes.get("group", 1))
    lengths, kernel = data.shape[2:], weight.shape[2:]
    strides, dilations = _spatial(attributes, "strides", count), _spatial(attributes, "dilations", count)
    more = list(attributes.get("output_padding") or [0] * count)
    full = [
        (length - 1) * stride + (size - 1) * dilation + 1
        for length, stride, size, dilation in zip(lengths, strides, kernel, dilations, strict=True)
    ]
    made = weight.shape[1]
    whole = np.zeros((len(data), groups, made, *full), np.result_type(data, weight))
    grouped = data.reshape(len(data), groups, -1, *lengths)
    weights = weight.reshape(groups, -1, made, *kernel)
    by_input = prod(lengths) < prod(kernel)
    for place in product(*(range(size) for size in (lengths if by_input else kernel))):
        places = zip(place, lengths, kernel, strides, dilations, strict=True)
        at = []
        for index, length, size, stride, dilation in places:
            if by_input:
                at.append(slice(index * stride, index * stride + (size - 1) * dilation + 1, dilation))
            else:
                at.append(slice(index * dilation, index * dilation + (length - 1) * stride + 1, stride))
        here: Any = (slice(None), slice(None), slice(None), *place)
        if by_input:  # one element of the input against the whole kernel
            term = np.einsum("ngi,gio...->ngo...", grouped[here], weights)
        else:
            term = np.einsum("ngi...,gio->ngo...", grouped, weights[here])
        whole[(slice(None), slice(None), slice(None), *at)] += term
    begin, after = _transposed_frame(attributes, lengths, full, strides, more)
    whole = whole.reshape(len(data), groups * made, *full)
    wanted = [start + length for start, length in zip(begin, after, strict=True)]
    whole = np.pad(whole, [(0, 0), (0, 0), *((0, max(0, w - f)) for w, f in zip(wanted, full, strict=True))])
    result = whole[(slice(None), slice(None), *map(slice, begin, wanted))]
    return [result if bias is None else result + bias.reshape(-1, *[1] * count)]


def _transposed_frame(
    attributes: Attributes, lengths: Sequence[int], full: Sequence[int], strides: Sequence[int], more: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Where the output begins in the full result, and its lengths."""
    mode, wanted, count = str(attributes.get("auto_pad", "NOTSET")), attributes.get("output_shape"), len(lengths)
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = _pads({**attributes, "auto_pad": mode}, lengths, full, strides)
        after = [size + extra - sum(pad) for size, extra, pad in zip(full, more, pads, strict=True)]
        return [begin for begin, _ in pads], after
    if wanted is None:
        # No padding is negative: a kernel shorter than the stride gives fewer elements.
        products = (length * stride for length, stride in zip(lengths, strides, strict=True))
        wanted = [min(size + extra, length) for size, extra, length in zip(full, more, products, strict=True)]
    after = [int(length) for length in wanted][-count:]
    begin = []
    for size, extra, length in zip(full, more, after, strict=True):
        total = max(size + extra - length, 0)
        begin.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return begin, after


def _average(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    """AveragePool: one matrix per axis, because the number of averaged elements is a product over the axes."""
    data = first(inputs)
    count, kernel = data.ndim - 2, [int(size) for size in attributes["kernel_shape"]]
    strides, dilations = _spatial(attributes, "strides", count), _spatial(attributes, "dilations", count)
    short = any(stride > size for stride, size in zip(strides, kernel, strict=True))
    if (max(dilations) > 1 or short) and str(attributes.get("auto_pad", "NOTSET")).startswith("SAME"):
        raise ValueError("runtimes disagree on automatic padding with gaps in or between the windows")
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(attributes, data.shape[2:], extents, strides)
    for axis in range(count):
        length, (before, behind) = data.shape[2 + axis], pads[axis]
        room, stride = length + before + behind - extents[axis], strides[axis]
        after = room // stride + 1
        if attributes.get("ceil_mode", 0):
            after = -(-room // stride) + 1
            # The last window must begin within the axis or its leading padding.
            after -= (after - 1) * stride >= length + before
        if room < 0:
            raise ValueError("a window is larger than the image")
        starts = np.arange(after)[:, None] * stride - before
        taps = starts + np.arange(kernel[axis]) * dilations[axis]
        inside = (taps >= 0) & (taps < length)
        counted = (taps < length + behind) if attributes.get("count_include_pad", 0) else inside
        weights = inside / np.maximum(counted.sum(axis=1, keepdims=True), 1)
        matrix = np.zeros((after, length))
        np.add.at(matrix, (np.arange(after)[:, None], np.clip(taps, 0, length - 1)), weights)
        data = along(data, 2 + axis, matrix)
    return [data]


def _global_average(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data = first(inputs)
    return [np.asarray(data.mean(axis=tuple(range(2, data.ndim)), keepdims=True))]


WINDOWS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "AveragePool": _average,
    "GlobalAveragePool": _global_average,
}
"""Operator -> function."""
