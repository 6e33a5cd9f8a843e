"""The public names of ``stn_infer``, and that importing it imports no heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import stn_infer
from tests.support.paths import ROOT

PUBLIC = [
    "Backend",
    "BatchPredictor",
    "BenchResult",
    "BestReport",
    "Budget",
    "BuildOptions",
    "BuildReport",
    "Comparison",
    "Diagnosis",
    "EngineReport",
    "Evaluation",
    "ExportReport",
    "LintFinding",
    "LintReport",
    "LoadedModel",
    "ModelMetadata",
    "OptimizeReport",
    "Prediction",
    "Predictions",
    "Predictor",
    "Preprocess",
    "RefitReport",
    "RunSummary",
    "ShowReport",
    "SpatialTransformer",
    "StnInferError",
    "TritonReport",
    "Verification",
    "__version__",
    "bench",
    "best",
    "build",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "inspect_engine",
    "lint",
    "load_source",
    "open_backend",
    "optimize",
    "read_metadata",
    "refit",
    "run",
    "show",
    "triton",
    "verify",
    "write_metadata",
]
HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "numpy", "PIL", "rich", "pyarrow", "matplotlib", "tensorrt"}


def test_public_names() -> None:
    assert stn_infer.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(stn_infer, name) is not None
    assert set(PUBLIC) <= set(dir(stn_infer))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = stn_infer.exprot  # type: ignore[attr-defined]


def imported_by(code: str) -> set[str]:
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return {name.partition(".")[0] for name in json.loads(output.splitlines()[-1])}


def test_importing_imports_no_heavy_packages() -> None:
    assert not HEAVY & imported_by("import stn_infer; stn_infer.StnInferError; stn_infer.Preprocess")


def test_help_imports_no_heavy_packages() -> None:
    code = "from stn_infer.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass"
    assert not HEAVY & imported_by(code)


def test_the_checkout_is_not_in_the_packages_search_path() -> None:
    """``stn_infer.export`` would be the checkout's folder export in an editable install."""
    assert str(ROOT) not in list(stn_infer.__path__)


def test_no_module_hides_a_public_function() -> None:
    """Importing a submodule sets its name on the package: ``stn_infer.verify`` must remain the function."""
    code = (
        "import pkgutil, importlib, stn_infer\n"
        "functions = {name for name in stn_infer.__all__ if callable(getattr(stn_infer, name))}\n"
        "modules = {module.name for module in pkgutil.iter_modules(stn_infer.__path__)}\n"
        "assert not functions & modules, functions & modules\n"
        "import stn_infer.cli.verify, stn_infer.cli.bench, stn_infer.api.export, stn_infer.verification.model\n"
        "assert callable(stn_infer.verify) and callable(stn_infer.bench)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
