"""Extras: what is told to install them names no index that lacks this package, and ONNX files run without PyTorch."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import stn_infer
from stn_infer import extras
from stn_infer.errors import MissingDependencyError
from tests.support.paths import ROOT
from tests.support.shared import exported, portable

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
METADATA = [
    "click>=8.1",
    "matplotlib>=3.9; extra == 'report'",
    "onnxruntime>=1.22; extra == 'cpu'",
    'torch>=2.9 ; extra=="export"',
    "onnxscript>=0.5; extra == 'export'",
    "stn-infer[export,report]; extra == 'train'",
    "h5py>=3.11; extra == 'train'",
]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package came from a wheel, with METADATA."""
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: METADATA)


def test_in_a_checkout_its_extra_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert extras.install("report") == "pip install -e '.[report]'"
    gone = tmp_path / "gone"
    for folder in (tmp_path, gone):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        if folder == gone:
            gone.rmdir()
        assert extras.install("report") == f"pip install -e '{ROOT}[report]'"
    monkeypatch.chdir(ROOT)


def test_a_stray_pyproject_makes_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    assert extras.checkout() is None
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "CMakeLists.txt").touch()
    assert extras.checkout() == tmp_path


@pytest.mark.parametrize(
    "extra, command",
    [
        ("report", "pip install 'matplotlib>=3.9'"),
        ("cpu", "pip install 'onnxruntime>=1.22'"),
        ("export", "pip install 'torch>=2.9' 'onnxscript>=0.5'"),
        ("train", "pip install 'torch>=2.9' 'onnxscript>=0.5' 'matplotlib>=3.9' 'h5py>=3.11'"),
        ("none", "install stn-infer again, with its extra 'none'"),
    ],
)
def test_of_a_wheel_the_packages_are_named(extra: str, command: str, wheel: None) -> None:
    assert extras.install(extra) == command


def test_without_metadata_no_command_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert extras.install("cpu") == "install stn-infer again, with its extra 'cpu'"


def test_every_extra_that_is_named_exists() -> None:
    known = set(PROJECT["optional-dependencies"])
    assert {extra for extra, _ in extras.MODULES.values()} <= known
    named = re.compile(r"""(?:\binstall\(["']([\w-]+)["']\)|pip install -e '\.\[([\w,-]+)\]')""")
    folders = ("stn_infer", "benchmarks", "export", "examples", "docs", "tests/fuzz")
    paths = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".ipynb")
    ]
    for path in (*paths, *ROOT.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for found in named.finditer(text):
            assert set((found[1] or found[2]).split(",")) <= known, (path, found[0])
        assert not re.search(r"pip install \S*stn-infer\[", text), f"{path} names an index that has no stn-infer"


def test_the_base_collides_with_no_onnxruntime_and_has_no_pytorch() -> None:
    heavy = ("torch", "onnxscript", *extras.ONNXRUNTIMES)
    assert not [it for it in PROJECT["dependencies"] if re.split(r"[<>=\[]", it)[0] in heavy]


def test_modules_are_found_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras.is_installed("numpy") and not extras.is_installed("no_such_module")
    assert not extras.is_installed("no_such_module.part")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not extras.is_installed("matplotlib")
    with pytest.raises(MissingDependencyError, match="pictures need matplotlib, which is not installed; pip install"):
        extras.require("matplotlib", "pictures need")


def test_a_failed_import_of_another_module_is_not_explained() -> None:
    assert extras.of_import(ModuleNotFoundError("x", name="lmdb")) is None
    assert extras.of_import(ModuleNotFoundError("x")) is None


def test_the_onnxruntimes_here_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(extras.onnxruntimes()) <= set(extras.ONNXRUNTIMES)
    versions = {"onnxruntime": "1.0", "onnxruntime-gpu": "1.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert extras.onnxruntimes() == versions


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: stn_infer.export("st-cnn-affine-rts", folder / "model.onnx"),
        lambda folder: stn_infer.load_source("st-cnn-affine-rts"),
        lambda folder: stn_infer.run("st-cnn-affine-rts", [folder], folder / "out"),
        lambda folder: stn_infer.verify("model.onnx"),
        lambda folder: stn_infer.bench("model.onnx", threads=1),
        lambda folder: stn_infer.open_backend(portable("st-cnn-affine-rts").SerializeToString(), backend="tensorrt"),
    ],
)
def test_what_needs_pytorch_says_how_to_get_it(call: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        MissingDependencyError, match=r"PyTorch, which is not installed; " + re.escape(extras.install("export"))
    ):
        call(tmp_path)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


#: Every import of what the extra export has fails, in this process and its children.
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_onnx_files_run_without_pytorch(tmp_path: Path) -> None:
    """run, its Python form, eval, lint, optimize and metadata of a file, where the extra export is not installed."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (3, 42, 42), np.uint8))
    model = tmp_path / "model.onnx"
    model.write_bytes(exported("st-cnn-affine-rts"))
    program = f"""
import stn_infer, sys
model = {str(model)!r}
print(stn_infer.run(model, ["images.npy"], "out"))
with stn_infer.Predictor(model) as predictor:
    print([it.label for it in predictor("images.npy")])
print(stn_infer.lint(model))
print(stn_infer.optimize(model, "optimized.onnx"))
assert stn_infer.read_metadata(model).labels
assert not {{"torch", "onnxscript", "safetensors"}} & set(sys.modules)
try:
    stn_infer.SpatialTransformer
except stn_infer.StnInferError as error:
    print(error)
"""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "STN_TRIAL_SECONDS": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 inputs: 3 predicted, 0 failed" in done.stdout and "0 of 0 samplers fused" in done.stdout
    assert "this needs PyTorch, which is not installed; pip install -e" in done.stdout
