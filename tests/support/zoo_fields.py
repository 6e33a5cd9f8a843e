"""Graphs of the zoo whose displacement field comes from a few values by operators on images, and counterexamples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper, parser

from stn_infer.proto.traversal import nested_nodes

HEIGHT, WIDTH = 12, 14
SMOOTH = np.outer([1, 2, 1], [1, 2, 1]) / 16


def mesh(corners: bool = False) -> np.ndarray:
    """[1, 2, 12, 14]: x and y, float32."""
    axes = [np.linspace(-1, 1, n) * (1.0 if corners else 1 - 1 / n) for n in (HEIGHT, WIDTH)]
    y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x, y])[None].astype(np.float32)


def kernel(*shape: int) -> np.ndarray:
    """Weights of a convolution, float32."""
    return np.random.default_rng(7).uniform(0.1, 0.5, shape).astype(np.float32)


CONSTANTS = {
    "mesh": mesh(),
    "corners": mesh(True),
    "points": np.random.default_rng(3).uniform(-1.1, 1.1, (1, HEIGHT, WIDTH, 2)).astype(np.float32),
    "size": np.array([HEIGHT, WIDTH]),
    "scales": np.array([1, 1, 4, 3.5], np.float32),
    "twice": np.array([2, 2], np.float32),
    "k33": np.tile(SMOOTH, (2, 1, 1, 1)).astype(np.float32),
    "k23": kernel(2, 2, 2, 3),
    "up": kernel(2, 1, 4, 6),
    "up2": kernel(3, 2, 4, 6),
    "bias": np.array([0.1, -0.2], np.float32),
    "one": np.array([1]),
    "two": np.array([2]),
    "space": np.array([2, 3]),
    "zero": np.array([0]),
    "full": np.array([-1, 2, HEIGHT, WIDTH]),
}


@dataclass(frozen=True)
class Field:
    """A model in ONNX's text form: ``body`` computes ``field`` [N, 2, 12, 14] (or ``grid``) from ``p``."""

    body: str
    p: str = "N, 2, 3, 4"
    opset: int = 18
    spec: str = 'align_corners = 0, mode = "bilinear"'
    constants: dict[str, object] = field(default_factory=dict, hash=False)
    more: str = ""
    image: str = "N, 2, 6, 7"

    def __call__(self) -> onnx.ModelProto:
        added = "moved = Add(field, mesh) grid = Transpose<perm=[0,2,3,1]>(moved)"
        made = parser.parse_model(
            f"""
            <ir_version: 10, opset_import: ["" : {self.opset}]>
            warp (float[{self.image}] image, float[{self.p}] p{self.more})
                => (float[{self.image.split(",")[0]}, 2, {HEIGHT}, {WIDTH}] output)
            {{
                {self.body} {"" if "grid =" in self.body else added}
                output = GridSample <{self.spec}> (image, grid)
            }}
            """
        )
        used = {name for node in nested_nodes(made.graph.node) for name in node.input}
        for name, value in {**CONSTANTS, **self.constants}.items():
            if name in used:
                made.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return made


def resize(mode: str, how: str, more: str = "") -> Field:
    """The coarse field, resized to the output's size."""
    attributes = f'mode="{mode}", coordinate_transformation_mode="{how}"{more}, axes=[2,3]'
    return Field(f"field = Resize<{attributes}>(p, , , size)")


SIZED_BY_SHAPE = Field(
    "s = Shape<start=0, end=1>(p) t = Concat<axis=0>(s, two, size)"
    ' field = Resize<mode="linear", coordinate_transformation_mode="align_corners">(p, , , t)'
)
BY_SCALES = Field('field = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(p, , scales)')
# A fine field that is averaged while it shrinks.
SHRUNK = Field(
    'wide = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor", axes=[2,3]>'
    '(p, , , large) field = Resize<mode="linear", antialias=1, axes=[2,3]>(wide, , , size)',
    constants={"large": np.array([27, 36])},
)
UP = 'u = Resize<mode="linear", coordinate_transformation_mode="half_pixel", axes=[2,3]>(p, , , size)'
TRANSPOSED = Field("field = ConvTranspose<group=2, strides=[4,4], output_shape=[12,14]>(p, up)")
TRANSPOSED_FULL = Field("field = ConvTranspose<strides=[4,4], output_shape=[12,14]>(p, up2, bias)", p="N, 3, 3, 4")
SMOOTHED = Field(f'{UP} field = Conv<group=2, auto_pad="SAME_UPPER">(u, k33, bias)')
DILATED = Field(f"{UP} field = Conv<dilations=[2,1], pads=[1,1,1,1]>(u, k23)")
POOLED = Field(f"{UP} field = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(u)")
NO_MEAN = Field(f"{UP} m = GlobalAveragePool(u) field = Sub(u, m)")
NO_MEAN_BY_REDUCTION = Field(f"{UP} m = ReduceMean<keepdims=1>(u, space) field = Sub(u, m)")
ENLARGED = UP.replace("(p,", "(small,").replace("u =", "field =")


