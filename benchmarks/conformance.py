"""Test which runtimes sample as the operators are defined, and write ``docs/conformance.md``.

The first sections cover which importers take which file (``importers.py``) and every sampler in every runtime
(``conformance_matrix.py``). Then two external collections run
in the float64 reference sampler (``stn_infer/reference/sampling.py``), eager PyTorch, onnxruntime's own nodes and our
op, which onnxruntime runs from its function body and with the plugin library:

- the ONNX backend's node tests for GridSample and AffineGrid, with their own tolerance;
- PyTorch's sample inputs for ``grid_sample``, with PyTorch in float64 as the reference.

Run from the root: ``python benchmarks/conformance.py [--output docs/conformance.md] [--json FILE] [--without-matrix]``.
The exit code is 1 when a column that claims conformance (the reference or our op) fails a row.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import conformance_matrix, importers
from benchmarks.op_files import run_op
from stn_infer.arrays import Array
from stn_infer.fusion.basis import canonical_basis
from stn_infer.proto.session import Stored, open_session
from stn_infer.samplers import SamplerSpec, spell_mode
from stn_infer.sampling import sample
from stn_infer.transforms import Affine

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = "tutorial-stn-r"
OURS = {"our op, opset 18": (18, False), "our op, opset 22": (22, False), "our op, library": (18, True)}
"""Our op from its function at an opset, and with the plugin library."""

NODE_COLUMNS = ("reference", "PyTorch", "onnxruntime", *OURS)
SAMPLE_COLUMNS = ("reference", "onnxruntime", "our op, opset 18", "our op, library")
CLAIMED = ("reference", *OURS)
"""The columns of this project; a failure in another column is only shown."""

DOUBLE, SINGLE = 1e-12, 2e-4
"""The tolerance of PyTorch's samples in float64 and in float32, as a share of the image's range."""


@dataclass(frozen=True)
class Cell:
    """The result of one row in one column: the largest absolute error, and whether it is within the row's tolerance."""

    error: float
    passed: bool


@dataclass(frozen=True)
class Row:
    """One test, and its result in each column."""

    name: str
    cells: dict[str, Cell]


# ---- the node tests of ONNX --------------------------------------------------------------------------------------


def node_cases() -> list[Any]:
    """The 26 node tests; only these two modules are imported, because the whole collection takes half a minute."""
    package = importlib.import_module("onnx.backend.test.case.node")
    for module in ("gridsample", "affinegrid"):
        importlib.import_module(f"{package.__name__}.{module}")
    return [case for case in package._NodeTestCases if case.name.startswith(("test_gridsample", "test_affine_grid"))]


def node_row(case: Any) -> Row:
    """Run one node test in every column.

    The expanded forms of AffineGrid differ only in onnxruntime's column; in the others they repeat the same test.
    """
    inputs, outputs = case.data_sets[0]
    given, expected = [_array(value) for value in inputs], _array(outputs[0])
    names = [value.name for value in case.model.graph.input]
    plain = _first_output(case.model, dict(zip(names, given, strict=True)))
    run = _affine_columns if "affine_grid" in case.name else _sampler_columns
    cells = {"onnxruntime": _cell(plain, expected, case.rtol, case.atol)}
    for column, (result, truth) in run(case, given, expected).items():
        cells[column] = _cell(result, truth, case.rtol, case.atol)
    return Row(case.name, {column: cells[column] for column in NODE_COLUMNS})


def _sampler_columns(case: Any, given: list[Array], expected: Array) -> dict[str, tuple[Array, Array]]:
    image, grid = given
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in case.model.graph.node[0].attribute}
    sampler = SamplerSpec.of(
        attributes.get("mode", b"linear").decode(),
        attributes.get("padding_mode", b"zeros").decode(),
        attributes.get("align_corners", 0),
    )
    options = (sampler.mode, sampler.padding_mode, sampler.align_corners)
    eager = F.grid_sample(torch.tensor(image), torch.tensor(grid), *options)
    # Any grid is theta · basis: theta holds its points and the basis is the unit matrix.
    output_size = grid.shape[1:-1]
    theta = np.moveaxis(grid.reshape(len(grid), -1, grid.shape[-1]), 1, 2)
    basis = np.eye(theta.shape[2], dtype=np.float32)
    ours = {
        column: (run_op("basis", image, theta, basis, output_size, *options, opset, library=library), expected)
        for column, (opset, library) in OURS.items()
    }
    return {
        "reference": (sample(sampler, image, grid), expected),
        "PyTorch": (eager.numpy(), expected),
        **ours,
    }


