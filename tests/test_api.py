"""What ``import stn_infer`` promises: these names, and nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import stn_infer

PUBLIC = [
    "Backend",
    "BenchResult",
    "ExportReport",
    "LoadedModel",
    "Preprocess",
    "RunSummary",
    "SpatialTransformer",
    "StnInferError",
    "Verification",
    "__version__",
    "bench",
    "export",
    "load_source",
    "open_backend",
    "run",
    "verify",
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


def test_importing_is_light() -> None:
    assert not HEAVY & imported_by("import stn_infer; stn_infer.StnInferError; stn_infer.Preprocess")


def test_help_is_light() -> None:
    code = "from stn_infer.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass"
    assert not HEAVY & imported_by(code)
