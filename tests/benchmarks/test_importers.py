"""Which importers take which file: those that are quick are asked again, and all are in the committed table."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import importers
from benchmarks.importers import FORMS, IMPORTERS, Importer, Taken
from stn_infer.backends.ort import OrtBackend
from stn_infer.repairs.inlined import inlined
from tests.support import shared
from tests.support.paths import ROOT
from tests.support.tensorrt_parts import missing, module_or_skip

MODULES = {"openvino": "openvino", "opencv-python-headless": "cv2", "pnnx": "ncnn", "tinygrad": "tinygrad"}
SLOW = ("ncnn, by pnnx", "tinygrad", "onnxslim, then onnxruntime", "onnxsim, then onnxruntime", "TensorRT-RTX")


@pytest.fixture(scope="module")
def committed() -> dict[str, list[str]]:
    """The verdicts of the committed table without their figures, by importer."""
    found = {}
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    for line in page[page.index("| importer |") :].splitlines()[2:]:
        if not line:
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[name.rpartition(" (")[0]] = ["wrong" if "wrong" in cell else cell for cell in cells]
    return found


@pytest.fixture(scope="module")
def given() -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """Our two forms of a shipped model, an input, and the output of the portable one."""
    model = shared.portable("tutorial-stn-r")
    image = np.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(np.float32)
    files = {"portable": model.SerializeToString(), "inlined": inlined(model).SerializeToString()}
    (expected,) = OrtBackend(files["portable"], plugin=False).run({"input": image}).values()
    return files, image, expected


def test_every_importer_is_in_the_committed_table(committed: dict[str, list[str]]) -> None:
    assert list(committed) == [importer.name for importer in IMPORTERS]
    assert {len(cells) for cells in committed.values()} == {len(FORMS)}
    assert {cell for cells in committed.values() for cell in cells} <= {"right", "wrong", "builds", "refused"}
    # what `--functions inline` is for
    for name in ("OpenVINO", "OpenCV", "ncnn, by pnnx"):
        assert committed[name][:2] == ["refused", "right"]


@pytest.mark.parametrize(
    "importer",
    [pytest.param(it, id=it.name, marks=pytest.mark.slow if it.name in SLOW else ()) for it in IMPORTERS],
)
def test_what_is_committed_is_seen_again(
    importer: Importer, committed: dict[str, list[str]], given: tuple[dict[str, bytes], np.ndarray, np.ndarray]
) -> None:
    if importer.package in MODULES:
        module_or_skip(MODULES[importer.package], importer.package)
    files, image, expected = given
    for form, verdict in zip(FORMS[:2], committed[importer.name], strict=False):
        taken = importers.take(importer, files[form], image, expected)
        if taken.verdict == "absent":
            if "extension" in taken.reason:
                pytest.skip(taken.reason)
            missing(taken.reason)
        assert taken.verdict == verdict, taken.reason


def test_verdicts() -> None:
    expected = np.array([1.0, -2.0])

    def gives(found: object) -> Taken:
        def run(content: bytes, image: np.ndarray) -> np.ndarray | None:
            if isinstance(found, Exception):
                raise found
            return None if found is None else np.array(found)

        return importers.take(Importer("it", "numpy", run), b"", expected, expected)

    assert gives([1.0, -2.0001]).verdict == "right" and gives(None).verdict == "builds"
    assert gives([1.0, -1.0]).text() == "**wrong by 1e0**"
    assert gives([1.0, float("nan")]).verdict == "wrong"
    assert gives(ValueError("line one\nline two")).reason == "line one line two"
    assert gives(ImportError("no module")).text() == "-"