def _affine_columns(case: Any, given: list[Array], expected: Array) -> dict[str, tuple[Array, Array]]:
    theta, size = given[0], [int(length) for length in given[1]][2:]
    align_corners = "align_corners" in case.name
    eager = F.affine_grid(torch.tensor(theta), [len(theta), 1, *size], align_corners=align_corners)
    # our op returns no grid, so it samples an image, which is compared with that image sampled at the expected grid
    image = np.random.default_rng(0).normal(size=(len(theta), 2, *size)).astype(np.float32)
    truth = sample(SamplerSpec("bilinear", "border", align_corners), image, expected)
    # The op's affine rows are pixel centers; the corner convention is folded into theta.
    transformation = Affine(rank=len(size))
    matrix, offset = (part.numpy() for part in transformation.affine_map(size, align_corners))
    folded = (theta.reshape(len(theta), -1) @ matrix.T + offset).reshape(theta.shape)
    basis = transformation.basis(size, align_corners).numpy().astype(np.float32)
    options = ("bilinear", "border", align_corners)
    ours = {
        column: (run_op("affine", image, folded, basis, size, *options, opset, library=library), truth)
        for column, (opset, library) in OURS.items()
    }
    return {
        "reference": (affine_grid(theta, size, align_corners), expected),
        "PyTorch": (eager.numpy(), expected),
        **ours,
    }


def affine_grid(theta: Array, size: Sequence[int], align_corners: bool) -> Array:
    """The grid [N, *size, D] of ``theta`` [N, D, D + 1] in float64, as ONNX's AffineGrid defines it."""
    points = theta.astype(np.float64) @ canonical_basis(size, align_corners)
    return np.moveaxis(points, 1, 2).reshape(len(theta), *size, len(size))


# ---- PyTorch's sample inputs -------------------------------------------------------------------------------------


def sample_rows() -> Iterator[Row]:
    """PyTorch's reference inputs for ``grid_sample``; importing them freezes torch's global flags for the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch's test code
        from torch.testing._internal.common_methods_invocations import reference_inputs_grid_sample

    for case in reference_inputs_grid_sample(None, "cpu", torch.float64, False):  # type: ignore[no-untyped-call]
        grid, mode, padding_mode, align_corners = _sampler_arguments(case)
        truth = F.grid_sample(case.input, grid, mode, padding_mode, align_corners).numpy()
        image, points = case.input.numpy(), grid.numpy()
        # nearest must agree in every value in float64; the other modes within the rounding of a coordinate
        scale = float(np.abs(image).max())
        double = 0.0 if mode == "nearest" else DOUBLE * scale
        name = f"{'x'.join(map(str, image.shape))} {mode}, {padding_mode}, align_corners={align_corners}"
        sampler = SamplerSpec(mode, padding_mode, align_corners)
        cells = {
            "reference": _cell(sample(sampler, image, points), truth, 0, double),
            "onnxruntime": _cell(_plain_node(image, points, sampler), truth, 0, double),
        }
        theta = _affine_theta(points)
        if theta is not None:
            size = points.shape[1:-1]
            basis = Affine(rank=len(size)).basis(size, False).numpy().astype(np.float32)
            for column in SAMPLE_COLUMNS[2:]:
                library = OURS[column][1]
                single = run_op("affine", image, theta, basis, size, mode, padding_mode, align_corners, library=library)
                cells[column] = _single_cell(single, truth, mode, scale)
        yield Row(name, cells)


def _sampler_arguments(case: Any) -> tuple[torch.Tensor, str, str, bool]:
    grid, *positional = case.args
    named = {**dict(zip(("mode", "padding_mode", "align_corners"), positional, strict=False)), **case.kwargs}
    return grid, named.get("mode", "bilinear"), named.get("padding_mode", "zeros"), bool(named.get("align_corners"))


def _affine_theta(grid: Array) -> Array | None:
    """theta [N, D, D + 1] over pixel centers of an affine grid; None for another grid."""
    size = grid.shape[1:-1]
    basis = canonical_basis(size).T  # [P, K]
    inverse = np.linalg.inv(basis.T @ basis) @ basis.T  # [K, P]; x, y and 1 are orthogonal, this is well conditioned
    theta = np.moveaxis(inverse @ grid.reshape(len(grid), -1, len(size)), 1, 2)
    fitted = (basis @ np.moveaxis(theta, 1, 2)).reshape(grid.shape)
    return theta if np.abs(fitted - grid).max() < 1e-9 else None


def _single_cell(result: Array, truth: Array, mode: str, scale: float) -> Cell:
    """The error of float32 against float64 as a share of the image's range; for nearest, the flipped share."""
    if mode == "nearest":
        flips = float(np.mean(result != truth))
        return Cell(flips, flips <= SINGLE)
    error = float(np.abs(result - truth).max()) / scale
    return Cell(error, error <= SINGLE)


