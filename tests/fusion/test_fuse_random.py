"""Random programs that compute a grid: all linear ones are rewritten, no others are, and outputs do not change."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stn_infer.fusion.fuse import fuse
from tests.support.onnx_files import behind, check_only_samplers_changed

HEIGHT, WIDTH = 7, 8
POINTS = HEIGHT * WIDTH
RUNS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
PARAMETERS = 5
MOST = 24  # elements per sample of an intermediate tensor


@dataclass
class Program:
    """Nodes under construction; each tensor's shape is that of one sample, without the batch axis 0."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"p": (PARAMETERS,)})
    count: int = 0

    def constant(self, values: object) -> str:
        self.count += 1
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.constants.append(numpy_helper.from_array(array, f"k{self.count}"))
        return f"k{self.count}"

    def node(self, op: str, inputs: list[str], *shapes: tuple[int, ...], **attributes: object) -> str:
        """Adds a node; returns the name of its first output."""
        self.count += 1
        outputs = [f"t{self.count}_{index}" for index in range(len(shapes))]
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        self.shapes.update(zip(outputs, shapes, strict=True))
        return outputs[0]

    def model(self, grid: str, mode: str = "bilinear", padding: str = "border", corners: int = 0) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 6, 6]),
            helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", PARAMETERS]),
        ]
        output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 1, HEIGHT, WIDTH])
        attributes = {"mode": mode, "padding_mode": padding, "align_corners": corners}
        sampler = helper.make_node("GridSample", ["image", grid], ["output"], **attributes)
        graph = helper.make_graph([*self.nodes, sampler], "random", inputs, [output], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def random_numbers(draw: st.DrawFn, *shape: int) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 2**16))).uniform(-0.7, 0.7, shape)


