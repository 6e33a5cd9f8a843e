"""Shipped models to files: what is made again and what is not, failed rows, checksums, errors in one line."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export import models
from export.datasets.task import Batch
from stn_infer.api.open import open_backend
from stn_infer.data.digits import load_digits
from stn_infer.data.distort import TEST_SEED, distorted
from stn_infer.errors import OutputError, VerificationError
from tests.support.paths import ROOT

NAME = "tutorial-stn-r"


def target(precision: Any = "fp32", functions: Any = "keep") -> models.Target:
    return replace(models.targets([NAME])[0], precision=precision, functions=functions)


@pytest.fixture(scope="module", autouse=True)
def few_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "MOST_TESTED", 500)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one exported model and its table, from a machine without MNIST's files."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stn_infer.data.mnist.mnist_folder", lambda: folder / "none")
        assert models.make([target()], folder / "dist", folder / "MODELS.md") == 1
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on every export fails its limits; returns the sources that were tried."""
    tried: list[str] = []

    def export(source: str, *_: Any, **__: Any) -> None:
        tried.append(source)
        raise VerificationError("max error 1 | expected 0.1")

    monkeypatch.setattr(models, "export", export)
    return tried


def test_a_file_its_checksum_and_its_row(made: Path) -> None:
    path = made / "dist" / f"{NAME}-fp32.onnx"
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert any(node.domain == "stn" for node in onnx.load(path).graph.node)
    assert (made / "dist" / "SHA256SUMS").read_text() == f"{digest}  {path.name}\n"
    row = (made / "MODELS.md").read_text().splitlines()[-1].strip("| ").split(" | ")
    assert row[:6] == [NAME, "1 x 28 x 28", "fp32", "keep", str(len(content)), f"{len(content) / 1000:.1f}"]
    error, px = row[6].removesuffix(" px").split(", ")
    assert 0 < float(error) < 1e-5 and 0 < float(px) < 1e-3
    assert row[7].endswith(" % of 500 other images"), "not what training measured"
    assert row[8] == f"`{digest}`"


def test_the_error_is_the_files_own_on_digits_that_it_has_not_seen(made: Path) -> None:
    entry = json.loads((made / "dist" / "manifest.json").read_text())[f"{NAME}-fp32.onnx"]
    unseen = distorted(load_digits(), "R", (28, 28), torch.Generator().manual_seed(TEST_SEED))
    tested = np.load(made / "dist" / "test" / f"{NAME}.npy")
    np.testing.assert_array_equal(tested, unseen.images[:500])
    backend = open_backend(made / "dist" / f"{NAME}-fp32.onnx")
    scores = next(iter(backend.run({"input": (tested[:, None] / np.float32(255)).astype(np.float32)}).values()))
    assert (entry["tested"], entry["substitute"]) == (500, True)
    assert entry["wrong"] == (scores.argmax(axis=1) != unseen.labels[:500]).sum() > 0


def test_with_mnist_the_error_stands_beside_that_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Test:
        def test(self, part: str, seed: int) -> list[Batch]:
            assert (part, seed) == ("test", TEST_SEED)
            return [Batch(torch.zeros(4, 28, 28, dtype=torch.uint8), torch.tensor([1, 1, 2, 3]))] * 3

    monkeypatch.setattr("export.trainer.task_of", lambda recipe: Test())
    wanted = target()
    models.make([wanted], tmp_path / "dist", tmp_path / "MODELS.md")
    entry = json.loads((tmp_path / "dist" / "manifest.json").read_text())[f"{NAME}-fp32.onnx"]
    assert (entry["tested"], entry["substitute"]) == (12, False)
    assert entry["wrong"] in (6, 9, 12), "one class for the same image"
    shipped = wanted.model.results.shipped_error
    assert shipped != wanted.model.results.error, "the mean of the seeds"
    assert f"| {100 * entry['wrong'] / 12:.2f} % ({shipped:.2f} %) |" in (tmp_path / "MODELS.md").read_text()


def test_an_up_to_date_file_is_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (copy / "MODELS.md").read_bytes()
    tried = failing(monkeypatch)
    assert models.make([target()], copy / "dist", copy / "MODELS.md") == 0
    assert not tried and (copy / "MODELS.md").read_bytes() == before


@pytest.mark.parametrize("change", ["file", "missing", "manifest", "force"])
def test_what_is_made_again(copy: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    path, manifest = copy / "dist" / f"{NAME}-fp32.onnx", copy / "dist" / "manifest.json"
    if change == "file":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "missing":
        path.unlink()
    elif change == "manifest":
        manifest.write_text("[1")
    tried = failing(monkeypatch)
    assert models.make([target()], copy / "dist", copy / "MODELS.md", force=change == "force") == 1
    assert tried == [NAME]
    assert not path.exists(), "no file that the table does not describe"
    row = (copy / "MODELS.md").read_text().splitlines()[-1]
    assert "| - | - | not written: max error 1 / expected 0.1 | - | - |" in row
    assert (copy / "dist" / "SHA256SUMS").read_text() == ""
    assert json.loads(manifest.read_text())[path.name]["reason"]
    assert models.make([target()], copy / "dist", copy / "MODELS.md") == 0, "a failure is a result, too"


def test_the_key_is_of_recipe_weights_settings_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = target()
    suffixes = (".toml", ".safetensors")
    for suffix in suffixes:
        (tmp_path / f"copy{suffix}").write_bytes(first.model.weights_path.with_suffix(suffix).read_bytes())
    other = replace(first, model=replace(first.model, weights_path=tmp_path / "copy.safetensors"))
    assert other.key() == first.key(), "of the content, not of the place"
    keys = {first.key(), target("fp16").key(), target("int8").key(), target(functions="inline").key()}
    for suffix in suffixes:
        with (tmp_path / f"copy{suffix}").open("ab") as file:
            file.write(b"\n")
        keys.add(other.key())
    monkeypatch.setattr(models, "versions", lambda: "stn-infer 9")
    keys.add(first.key())
    assert len(keys) == 7


def test_every_model_precision_and_way_has_a_file_of_its_own() -> None:
    files = [each.file for each in models.targets()]
    assert len(set(files)) == len(files) == 6 * len(models.SHIPPED)


@pytest.mark.slow
def test_int8_is_calibrated_on_distorted_training_digits(tmp_path: Path) -> None:
    folder = models._calibration(target().model, tmp_path)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(first) == models.CALIBRATION_SAMPLES and len(set(first.values())) == len(first)
    models._calibration(target().model, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    tried = failing(monkeypatch)
    with pytest.raises(OutputError, match=r"cannot make the folder .*Not a directory"):
        models.make([target()], tmp_path / "file" / "dist", tmp_path / "MODELS.md")
    with pytest.raises(OutputError, match="no such folder"):
        models.make([target()], tmp_path / "dist", tmp_path / "none" / "MODELS.md")
    assert not tried, "before anything is exported"
    script = str(ROOT / "export" / "models.py")
    monkeypatch.setattr(sys, "argv", [script, "-o", str(tmp_path / "file" / "dist")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert str(end.value).startswith("error: cannot make the folder ") and "\n" not in str(end.value)
