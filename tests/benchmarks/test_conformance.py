"""The conformance page: ONNX's and PyTorch's tests, and a part of the table of every sampler, computed again."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import conformance
from benchmarks import conformance_matrix as matrix
from export.bfloat16 import quick
from stn_infer.samplers import SamplerSpec
from stn_infer.sampling import sample
from tests.support.paths import ROOT
from tests.support.tensorrt_parts import library_or_skip, module_or_skip

SCRIPT = ROOT / "benchmarks" / "conformance.py"
OURS = ("reference", "our op, opset 18", "our op, library", "our op, opset 22")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The script's results, from a separate process, because PyTorch's test code freezes torch's global flags."""
    library_or_skip()
    folder = tmp_path_factory.mktemp("conformance")
    result = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--without-matrix",
            "--output",
            str(folder / "page.md"),
            "--json",
            str(folder / "rows.json"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads((folder / "rows.json").read_text())
    found["page"] = [{"text": (folder / "page.md").read_text()}]
    return found


def test_the_reference_and_our_op_pass_every_node_test_of_onnx() -> None:
    found = [conformance.node_row(case) for case in conformance.node_cases()]
    assert len(found) == 26
    assert {row.name: column for row in found for column in OURS if not row.cells[column].passed} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("collection", "count", "columns"),
    [("nodes", 26, OURS), ("samples", 18, OURS[:3])],
)
def test_the_reference_and_our_op_pass_every_test(
    rows: dict[str, list[dict[str, Any]]], collection: str, count: int, columns: tuple[str, ...]
) -> None:
    assert len(rows[collection]) == count
    assert {
        row["name"]: column for row in rows[collection] for column in columns if not row["cells"][column]["passed"]
    } == {}


@pytest.mark.slow
def test_the_committed_page_has_these_tests(rows: dict[str, list[dict[str, Any]]]) -> None:
    """The figures depend on versions and the processor, so only the names and the counts are compared."""

    def skeleton(page: str) -> list[str]:
        outside = page[page.index("## ONNX's node tests") :]
        lines = [line for line in outside.splitlines() if line.startswith("|")]
        return [line if "**passed**" in line else line.split("|")[1] for line in lines]

    written = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert skeleton(written) == skeleton(rows["page"][0]["text"])


# ---- every sampler in every runtime ------------------------------------------------------------------------------

Cells = dict[str, str]


def kind(text: str) -> str:
    """A cell without its figure, which depends on versions and the processor."""
    return {"≤": "within", "*": "off"}.get(text[0], text)


