"""Hand-built graphs of the zoo, mostly in ONNX's text form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from stn_infer.proto.traversal import nested_nodes

HEIGHT, WIDTH = 4, 5
POINTS = "points = MatMul(p, mesh) t = Transpose<perm=[0,2,1]>(points) grid = Reshape(t, shape)"


def mesh(corners: bool = False) -> np.ndarray:
    """[3, 20]: x, y, 1, float32."""
    axes = [np.linspace(-1, 1, n) * (1.0 if corners else 1 - 1 / n) for n in (HEIGHT, WIDTH)]
    y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(np.float32)


@dataclass(frozen=True)
class Graph:
    """A model in ONNX's text form: ``body`` computes ``grid`` from ``p``; a sampler is appended unless it has one."""

    body: str
    p: str = "N, 2, 3"
    opset: int = 18
    image: str = "N, 2, 6, 7"
    types: tuple[str, str] = ("float", "float")
    constants: dict[str, object] = field(default_factory=dict, hash=False)
    more: str = ""
    imports: str = ""
    functions: str = ""
    output: str = ""

    def __call__(self) -> onnx.ModelProto:
        mode = "linear" if self.opset >= 20 else "bilinear"
        sampler = f'output = GridSample <align_corners = 0, mode = "{mode}"> (image, grid)'
        if "output =" in self.body:
            sampler = ""
        output = self.output or f"{self.types[0]}[{self.image.split(',')[0]}, 2, {HEIGHT}, {WIDTH}] output"
        made = parser.parse_model(
            f"""
            <ir_version: 10, opset_import: ["" : {self.opset}{self.imports}]>
            warp ({self.types[0]}[{self.image}] image, {self.types[1]}[{self.p}] p{self.more}) => ({output})
            {{ {self.body} {sampler} }}
            {self.functions}
            """
        )
        values: dict[str, object] = {"mesh": mesh(), "shape": np.array([-1, HEIGHT, WIDTH, 2]), **self.constants}
        used = {name for node in nested_nodes(made.graph.node) for name in node.input}
        for name, value in values.items():
            if name in used:
                made.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return made


SAMPLE = 'GridSample <align_corners = 0, mode = "bilinear">'
OUT = f"float[N, 2, {HEIGHT}, {WIDTH}]"
ONE = np.array([1])


