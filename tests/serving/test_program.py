"""model.py of the Python platform, run as Triton's Python backend runs it, but for the server."""

from __future__ import annotations

import ast
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stn_infer.activation import Scores
from stn_infer.arrays import Array
from stn_infer.backends.ort import OrtBackend
from stn_infer.predictions import Classifier
from stn_infer.serving.repository import files_of, program_text
from stn_infer.serving.service import Classes, Service
from tests.support.served_models import LABELS, classifier


@dataclass
class Tensor:
    name: str
    values: Array

    def as_numpy(self) -> Array:
        return self.values


@dataclass
class Response:
    output: list[Tensor] = field(default_factory=list)
    error: str | None = None

    def arrays(self) -> dict[str, Array]:
        assert self.error is None
        return {tensor.name: tensor.values for tensor in self.output}


def loaded(folder: Path, scores: Scores = Scores(), top_k: int = 2, **model: Any) -> tuple[Any, OrtBackend]:  # noqa: B008
    """An initialized model of a repository that is written to ``folder``, and the same model as ``run`` opens it."""
    content = classifier(**model).SerializeToString()
    backend = OrtBackend(content, plugin=False)
    classes = Classes.of(backend.outputs, scores, top_k, LABELS)
    service = Service(name="m", inputs=backend.inputs, outputs=backend.outputs, classes=classes, threads=1)
    (folder / "1").mkdir()
    for name, text in files_of(service, Path("/served/m")).items():
        (folder / name).write_text(text)
    (folder / "1" / "model.onnx").write_bytes(content)
    server = types.ModuleType("triton_python_backend_utils")
    server.Tensor, server.InferenceResponse, server.TritonError = Tensor, Response, str  # type: ignore[attr-defined]
    server.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])  # type: ignore[attr-defined]
    path = folder / "1" / "model.py"
    module = types.ModuleType("model")
    module.__file__ = str(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", server)
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    program = module.TritonPythonModel()
    config = {"parameters": {"threads": {"string_value": "1"}}}
    program.initialize({"model_config": json.dumps(config), "model_instance_kind": "CPU"})
    return program, backend


def requests(*sizes: int, seed: int = 0) -> list[dict[str, Array]]:
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal((size, 2, 3)).astype(np.float32)} for size in sizes]


def expected(backend: OrtBackend, scores: Scores, given: Mapping[str, Array], top_k: int) -> dict[str, Array]:
    """What ``run`` says of the same samples."""
    found = backend.run(given)
    ranked = Classifier(scores, LABELS, top_k).rank(found["scores"])
    rows = [[candidate.label for candidate in ranked.shown(row)] for row in range(len(ranked))]
    labels = [[str(label).encode() for label in row] for row in rows]
    return found | {"prediction": ranked.order, "confidence": ranked.values, "label": np.array(labels, object)}


def test_it_imports_only_what_the_server_has() -> None:
    tree = ast.parse(program_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {"numpy", "numpy.typing", "onnxruntime", "triton_python_backend_utils"}


@pytest.mark.parametrize("scores", [Scores(), Scores("none"), Scores("softmax", applied=True)])
def test_joined_requests_get_what_run_gives(tmp_path: Path, scores: Scores) -> None:
    program, backend = loaded(tmp_path, scores)
    runs: list[int] = []
    session = program._session.run
    program._session = types.SimpleNamespace(run=lambda names, feeds: runs.append(1) or session(names, feeds))
    given = requests(1, 5, 2)
    answers = program.execute(given)
    assert len(runs) == 1  # of three requests
    for request, answer in zip(given, answers, strict=True):
        wanted = expected(backend, scores, request, 2)
        found = answer.arrays()
        assert found.keys() == wanted.keys() == {"scores", "extra", "prediction", "label", "confidence"}
        for name, values in wanted.items():
            assert found[name].dtype == values.dtype and found[name].flags.c_contiguous
            np.testing.assert_array_equal(found[name], values)


def test_nan_fails_its_own_request_only(tmp_path: Path) -> None:
    program, backend = loaded(tmp_path)
    good, bad, other = requests(1, 2, 1)
    bad["x"][1, 0, 0] = np.nan
    first, failed, last = program.execute([good, bad, other])
    assert failed.error == "the model's output 'scores' contains NaN for row 1"
    for request, answer in ((good, first), (other, last)):
        np.testing.assert_array_equal(answer.arrays()["scores"], backend.run(request)["scores"])


def test_a_request_that_the_model_refuses_fails_alone(tmp_path: Path) -> None:
    program, backend = loaded(tmp_path)
    (good,) = requests(2)
    wrong = {"x": np.zeros((1, 2, 5), np.float32)}
    answer, failed = program.execute([good, wrong])
    np.testing.assert_array_equal(answer.arrays()["scores"], backend.run(good)["scores"])
    assert "x" in failed.error and "\n" not in failed.error


def test_a_gpu_that_onnxruntime_cannot_use_is_an_error(tmp_path: Path) -> None:
    program, _ = loaded(tmp_path)
    config = json.dumps({"parameters": {"threads": {"string_value": "1"}}})
    given = {"model_config": config, "model_instance_kind": "GPU", "model_instance_device_id": "97"}
    with pytest.raises(Exception, match=r"CUDA|97"):
        program.initialize(given)