@pytest.fixture(scope="module")
def committed() -> dict[matrix.Case, Cells]:
    """The committed table, by case."""
    found: dict[matrix.Case, Cells] = {}
    for line in (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 + len(matrix.RUNTIMES) or cells[0] not in ("2-D", "3-D"):
            continue
        rank, dtype, mode, padding, corners, *texts = cells
        for case in matrix.cases([dtype]):
            sampler = case.sampler
            named = f"{sampler.padding_mode} {sampler.align_corners}" in padding.split("; ")
            listed = padding in ("any",) or sampler.padding_mode in padding.split(", ")
            listed = listed and (corners == "any" or str(sampler.align_corners) in corners.split(", "))
            if f"{case.rank}-D" == rank and sampler.mode == mode and (named or listed):
                assert case not in found, f"{case} is in two lines"
                found[case] = {name: kind(text) for name, text in zip(matrix.RUNTIMES, texts, strict=True)}
    return found


def test_the_table_has_every_case_and_our_columns_pass(committed: dict[matrix.Case, Cells]) -> None:
    assert set(committed) == set(matrix.cases())
    ours = ("PyTorch, fused", "onnxruntime, function", "onnxruntime, library")
    wrong = {
        case: cells for case, cells in committed.items() if any(cells[name] not in ("exact", "within") for name in ours)
    }
    assert wrong == {}


@pytest.mark.parametrize("dtype", matrix.DTYPES)
def test_a_part_of_the_table_is_reproduced(committed: dict[matrix.Case, Cells], dtype: str) -> None:
    library_or_skip()
    wanted = matrix.cases([dtype])[:: 1 if dtype == "float32" else 4]
    for case, cells in matrix.rows(wanted, [name for name in matrix.MEASURED if not name.startswith("OpenVINO")]):
        assert {name: kind(cell.text()) for name, cell in cells.items()} == {
            name: committed[case][name] for name in cells
        }, case


@pytest.mark.parametrize("column", ["OpenVINO, inlined", "OpenVINO, extension"])
def test_a_part_of_openvinos_columns_is_reproduced(committed: dict[matrix.Case, Cells], column: str) -> None:
    module_or_skip("openvino", "openvino")
    for case, cells in matrix.rows(matrix.cases()[::5], [column]):
        if cells[column].verdict == "absent":
            pytest.skip("the OpenVINO extension is not built")  # test_extension.py builds one
        found, expected = kind(cells[column].text()), committed[case][column]
        if case.dtype == "bfloat16" and expected == "off" and not quick():
            assert found in ("exact", "within"), case  # OpenVINO computes in float32 here
        else:
            assert found == expected, case


@pytest.mark.parametrize("rank", [2, 3])
def test_the_openvino_extension_has_every_sampler(committed: dict[matrix.Case, Cells], rank: int) -> None:
    found = {cells["OpenVINO, extension"] for case, cells in committed.items() if case.rank == rank}
    assert found <= {"exact", "within"}


def test_a_part_builds_and_the_registry_takes_all(committed: dict[matrix.Case, Cells]) -> None:
    library_or_skip()
    module_or_skip("tensorrt_rtx", "tensorrt-rtx")
    module_or_skip("tensorrt_lean", "tensorrt-lean")
    for case in matrix.cases()[::17]:
        assert matrix.builds(case).text() == committed[case]["TensorRT-RTX"], case
    found = zip(matrix.cases(), matrix.accepted(matrix.cases()), strict=True)
    assert {case: outcome.text() for case, outcome in found} == {
        case: cells["TensorRT, plugin"] for case, cells in committed.items()
    }


def test_a_wrong_runtime_is_off() -> None:
    case = matrix.cases(["float32"])[0]

    def other(case: matrix.Case, given: matrix.Data) -> Any:
        return sample(SamplerSpec("nearest"), given.image, given.grid)

    assert matrix.outcome(case, other).verdict == "off"
    assert matrix.outcome(case, matrix.run_pytorch).verdict == "within"

    def refuses(case: matrix.Case, given: matrix.Data) -> Any:
        raise RuntimeError("no kernel")

    assert matrix.outcome(case, refuses).verdict == "unsupported"


# ---- stn::Sampler ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed_sampler() -> list[Cells]:
    """The lines of the committed table of ``stn::Sampler``."""
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    lines = page[page.index("### `stn::Sampler`") :].split("\n## ")[0].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(("| 2", "| 3"))]
    names = ("rank", "dtype", "mode", "padding", "align_corners", *matrix.SAMPLER_RUNTIMES)
    return [dict(zip(names, cells, strict=True)) for cells in split]


def test_the_samplers_table_has_every_mode_and_type_and_our_columns_pass(committed_sampler: list[Cells]) -> None:
    wanted = {(f"{case.rank}-D", case.dtype, case.sampler.mode) for case in matrix.cases(at_grid=True)}
    assert {(line["rank"], line["dtype"], line["mode"]) for line in committed_sampler} == wanted
    for line in committed_sampler:
        for name in ("PyTorch, fused", "onnxruntime, function", "onnxruntime, library"):
            assert kind(line[name]) in ("exact", "within"), line
        assert line["TensorRT, plugin"] == "accepted" and line["TensorRT-RTX"] == "builds", line


@pytest.mark.parametrize("dtype", matrix.DTYPES)
def test_a_part_of_the_samplers_table_is_reproduced(dtype: str) -> None:
    library_or_skip()
    names = ["PyTorch, fused", "onnxruntime, function", "onnxruntime, library"]
    for case, cells in matrix.rows(matrix.cases([dtype], at_grid=True)[::3], names):
        assert {cell.verdict for cell in cells.values()} <= {"exact", "within"}, case


def test_the_registry_takes_every_sampler() -> None:
    library_or_skip()
    module_or_skip("tensorrt_lean", "tensorrt-lean")
    assert {made.verdict for made in matrix.accepted(matrix.cases(at_grid=True))} == {"accepted"}