def shuffled(mode: str) -> Field:
    """Pixel shuffle of a field of eight channels."""
    body = f'c = Conv(p, mix) small = DepthToSpace<blocksize=2, mode="{mode}">(c) {ENLARGED}'
    return Field(body, constants={"mix": kernel(8, 2, 1, 1)})


UNSHUFFLED = Field(
    f"e = SpaceToDepth<blocksize=2>(p) small = Conv(e, mix) {ENLARGED}",
    p="N, 2, 2, 4",
    constants={"mix": kernel(2, 8, 1, 1)},
)
READ_AT_POINTS = Field(
    "s = Shape<start=0, end=1>(p) r = Concat<axis=0>(s, rest) all = Expand(points, r)"
    ' field = GridSample<mode="bilinear", padding_mode="border">(p, all)',
    constants={"rest": np.array([HEIGHT, WIDTH, 2])},
)
CUBIC_AT_POINTS = Field(
    'field = GridSample<mode="bicubic", align_corners=1>(p, points)', p="1, 2, 3, 4", image="1, 2, 6, 7"
)
NORMALIZED = Field(
    f"{UP} field = BatchNormalization(u, scale, bias, bias, scale)",
    constants={"scale": np.array([0.7, 1.2], np.float32)},
)
FANCY = Field(
    "q = Transpose<perm=[2,3,0,1]>(p) g = GatherND(q, picks) t = Transpose<perm=[2,3,0,1]>(g) field = Identity(t)",
    constants={"picks": np.stack(np.meshgrid(np.arange(12) // 4, np.arange(14) // 4, indexing="ij"), -1)},
)
FANCY_PER_SAMPLE = Field(
    "s = Shape<start=0, end=1>(p) r = Concat<axis=0>(s, rest) i = Expand(picks, r)"
    " flat = Reshape(p, long) g = GatherND<batch_dims=1>(flat, i) field = Reshape(g, full)",
    constants={
        "picks": np.random.default_rng(5).integers(0, 24, (1, 2 * HEIGHT * WIDTH, 1)),
        "rest": np.array([2 * HEIGHT * WIDTH, 1]),
        "long": np.array([0, -1]),
    },
)
BY_ELEMENTS = Field(
    "s = Shape<start=0, end=1>(p) r = Concat<axis=0>(s, rest) i = Expand(picks, r)"
    " flat = Reshape(p, long) g = GatherElements<axis=1>(flat, i) field = Reshape(g, full)",
    constants={
        "picks": np.random.default_rng(6).integers(0, 24, (1, 2 * HEIGHT * WIDTH)),
        "rest": np.array([2 * HEIGHT * WIDTH]),
        "long": np.array([0, -1]),
    },
)
COMPRESSED = Field(
    f"small = Compress<axis=2>(p, keep) {ENLARGED}",
    constants={"keep": np.array([True, False, True])},
)
ADDED_ROWS = Field(
    f"{UP} q = Transpose<perm=[2,0,1,3]>(u) n = Neg(q) f = Gather<axis=0>(n, zero)"
    ' a = ScatterND<reduction="add">(q, row, f) field = Transpose<perm=[1,2,0,3]>(a)',
    constants={"row": np.array([[5]])},
)

# Not linear, or not per sample.
SIZE_FROM_DATA = Field(
    "m = ReduceMax<keepdims=0>(p) h = Cast<to=7>(m) z = Mul(h, zero) s = Add(z, size)"
    ' field0 = Resize<mode="linear", axes=[2,3]>(p, , , s) field = Reshape(field0, full)',
    p="1, 2, 3, 4",
    image="1, 2, 6, 7",
)
SCALE_FROM_DATA = Field(
    "m = ReduceMax<keepdims=0>(p) z = Mul(m, nil) s = Add(z, scales)"
    ' field0 = Resize<mode="nearest">(p, , s) field = Reshape(field0, full)',
    constants={"nil": np.float32(0)},
    p="1, 2, 3, 4",
    image="1, 2, 6, 7",
)
MIXED_BATCH = Field(
    f"{UP} q = Transpose<perm=[1,0,2,3]>(u) c = Conv<pads=[1,1,1,1]>(q, one_channel)"
    " field = Transpose<perm=[1,0,2,3]>(c)",
    p="3, 2, 3, 4",
    image="3, 2, 6, 7",
    constants={"one_channel": kernel(3, 3, 3, 3)},
)
BATCH_AS_LENGTH = Field(
    f"{UP} q = Transpose<perm=[1,2,0,3]>(u) r = Reshape(q, flat) c = AveragePool<kernel_shape=[3], pads=[1,1]>(r)"
    " b = Reshape(c, back) field = Transpose<perm=[2,0,1,3]>(b)",
    constants={"flat": np.array([2, HEIGHT, -1]), "back": np.array([2, HEIGHT, -1, WIDTH])},
)
LARGEST = Field(f"{UP} field = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(u)")
PREDICTED_KERNEL = Field(
    "k = Reshape(p, four) field = ConvTranspose<strides=[4,4], output_shape=[12,14]>(wide, k)",
    constants={"wide": kernel(1, 3, 3, 4), "four": np.array([3, 2, 2, 2])},
    p="1, 2, 3, 4",
    image="1, 2, 6, 7",
)
READ_AT_PREDICTED = Field(
    'r = Resize<mode="linear", axes=[2,3]>(p, , , size) g = Transpose<perm=[0,2,3,1]>(r) field = GridSample(image, g)'
)
PICKED_BY_DATA = Field(
    f"{UP} m = ReduceMax<keepdims=1>(p, space) a = ArgMax<axis=1, keepdims=0>(m) b = Squeeze(a, space1)"
    " i = Unsqueeze(b, one) v = GatherND<batch_dims=1>(u, i) w = Unsqueeze(v, one)"
    " field = Concat<axis=1>(w, w)",
    constants={"space1": np.array([1, 2])},
)
MULTIPLIED_ROWS = Field(
    f"{UP} q = Transpose<perm=[2,0,1,3]>(u) f = Gather<axis=0>(q, zero)"
    ' a = ScatterND<reduction="mul">(q, row, f) field = Transpose<perm=[1,2,0,3]>(a)',
    constants={"row": np.array([[5]])},
)


def clamped(clamp: str, mode: str = "bilinear", padding: str = "zeros", corners: int = 1) -> Field:
    """A clamp of an affine grid: ``g`` -> ``grid`` [N, 12, 14, 2], half of whose points lie outside [-1, 1]."""
    numbers = {name: np.float32(value) for name, value in (("a", -1), ("b", 1), ("nil", 0), ("far", 10), ("near", 0.9))}
    spec = f'align_corners = {corners}, mode = "{mode}", padding_mode = "{padding}"'
    body = "w = MatMul(p, m) t = Transpose<perm=[0,2,1]>(w) g = Reshape(t, pixels)"
    points = np.concatenate([mesh(True).reshape(2, -1) * 1.5, np.ones((1, HEIGHT * WIDTH))]).astype(np.float32)
    others = {
        "m": points,
        "pixels": np.array([-1, HEIGHT, WIDTH, 2]),
        "half": np.float32(0.5),
        "double": np.float32(2),
        "minus": np.float32(-2),
        "sides": np.array([[[[-1, -0.8]]]], np.float32),
        "c2": np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32),
    }
    return Field(f"{body} {clamp}", "N, 2, 3", spec=spec, constants=numbers | others)


CLIP = "grid = Clip(g, a, b)"
TO_UNIT = "h = Mul(g, half) i = Add(h, half) c = Clip(i, nil, b)"
UNIT_CLIP = f"{TO_UNIT} d = Mul(c, double) grid = Sub(d, b)"
FLIPPED_CLIP = f"{TO_UNIT} d = Mul(c, minus) grid = Add(d, b)"
MAX_MIN = "l = Max(g, a) grid = Min(b, l)"
PER_AXIS = "x, y = Split<axis=3, num_outputs=2>(g) u = Clip(x, a, b) v = Clip(y, a, b) grid = Concat<axis=3>(v, u)"
ONE_AXIS = "x, y = Split<axis=3, num_outputs=2>(g) u = Clip(x, a, b) grid = Concat<axis=3>(u, y)"
CLAMPS = (
    ("clip", clamped(CLIP), None),
    ("clip, nearest", clamped(CLIP, "nearest"), None),
    ("clip, reflection", clamped(CLIP, padding="reflection"), None),
    ("clip, border", clamped(CLIP, padding="border", corners=0), None),
    ("clip in [0, 1]", clamped(UNIT_CLIP), None),
    ("clip in [0, 1], flipped", clamped(FLIPPED_CLIP), None),
    ("maximum and minimum", clamped(MAX_MIN), None),
    ("clip per axis", clamped(PER_AXIS), None),
    ("clip twice", clamped("c = Clip(g, a, far) grid = Clip(c, a, b)"), None),
    ("clip, bicubic", clamped(CLIP, "bicubic"), "not for cubic"),
    ("clip, edges", clamped(CLIP, corners=0), "only with align_corners=1"),
    ("clip to [-1, 0.9]", clamped("grid = Clip(g, a, near)"), "(Clip): it clamps coordinates to [-1, 0.9]"),
    ("clip to [-1, 10]", clamped("grid = Clip(g, a, far)"), "(Clip): it clamps coordinates to [-1, 10]"),
    ("clip of one axis", clamped(ONE_AXIS), "(Clip): it clamps only some of the coordinates"),
    ("maximum only", clamped("grid = Max(g, a)"), "(Max): it clamps coordinates to [-1, inf]"),
    ("bounds per axis", clamped("l = Max(g, sides) grid = Min(b, l)"), "[-0.8, 1] and [-1, 1]"),
    ("relu", clamped("grid = Relu(g)"), "(Relu): it clamps coordinates to [0, inf]"),
    ("bounds from data", clamped("k = ReduceMax<keepdims=0>(p) grid = Clip(g, a, k)"), "(Clip)"),
    ("clip, then rotated", clamped("c = Clip(g, a, b) grid = MatMul(c, c2)"), "(Clip)"),
)