# ---- running -----------------------------------------------------------------------------------------------------


def _plain_node(image: Array, grid: Array, sampler: SamplerSpec) -> Array:
    """The standard GridSample in onnxruntime, in float64."""
    node = helper.make_node(
        "GridSample",
        ["image", "grid"],
        ["output"],
        mode=spell_mode(sampler.mode, 22),
        padding_mode=sampler.padding_mode,
        align_corners=int(sampler.align_corners),
    )
    values = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, None if shape is None else list(shape))
        for name, shape in (("image", image.shape), ("grid", grid.shape), ("output", None))
    ]
    graph = helper.make_graph([node], "plain", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return _first_output(model, {"image": image, "grid": grid})


def _first_output(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """The outputs of a third-party file in onnxruntime."""
    return np.asarray(open_session(Stored(model)).run(feeds)[0])


def _cell(result: Array, expected: Array, rtol: float, atol: float) -> Cell:
    if result.shape != expected.shape:
        return Cell(float("inf"), False)
    difference = np.abs(np.asarray(result, np.float64) - expected)
    return Cell(float(difference.max()), bool((difference <= atol + rtol * np.abs(expected)).all()))


def _array(value: Any) -> Array:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


# ---- the page ----------------------------------------------------------------------------------------------------


def table(title: str, columns: tuple[str, ...], rows: list[Row]) -> str:
    """A Markdown table of the errors, with **fails** where an error exceeds the row's tolerance."""

    def text(row: Row, column: str) -> str:
        cell = row.cells.get(column)
        if cell is None:
            return "-"
        error = "0" if cell.error == 0 else f"{cell.error:.0e}"
        return error if cell.passed else f"{error} **fails**"

    passed = [
        f"{sum(row.cells[column].passed for row in rows if column in row.cells)}"
        f" of {sum(column in row.cells for row in rows)}"
        for column in columns
    ]
    lines = [
        f"| {title} | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| `{row.name}` | {' | '.join(text(row, column) for column in columns)} |" for row in rows),
        f"| **passed** | {' | '.join(f'**{count}**' for count in passed)} |",
    ]
    return "\n".join(lines)


def matrix_section() -> str:
    """Every sampler in every runtime."""
    rtx, lean = _version("tensorrt-rtx"), _version("tensorrt-lean")
    return f"""## Every sampler in every runtime

Noise in [0, 1] read at affine grids that leave the image, against the float64 sampler of
`stn_infer/reference/sampling.py`. The file casts the image to the type; theta and the grid are float32.

- *exact*: equal to the last bit. *≤ 1e-5*: the largest error, rounded up to a power of ten; float32 coordinates and
  the rounding of the result to its type explain it.
- **off**: the error is larger than that; the largest one is given. PyTorch requires image and grid in the same type, so
  with a half-precision image its coordinates are in half precision too.
- *unsupported*: the runtime rejects the file. Bicubic sampling of volumes is not defined, so it has no rows.
- *builds*: TensorRT-RTX {rtx}'s parser and builder build an engine for sm_89 from the file's function,
  with native layers, and read no other mode as nearest. *accepted*: TensorRT {lean}'s own registry creates our
  plugin with these attributes. Neither was run, because this machine has no GPU; the plugin's kernels are those of the
  library's other two columns.
- A fallback to the CPU can only be observed on a GPU; no CUDA provider was run here.

"onnxruntime GridSample" is the standard operator. onnxruntime samples a float16 image in float32 and removes the casts
around the operator, so the result is not rounded to float16. "OpenVINO, inlined" is OpenVINO's own GridSample, which it
has for images only, on our function inlined. It computes float16 in float32, and bfloat16 too on a CPU without
bfloat16 instructions; that of the table has them.

{conformance_matrix.table(conformance_matrix.rows(conformance_matrix.cases()))}

{sampler_section()}
"""


def sampler_section() -> str:
    """``stn::Sampler`` in every runtime that runs it."""
    runtimes = conformance_matrix.SAMPLER_RUNTIMES
    found = conformance_matrix.rows(conformance_matrix.cases(at_grid=True), runtimes)
    return f"""### `stn::Sampler`

The same, with the grid computed by standard operators in float32 and read by `stn::Sampler`; "PyTorch, fused" is
`stn_infer.fused.grid_sample`.

{conformance_matrix.table(found, runtimes)}
"""


def importers_section() -> str:
    """Which importers take which form of a file."""
    return f"""## Which importers take which file

The shipped model `{IMPORTED}` in three forms: the portable file (ops of domain `stn` with functions), the same with
`--functions inline`, and the file that `torch.onnx.export` writes. *right*: the output is within 1e-4 of the module's
in float64, relative to its largest value. *builds*: an engine is built, and was not run. ncnn runs what pnnx makes of
the file, in float32. tinygrad has no GridSample at all.

{importers.table(importers.rows(*importers.files_of(IMPORTED)))}

"""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def page(nodes: list[Row], samples: list[Row], matrix: str) -> str:
    """``docs/conformance.md``."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnx", "torch", "onnxruntime-gpu"))
    return f"""# Conformance

Written by `python benchmarks/conformance.py` with {versions}, on the CPU; a test runs it again.

{matrix}A number below is the largest absolute error; **fails** marks one that exceeds its row's tolerance.

*reference* is `stn_infer/reference/sampling.py`, float64 numpy. *our op* is `stn::SpatialTransformer` as onnxruntime
runs it in float32: from the function body in the file, at two opsets, or with the plugin library.

## ONNX's node tests

Each by its own tolerance, {1e-7:g} + {1e-3:g} of the expected value. For GridSample our op gets the test's grid as
theta, with the identity matrix as basis. For AffineGrid, which has no op here, `stn::SpatialTransformer` gets its theta
and samples a random image; the result is compared with the same image sampled at the expected grid. The `expanded`
forms differ from the plain ones only in onnxruntime's column.

{table("node test", NODE_COLUMNS, nodes)}

## PyTorch's sample inputs for grid_sample

Noise images from 0 to 255 and affine grids, with PyTorch in float64 as the reference. The reference sampler and
onnxruntime's own node run in float64 (allowed: {DOUBLE:g} of the range; for nearest, no difference). Our op runs in
float32, where a coordinate near 456 is rounded by about 1e-4 pixels: its error is a share of the range, for nearest the
share of values that take the neighboring pixel (allowed for both: {SINGLE:g}).

{table("sample", SAMPLE_COLUMNS, samples)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the external tests and write docs/conformance.md.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "conformance.md")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--without-matrix", action="store_true", help="omit the first two sections, which take minutes")
    arguments = parser.parse_args()
    # first, because PyTorch's test code freezes torch's global flags
    matrix = "" if arguments.without_matrix else importers_section() + matrix_section()
    nodes, samples = [node_row(case) for case in node_cases()], list(sample_rows())
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(page(nodes, samples, matrix), encoding="utf-8")
    if arguments.json:
        rows = {"nodes": [asdict(row) for row in nodes], "samples": [asdict(row) for row in samples]}
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    failed = [
        f"{row.name}: {column}"
        for row in (*nodes, *samples)
        for column, cell in row.cells.items()
        if column in CLAIMED and not cell.passed
    ]
    print(f"{len(nodes)} node tests, {len(samples)} samples -> {arguments.output}", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