def step(draw: st.DrawFn, program: Program, name: str) -> str:
    """Applies one linear operator to a tensor; returns the output's name."""
    shape = program.shapes[name]
    size, rank = int(np.prod(shape)), len(shape)
    axis = draw(st.integers(1, rank))
    length = shape[axis - 1]
    kinds = ["add", "mul", "sub", "neg", "div", "gather", "slice", "concat", "transpose", "reshape", "expand", "split"]
    more = ["resize", "convolution", "transposed", "pool", "mean", "shuffle", "sample", "pick", "scatter"]
    kind = draw(st.sampled_from([*kinds, "matmul", "sum", "where", "pad", "others", *more]))
    if kind in more:
        return spatial_step(draw, program, name, kind)
    if kind in ("add", "sub", "mul"):
        other = program.constant(random_numbers(draw, *shape) + 1.0)
        return program.node(kind.capitalize(), [name, other], shape)
    if kind == "div":
        return program.node("Div", [name, program.constant(random_numbers(draw, *shape) + 2.0)], shape)
    if kind == "neg":
        return program.node("Neg", [name], shape)
    if kind == "gather":
        indices = draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=3))
        taken = (*shape[: axis - 1], len(indices), *shape[axis:])
        return program.node("Gather", [name, program.constant(np.array(indices))], taken, axis=axis)
    if kind == "slice" and length > 1:
        start = draw(st.integers(0, length - 2))
        bounds = [program.constant(np.array([value])) for value in (start, length, axis)]
        return program.node("Slice", [name, *bounds], (*shape[: axis - 1], length - start, *shape[axis:]))
    if kind == "split" and length > 1:
        part = draw(st.integers(1, length - 1))
        sizes = program.constant(np.array([part, length - part]))
        pieces = [(*shape[: axis - 1], n, *shape[axis:]) for n in (part, length - part)]
        return program.node("Split", [name, sizes], *pieces, axis=axis)
    if kind == "concat" and 2 * size <= MOST:
        same = [other for other, found in program.shapes.items() if found == shape]
        other = draw(st.sampled_from(same))
        return program.node("Concat", [name, other], (*shape[: axis - 1], 2 * length, *shape[axis:]), axis=axis)
    if kind == "others":
        same = [other for other, found in program.shapes.items() if found == shape]
        return program.node(draw(st.sampled_from(["Add", "Sub"])), [name, draw(st.sampled_from(same))], shape)
    if kind == "transpose" and rank > 1:
        order = draw(st.permutations(range(rank)))
        return program.node("Transpose", [name], tuple(shape[i] for i in order), perm=[0, *(i + 1 for i in order)])
    if kind == "reshape":
        factor = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        target = program.constant(np.array([draw(st.sampled_from([0, -1])), factor, size // factor]))
        return program.node("Reshape", [name, target], (factor, size // factor))
    if kind == "expand" and 2 * size <= MOST:
        alone = program.node("Unsqueeze", [name, program.constant(np.array([axis]))], _inserted(shape, axis - 1, 1))
        target = program.constant(np.array([1, *_inserted(shape, axis - 1, 2)]))
        return program.node("Expand", [alone, target], _inserted(shape, axis - 1, 2))
    if kind == "matmul":
        width = draw(st.integers(1, 4))
        matrix = program.constant(random_numbers(draw, shape[-1], width))
        return program.node("MatMul", [name, matrix], (*shape[:-1], width))
    if kind == "sum" and length > 1:
        axes = program.constant(np.array([axis]))
        return program.node("ReduceSum", [name, axes], (*shape[: axis - 1], 1, *shape[axis:]), keepdims=1)
    if kind == "where":
        mask = program.constant(random_numbers(draw, *shape) > 0)
        return program.node("Where", [mask, name, program.constant(random_numbers(draw, *shape))], shape)
    if kind == "pad" and size * (length + 1) // length <= MOST:
        pads = [0] * (2 * rank + 2)
        pads[rank + 1 + axis] = 1
        padded = (*shape[: axis - 1], length + 1, *shape[axis:])
        return program.node("Pad", [name, program.constant(np.array(pads))], padded)
    return program.node("Identity", [name], shape)


def spatial_step(draw: st.DrawFn, program: Program, name: str, kind: str) -> str:
    """Applies one operator on images to a tensor, as an image of one channel; or a selection by constant indices."""
    size = int(np.prod(program.shapes[name]))
    if kind in ("pick", "scatter"):
        flat = program.node("Reshape", [name, program.constant(np.array([0, size]))], (size,))
        # Selections along axis 0, so the samples lie on axis 1 meanwhile.
        values, length = program.node("Transpose", [flat], (size,), perm=[1, 0]), 3
        picks = program.constant(np.array([[draw(st.integers(-size, size - 1))] for _ in range(3)]))
        chosen = program.node("GatherND", [values, picks], (3,))
        inner = [values, chosen]
        if kind == "scatter":
            length = size
            inner.append(program.node("ScatterND", [values, picks, chosen], (size,), reduction="add"))
        for hidden in inner:  # other steps take only tensors with the samples on axis 0
            del program.shapes[hidden]
        return program.node("Transpose", [inner[-1]], (length,), perm=[1, 0])
    height = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    shape = (1, height, size // height)
    image = program.node("Reshape", [name, program.constant(np.array([-1, *shape]))], shape)
    if kind == "resize":
        target = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
        mode = draw(st.sampled_from(("nearest", "linear", "cubic")))
        how = draw(st.sampled_from(("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")))
        sizes = program.constant(np.array(target))
        attributes = {"mode": mode, "coordinate_transformation_mode": how, "axes": [2, 3]}
        return program.node("Resize", [image, "", "", sizes], (1, *target), **attributes)
    if kind == "shuffle":
        return shuffled(draw, program, image)
    if kind == "mean":
        return program.node("GlobalAveragePool", [image], (1, 1, 1))
    if kind == "pool":
        return program.node("AveragePool", [image], shape, kernel_shape=[3, 3], pads=[1] * 4)
    if kind == "sample":
        target = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
        program.count += 1
        batch, whole, points = (f"{part}{program.count}" for part in ("batch", "whole", "points"))
        rest = program.constant(np.array([*target, 2]))
        program.nodes.append(helper.make_node("Shape", [image], [batch], start=0, end=1))
        program.nodes.append(helper.make_node("Concat", [batch, rest], [whole], axis=0))
        program.nodes.append(
            helper.make_node("Expand", [program.constant(random_numbers(draw, 1, *target, 2)), whole], [points])
        )
        padding = draw(st.sampled_from(("zeros", "border", "reflection")))
        return program.node("GridSample", [image, points], (1, *target), mode="bilinear", padding_mode=padding)
    weights = program.constant(random_numbers(draw, 1, 1, 3, 3))
    if kind == "convolution":
        return program.node(
            "Conv", [image, weights], shape, auto_pad=draw(st.sampled_from(("SAME_UPPER", "SAME_LOWER")))
        )
    return program.node("ConvTranspose", [image, weights], shape, pads=[1] * 4)


def shuffled(draw: st.DrawFn, program: Program, image: str) -> str:
    """Four equal pieces of an image as the channels of a smaller one, or the other way round."""
    height, width = program.shapes[image][1:]
    pieces = program.node("Concat", [image] * 4, (4, height, width), axis=1)
    if draw(st.booleans()) and 16 * height * width <= MOST:
        whole = program.node("DepthToSpace", [pieces], (1, 2 * height, 2 * width), blocksize=2)
        return program.node("SpaceToDepth", [whole], (4, height, width), blocksize=2)
    mode = draw(st.sampled_from(("DCR", "CRD")))
    return program.node("DepthToSpace", [pieces], (1, 2 * height, 2 * width), blocksize=2, mode=mode)


def _inserted(shape: tuple[int, ...], place: int, size: int) -> tuple[int, ...]:
    return (*shape[:place], size, *shape[place:])


def grid_of(draw: st.DrawFn, program: Program, name: str) -> str:
    """Maps a tensor's values to the points in one of several ways; [N, H, W, 2]."""
    size = int(np.prod(program.shapes[name]))
    flat = program.node("Reshape", [name, program.constant(np.array([0, size]))], (size,))
    if draw(st.booleans()):
        weights = program.constant(random_numbers(draw, size, 2 * POINTS))
        spread = program.node("MatMul", [flat, weights], (2 * POINTS,))
    else:
        column = program.node("Unsqueeze", [flat, program.constant(np.array([2]))], (size, 1))
        weights = program.constant(random_numbers(draw, size, 2 * POINTS))
        products = program.node("Mul", [column, weights], (size, 2 * POINTS))
        spread = program.node("ReduceSum", [products, program.constant(np.array([1]))], (2 * POINTS,), keepdims=0)
    shape = (HEIGHT, WIDTH, 2)
    return program.node("Reshape", [spread, program.constant(np.array([-1, *shape]))], shape)


@st.composite
def linear_programs(draw: st.DrawFn) -> tuple[Program, str]:
    program = Program()
    name = "p"
    for _ in range(draw(st.integers(0, 10))):
        latest = step(draw, program, name)
        choices = [latest, latest, *program.shapes]
        name = draw(st.sampled_from(choices))
    grid = grid_of(draw, program, name)
    if draw(st.booleans()):
        grid = program.node("Add", [grid, program.constant(random_numbers(draw, 1, HEIGHT, WIDTH, 2))], (1, 1, 1))
    return program, grid


def outputs(model: onnx.ModelProto, batch: int) -> np.ndarray:
    generator = np.random.default_rng(batch)
    feeds = {
        "image": generator.standard_normal((batch, 1, 6, 6)).astype(np.float32),
        "p": generator.uniform(-1, 1, (batch, PARAMETERS)).astype(np.float32),
    }
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, feeds)
    return np.asarray(answer)


def check_equal(model: onnx.ModelProto, rewritten: onnx.ModelProto, flips: float = 0.0) -> None:
    onnx.checker.check_model(rewritten)
    for batch in (1, 4):
        expected = outputs(model, batch)
        # A bilinear sampler multiplies a grid error by the image's slope; grids here reach about a hundred.
        wrong = np.abs(outputs(rewritten, batch) - expected) > 2e-4
        assert wrong.mean() <= flips


def described(model: onnx.ModelProto) -> str:
    return onnx.printer.to_text(model.graph)


@given(linear_programs())
@RUNS
def test_linear_programs_are_rewritten(made: tuple[Program, str]) -> None:
    program, grid = made
    model = program.model(grid)
    note(described(model))
    rewritten, (*_, finding) = fuse(model)
    depends = "p" in behind(model, grid)
    assert finding.fused == depends, finding.message
    if depends:
        assert rewritten.graph.node[-1].op_type == "SpatialTransformer"
    check_equal(model, rewritten)


@given(
    linear_programs(),
    st.sampled_from(("bilinear", "nearest", "bicubic")),
    st.sampled_from(("zeros", "border", "reflection")),
    st.sampled_from((1.0, 0.9, 1.5)),
)
@settings(RUNS, max_examples=40)
def test_a_clamp_to_the_image_is_border_padding(made: tuple[Program, str], mode: str, padding: str, end: float) -> None:
    """Between the outermost pixels' centers, for a sampler that reads no others: not for cubic interpolation."""
    program, grid = made
    bounds = [program.constant(np.float32(bound)) for bound in (-end, end)]
    model = program.model(program.node("Clip", [grid, *bounds], ()), mode, padding, corners=1)
    note(described(model))
    rewritten, (*_, finding) = fuse(model)
    border = end == 1.0 and mode != "bicubic"
    assert finding.fused == (border and "p" in behind(model, grid)), finding.message
    if finding.fused:
        assert padding_of(rewritten) == "border"
    # rounding selects another pixel now and then where a grid has other rounding errors
    check_equal(model, rewritten, flips=0.02 if mode == "nearest" else 0.0)


def padding_of(model: onnx.ModelProto) -> str:
    (padding,) = (entry.s.decode() for entry in model.graph.node[-1].attribute if entry.name == "padding_mode")
    return str(padding)


BENDS = ("Clip", "Relu", "Abs", "Tanh", "Pow", "Where", "Max", "Round", "Sin")


@given(linear_programs(), st.sampled_from(BENDS), st.data())
@RUNS
def test_programs_with_a_nonlinear_grid_are_not_fused(
    made: tuple[Program, str], bend: str, data: st.DataObject
) -> None:
    program, grid = made
    if bend == "Clip":
        bent = program.node("Clip", [grid, program.constant(np.float32(-99.0)), program.constant(np.float32(99.0))], ())
    elif bend == "Pow":
        bent = program.node("Pow", [grid, program.constant(np.float32(4))], ())
    elif bend == "Max":
        bent = program.node("Max", [grid, program.constant(np.float32(-50.0))], ())
    elif bend == "Where":
        far = program.node("Greater", [grid, program.constant(np.float32(50.0))], ())
        bent = program.node("Where", [far, program.constant(np.float32(1.0)), grid], ())
    else:
        bent = program.node(bend, [grid], ())
    if data.draw(st.booleans()):
        bent = program.node("Add", [bent, program.constant(random_numbers(data.draw, 1, HEIGHT, WIDTH, 2))], ())
    model = program.model(bent)
    note(described(model))
    rewritten, (*_, finding) = fuse(model)
    assert not finding.fused, finding.message
    check_only_samplers_changed(model, rewritten)


@given(linear_programs(), linear_programs(), st.booleans())
@RUNS
def test_products_of_linear_programs(one: tuple[Program, str], other: tuple[Program, str], whole: bool) -> None:
    """A grid times a value per sample, or times another grid, is a polynomial in the parameters."""
    (program, grid), (second, factor) = one, other
    for node in second.nodes:
        node.input[:] = [name if name == "p" or not name else f"second_{name}" for name in node.input]
        node.output[:] = [f"second_{name}" for name in node.output]
    for tensor in second.constants:
        tensor.name = f"second_{tensor.name}"
    program.nodes += second.nodes
    program.constants += second.constants
    factor = f"second_{factor}"
    if not whole:
        axes = program.constant(np.array([1, 2, 3]))
        factor = program.node("ReduceMean", [factor, axes], (1, 1, 1), keepdims=1)
    model = program.model(program.node("Mul", [grid, factor], ()))
    note(described(model))
    rewritten, (*_, finding) = fuse(model)
    sources = behind(model, grid) | behind(model, factor)
    assert finding.fused == ("p" in sources) or (whole and "dimensions" in finding.message), finding.message
    check_equal(model, rewritten)


@given(linear_programs(), st.sampled_from(("Clip", "Relu", "Abs", "Tanh", "Sin")))
@RUNS
def test_a_nonlinear_operator_before_the_cut_does_not_prevent_fusion(second: tuple[Program, str], bend: str) -> None:
    """The operator has few outputs, and the grid is linear in them."""
    program, _ = second
    for node in program.nodes:
        for index, name in enumerate(node.input):
            if name == "p":
                node.input[index] = "bent"
    program.nodes.insert(0, helper.make_node(bend, ["p"], ["bent"]))
    model = program.model(second[1])
    note(described(model))
    rewritten, (*_, finding) = fuse(model)
    assert finding.fused == ("p" in behind(model, second[1])), finding.message
    check_equal(model, rewritten)
