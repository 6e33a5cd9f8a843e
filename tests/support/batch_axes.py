"""Files whose inputs do not share one batch axis, with their results in numpy, and samples for them."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tests.support.onnx_files import F32, constant, make

Arrays = dict[str, NDArray[np.float32]]

#: What :func:`file_of` makes. Samples have one theta each, or all the same.
KINDS = ("shared", "own", "later")


def file_of(kind: str) -> onnx.ModelProto:
    """A file with one sampler whose output is [samples, 1, 4, 4].

    ``shared``: ``gain`` [] and ``theta`` [2, 3] belong to all samples ``image`` [n, 1, 4, 4]. ``own``: samples are the
    rows of ``theta`` [theta_batch, 2, 3], all of the mean of ``image`` [batch, 1, 4, 4]. ``later``: ``theta`` is
    [2, n, 3].
    """
    sizes = constant([1, 4, 4], "sizes", np.int64)
    grid = [
        helper.make_node("Concat", ["n", "sizes"], ["size"], axis=0),
        helper.make_node("AffineGrid", ["thetas", "size"], ["grid"], align_corners=0),
        helper.make_node("GridSample", ["images", "grid"], ["output"], mode="linear", padding_mode="zeros"),
    ]
    rows = "theta_batch" if kind == "own" else "n"
    output = {"output": (F32, [rows, 1, 4, 4])}
    if kind == "shared":
        inputs = {"gain": (F32, []), "theta": (F32, [2, 3]), "image": (F32, ["n", 1, 4, 4])}
        start = [
            helper.make_node("Shape", ["image"], ["n"], start=0, end=1),
            helper.make_node("Concat", ["n", "matrix"], ["expanded"], axis=0),
            helper.make_node("Expand", ["theta", "expanded"], ["thetas"]),
            helper.make_node("Mul", ["image", "gain"], ["images"]),
        ]
        return make(start + grid, inputs, output, [sizes, constant([2, 3], "matrix", np.int64)], opset=20)
    if kind == "own":
        inputs = {"image": (F32, ["batch", 1, 4, 4]), "theta": (F32, [rows, 2, 3])}
        start = [
            helper.make_node("Shape", ["theta"], ["n"], start=0, end=1),
            helper.make_node("Identity", ["theta"], ["thetas"]),
            helper.make_node("ReduceMean", ["image", "zero"], ["mean"], keepdims=1),
            helper.make_node("Concat", ["n", "sizes"], ["expanded"], axis=0),
            helper.make_node("Expand", ["mean", "expanded"], ["images"]),
        ]
        return make(start + grid, inputs, output, [sizes, constant([0], "zero", np.int64)], opset=20)
    inputs = {"theta": (F32, [2, "n", 3]), "image": (F32, ["n", 1, 4, 4])}
    start = [
        helper.make_node("Shape", ["image"], ["n"], start=0, end=1),
        helper.make_node("Transpose", ["theta"], ["thetas"], perm=[1, 0, 2]),
        helper.make_node("Identity", ["image"], ["images"]),
    ]
    return make(start + grid, inputs, output, [sizes], opset=20)


def arrays_of(kind: str, samples: int, seed: int = 0) -> Arrays:
    """Inputs with so many samples; of ``own``, two images."""
    generator = np.random.default_rng(seed)
    theta = np.array([[0, 1, 0], [-1, 0, 0]], np.float32)  # a quarter turn: exact at the pixel centers
    if kind == "shared":
        image = generator.random((samples, 1, 4, 4)).astype(np.float32)
        return {"gain": np.array(generator.integers(2, 9), np.float32), "theta": theta, "image": image}
    if kind == "own":
        signs = generator.choice([-1, 1], samples).astype(np.float32)
        image = generator.random((2, 1, 4, 4)).astype(np.float32)
        return {"image": image, "theta": signs[:, None, None] * theta}
    image = generator.random((samples, 1, 4, 4)).astype(np.float32)
    return {"theta": np.stack([theta] * samples, 1), "image": image}


def output_of(kind: str, arrays: Arrays) -> NDArray[np.float32]:
    """What the file gives [samples, 1, 4, 4], for the thetas of :func:`arrays_of`."""
    turned = np.rot90(arrays["image"], -1, (2, 3)) if kind != "own" else None
    if turned is not None:
        return np.asarray(turned * arrays.get("gain", np.float32(1)), np.float32)
    mean = arrays["image"].mean(0)
    return np.stack([np.rot90(mean, -1 if theta[0, 1] > 0 else 1, (1, 2)) for theta in arrays["theta"]])
