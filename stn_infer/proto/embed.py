"""Preprocessing as a part of the graph: from uint8 [N, H, W, C] to the input of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from stn_infer.errors import UsageError
from stn_infer.preprocess.geometry import placements
from stn_infer.printing import counted
from stn_infer.proto.edit import NewNodes, copy_of, replace_all
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import given_inputs

if TYPE_CHECKING:
    from stn_infer.preprocess.geometry import Placement
    from stn_infer.preprocess.rule import Preprocess

#: The name of the last node of the preprocessing; its output is what was the model's input.
LAST_NODE = "stn_preprocess"
_NEGATIVE = ("bicubic", "lanczos")  # filters that overshoot


@dataclass(frozen=True)
class _Steps:
    new: NewNodes
    rule: Preprocess

    def resized(self, values: str, places: tuple[Placement, Placement]) -> str:
        """Pillow's order: first along the rows, then along the columns, each rounded to whole levels."""
        from stn_infer.preprocess.resampling import resampling_matrix

        rows, columns = (resampling_matrix(place, self.rule.interpolation) for place in places)
        if not _is_identity(columns):
            values = self._rounded(self.new.node("MatMul", [values, self.new.constant("columns", columns.T)], "x"))
        if not _is_identity(rows):
            values = self._rounded(self.new.node("MatMul", [self.new.constant("rows", rows), values], "y"))
        outside = ~np.outer(rows.any(axis=1), columns.any(axis=1))
        if not outside.any():
            return values
        filled = outside * self._pad().reshape(-1, 1, 1)
        return self.new.node("Add", [values, self.new.constant("pad", filled[None].astype(np.float32))], "padded")

    def _rounded(self, values: str) -> str:
        whole = self.new.node(
            "Floor", [self.new.node("Add", [values, self.new.scalar("half", 0.5)], "raised")], "whole"
        )
        if self.rule.interpolation not in _NEGATIVE:
            return whole
        return self.new.node("Clip", [whole, self.new.scalar("black", 0), self.new.scalar("white", 255)], "clipped")

    def _pad(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """The color of padding in RGB or gray."""
        from PIL import Image

        if self.rule.color != "gray":
            return np.array(self.rule.pad, np.float64)
        return np.array(Image.new("RGB", (1, 1), self.rule.pad).convert("L"), np.float64).ravel()

    def normalized(self, values: str) -> str:
        """The operations of :func:`~stn_infer.preprocess.pixels.normalize`, in its order."""
        rule = self.rule
        if rule.color == "bgr":
            order = self.new.constant("order", np.array([2, 1, 0], np.int64))
            values = self.new.node("Gather", [values, order], "bgr", axis=1)
        if rule.scale != 1:
            values = self.new.node("Mul", [values, self.new.scalar("scale", rule.scale)], "scaled")
        if rule.gamma != 1:
            values = self.new.node("Pow", [values, self.new.scalar("gamma", rule.gamma)], "bent")
        for operator, channels, neutral in (("Sub", rule.mean, 0), ("Div", rule.std, 1)):
            if set(channels) != {neutral}:
                constant = self.new.constant(operator.lower(), np.array(channels, np.float32).reshape(1, -1, 1, 1))
                values = self.new.node(operator, [values, constant], "normalized")
        return values


def embed(model: onnx.ModelProto, rule: Preprocess, source: tuple[int, int] | None) -> onnx.ModelProto:
    """A copy whose input is uint8 [N, H, W, C], RGB or gray, and that applies ``rule`` itself.

    At a known size, resizing is two products with constant matrices, within one level of Pillow.

    Args:
        model: with one input [N, C, H, W].
        rule: its preprocessing.
        source: (height, width) of all pictures; None: the caller resizes them as the rule says.

    Raises:
        UsageError: the model or its size does not fit the rule.
    """
    copy = copy_of(model)
    given = given_inputs(copy.graph)
    if len(given) != 1 or len(given[0].type.tensor_type.shape.dim) != 4:
        raise UsageError("preprocessing can be embedded in a model with one input, images [N, C, H, W]")
    old = given[0]
    kind = old.type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        raise UsageError("preprocessing can be embedded in a model that takes float32 or float16 images")
    batch, channels, *axes = (axis.dim_param or axis.dim_value or None for axis in old.type.tensor_type.shape.dim)
    if channels != rule.channels:
        takes = counted(channels, "channel") if isinstance(channels, int) else "any number of channels"
        raise UsageError(f"the model takes {takes}, the preprocessing gives {rule.channels}")
    names = Names(copy.graph)
    steps = _Steps(NewNodes(names, "stn_pre"), rule)
    image = names.fresh("image")
    values = steps.new.node("Cast", [image], "cast", to=TensorProto.FLOAT)
    values = steps.new.node("Transpose", [values], "planes", perm=[0, 3, 1, 2])
    size: tuple[int | str | None, ...] = tuple(axes)
    if source is not None:
        places = placements(rule, source)
        made = tuple(place.length for place in places)
        if any(isinstance(axis, int) and axis != length for axis, length in zip(axes, made, strict=True)):
            wanted = "x".join(map(str, axes))
            raise UsageError(
                f"pictures of {source[0]}x{source[1]} become {made[0]}x{made[1]} by {rule.describe()}, but the model "
                f"takes {wanted}; give --preprocess size={wanted}"
            )
        values, size = steps.resized(values, places), source
    values = steps.normalized(values)
    last = helper.make_node("Cast", [values], [old.name], name=LAST_NODE, to=kind)
    new = helper.make_tensor_value_info(image, TensorProto.UINT8, [batch, *size, channels])
    replace_all(copy.graph.input, [new if value.name == old.name else value for value in copy.graph.input])
    replace_all(copy.graph.node, [*steps.new.nodes, last, *copy.graph.node])
    copy.graph.initializer.extend(steps.new.constants)
    return copy


def _is_identity(weights: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bool:
    return weights.shape[0] == weights.shape[1] and bool((weights == np.eye(len(weights))).all())