def affine_grid(rank: int) -> Callable[[], onnx.ModelProto]:
    """ONNX's own AffineGrid."""

    def build() -> onnx.ModelProto:
        size = ["N", 2, 6, 7] if rank == 2 else ["N", 2, 3, 4, 5]
        float_, batch = onnx.TensorProto.FLOAT, ["N"]
        graph = helper.make_graph(
            [
                helper.make_node("Shape", ["image"], ["size"]),
                helper.make_node("AffineGrid", ["p", "size"], ["grid"], align_corners=rank - 2),
                helper.make_node("GridSample", ["image", "grid"], ["output"], mode="linear", padding_mode="border"),
            ],
            "affine",
            [
                helper.make_tensor_value_info("image", float_, size),
                helper.make_tensor_value_info("p", float_, [*batch, rank, rank + 1]),
            ],
            [helper.make_tensor_value_info("output", float_, size)],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    return build


def spline(inverse_inside: bool) -> Callable[[], onnx.ModelProto]:
    """A thin plate spline; its system is inverted in the graph by onnxruntime's contrib operator, or beforehand."""
    control = np.array([[-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]], np.float32)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = ((a[:, None] - b[None]) ** 2).sum(-1)
        return (squared * np.log(np.maximum(squared, 1e-9))).astype(np.float32)

    ones = np.ones((6, 1), np.float32)
    system = np.zeros((9, 9), np.float32)
    system[:6, :6], system[:6, 6:] = kernel(control, control), np.hstack([ones, control])
    system[6:, :6] = system[:6, 6:].T
    target = mesh()[:2].T
    terms = np.hstack([kernel(target, control), np.ones((len(target), 1), np.float32), target])
    body = (
        "inner = com.microsoft.Inverse(system) padded = Concat<axis=1>(p, zeros) solved = MatMul(inner, padded)"
        if inverse_inside
        else "padded = Pad(p, pads) solved = MatMul(i, padded)"
    )
    return Graph(
        f"n = Shape<start=0, end=1>(p) wide = Concat<axis=0>(n, rest) zeros = Expand(nought, wide) {body}"
        " g = MatMul(terms, solved) grid = Reshape(g, shape)",
        p="N, 6, 2",
        imports=', "com.microsoft" : 1',
        constants={
            "system": system,
            "i": np.linalg.inv(system.astype(np.float64)).astype(np.float32),
            "terms": terms,
            "rest": np.array([3, 2]),
            "nought": np.zeros((1, 1, 1), np.float32),
            "pads": np.array([0, 0, 0, 0, 3, 0]),
        },
    )


IF = f"""
    big = ReduceMean<keepdims=0>(image)
    yes = Greater(big, nought)
    output = If (yes) <
        then_branch = warped () => ({OUT} a) {{ {POINTS} a = {SAMPLE} (image, grid) }},
        else_branch = halved () => ({OUT} b) {{ q = Mul(p, half) points2 = MatMul(q, mesh)
            t2 = Transpose<perm=[0,2,1]>(points2) grid2 = Reshape(t2, shape) b = {SAMPLE} (image, grid2) }}
    >
"""
GRID_OUTSIDE = f"""
    {POINTS}
    big = ReduceMean<keepdims=0>(image)
    yes = Greater(big, nought)
    output = If (yes) <
        then_branch = warped () => ({OUT} a) {{ a = {SAMPLE} (image, grid) }},
        else_branch = other () => ({OUT} b) {{ n = Neg(grid) b = {SAMPLE} (image, n) }}
    >
"""
BRANCHED_GRID = f"""
    {POINTS.replace("grid =", "g =")}
    big = ReduceMean<keepdims=0>(image)
    yes = Greater(big, nought)
    grid = If (yes) <
        then_branch = same () => (float[N, {HEIGHT}, {WIDTH}, 2] a) {{ a = Identity(g) }},
        else_branch = flipped () => (float[N, {HEIGHT}, {WIDTH}, 2] b) {{ b = Neg(g) }}
    >
"""
LOOP = f"""
    first = Identity(p)
    last, output = Loop (count, true, first) <
        body = step (int64 i, bool go, float[N, 2, 3] q) => (bool go_on, float[N, 2, 3] next, {OUT} warped) {{
            go_on = Identity(go)
            points = MatMul(q, mesh) t = Transpose<perm=[0,2,1]>(points) grid = Reshape(t, shape)
            warped = {SAMPLE} (image, grid)
            next = Mul(q, half)
        }}
    >
"""
SCAN = f"""
    output = Scan <num_scan_inputs = 2,
        body = one (float[2, 6, 7] x, float[2, 3] q) => (float[2, {HEIGHT}, {WIDTH}] y) {{
        points = MatMul(q, mesh) t = Transpose<perm=[1,0]>(points) grid = Reshape(t, alone)
        x1 = Unsqueeze(x, nought_axis) y1 = {SAMPLE} (x1, grid) y = Squeeze(y1, nought_axis)
    }}> (image, p)
"""
BRANCH = {"nought": np.float32(0), "half": np.float32(0.5)}

FUNCTION = f"""
    <domain: "custom", opset_import: ["" : 18]>
    warp_by (x, theta, basis) => (y) {{
        points = MatMul(theta, basis)
        t = Transpose<perm=[0,2,1]>(points)
        s = Constant<value_ints=[-1, {HEIGHT}, {WIDTH}, 2]>()
        g = Reshape(t, s)
        y = {SAMPLE} (x, g)
    }}
"""
GRID_FUNCTION = f"""
    <domain: "custom", opset_import: ["" : 18]>
    grid_of (theta, basis) => (g) {{
        points = MatMul(theta, basis)
        t = Transpose<perm=[0,2,1]>(points)
        s = Constant<value_ints=[-1, {HEIGHT}, {WIDTH}, 2]>()
        g = Reshape(t, s)
    }}
"""
CLAMPING_FUNCTION = FUNCTION.replace("g = Reshape(t, s)", "h = Reshape(t, s) g = Clip(h)")

HALF_MESH = mesh(corners=True).astype(np.float16)
THETA_OF = POINTS.replace("(p,", "(q,")
REPEATED = f"n = Shape<start=0, end=1>(image) full = Concat<axis=0>(n, rest) q = Expand(p, full) {THETA_OF}"
REST = np.array([2, 3])
OPEN = f"float[?, 2, {HEIGHT}, {WIDTH}] output"
CUSTOM = ', "custom" : 1'

UNNAMED_BATCH = Graph(POINTS, image="?, 2, 6, 7", p="?, 2, 3", output=OPEN)
EINSUM = Graph('t = Einsum<equation="ndk,kp->npd">(p, mesh) grid = Reshape(t, shape)')
ONE_THETA = Graph(REPEATED, p="1, 2, 3", constants={"rest": REST})
THETA_WITHOUT_BATCH = Graph(
    "g = MatMul(p, mesh) t0 = Transpose<perm=[1,0]>(g) t = Reshape(t0, shape)"
    " n = Shape<start=0, end=1>(image) full = Concat<axis=0>(n, rest) grid = Expand(t, full)",
    p="2, 3",
    constants={"rest": np.array([HEIGHT, WIDTH, 2])},
)
THETA_OF_FRAMES = Graph(
    "u = Unsqueeze(p, one) n = Shape<start=0, end=1>(p) full = Concat<axis=0>(n, rest) e = Expand(u, full)"
    f" q = Reshape(e, flat) {THETA_OF} frames = Reshape(image, pictures) output = {SAMPLE}(frames, grid)",
    image="N, 3, 2, 6, 7",
    constants={
        "one": ONE,
        "rest": np.array([3, 2, 3]),
        "flat": np.array([-1, 2, 3]),
        "pictures": np.array([-1, 2, 6, 7]),
    },
    output=OPEN,
)
THETA_WITH_ITS_OWN_BATCH = Graph(REPEATED, p="M, 2, 3", constants={"rest": REST})
SHARED_SCALE = Graph(
    "m = Transpose<perm=[1,0]>(coordinates) s = Mul(m, scale) u = Unsqueeze(p, one) g = Add(s, u)"
    " grid = Reshape(g, shape)",
    p="N, 2",
    more=", float[1] scale",
    constants={"coordinates": mesh()[:2], "one": ONE},
)
OPEN_SIZE = Graph(POINTS, image="N, 2, H, W", output=OPEN)
HALF = Graph(POINTS, types=("float16", "float16"), constants={"mesh": HALF_MESH})
HALF_THETA = Graph(
    f"q = Cast<to=10>(p) {THETA_OF.replace('grid =', 'h =')} grid = Cast<to=1>(h)", constants={"mesh": HALF_MESH}
)
BRANCHES = Graph(IF, constants=BRANCH)
GRID_BEFORE_BRANCHES = Graph(GRID_OUTSIDE, constants=BRANCH)
IN_LOOP = Graph(
    LOOP,
    constants={**BRANCH, "count": np.array(3), "true": np.array(True)},
    output=f"float[K, N, 2, {HEIGHT}, {WIDTH}] output",
)
IN_SCAN = Graph(SCAN, constants={"alone": np.array([1, HEIGHT, WIDTH, 2]), "nought_axis": np.array([0])})
IN_FUNCTION = Graph("output = custom.warp_by(image, p, mesh)", imports=CUSTOM, functions=FUNCTION)
GRID_IN_FUNCTION = Graph("grid = custom.grid_of(p, mesh)", imports=CUSTOM, functions=GRID_FUNCTION)
FLOW_INPUT = Graph("grid = Identity(p)", p=f"N, {HEIGHT}, {WIDTH}, 2")
GRID_BY_BRANCH = Graph(BRANCHED_GRID, constants=BRANCH)
CLAMP_IN_FUNCTION = Graph("output = custom.warp_by(image, p, mesh)", imports=CUSTOM, functions=CLAMPING_FUNCTION)
GRID_OF_IMAGES_SIZE = Graph(
    "n = Shape(image) grid = AffineGrid(p, n)", opset=20, image="N, 2, H, W", output="float[N, 2, H, W] output"
)
ROUNDED = Graph(POINTS.replace("grid =", "g =") + " grid = Round(g)")
ABSOLUTE_IN_BRANCH = Graph(
    IF.replace("grid = Reshape", "g = Reshape").replace("a = Grid", "grid = Abs(g) a = Grid"), constants=BRANCH
)
