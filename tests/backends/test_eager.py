"""The PyTorch backend: names, shapes, float64, compile, and errors in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stn_infer.api.open import open_backend
from stn_infer.backends.base import Backend
from stn_infer.backends.eager import EagerBackend
from stn_infer.errors import InputError, MissingDependencyError, ModelError
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.load import LoadedModel


def loaded(module: nn.Module, *input_shapes: tuple[int, ...], fixed_batch: int | None = None) -> LoadedModel:
    """A module as loaded from a source."""
    return LoadedModel("toy", module.eval(), input_shapes, ModelMetadata(), "factory", fixed_batch)


class Two(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
        return {"sum": a + b, "rest": (-a, [b.flatten(1)])}


def test_one_input_and_one_output() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    backend = EagerBackend(loaded(module, (3,)))
    assert isinstance(backend, Backend)
    assert [(spec.name, spec.shape) for spec in (*backend.inputs, *backend.outputs)] == [
        ("input", (None, 3)),
        ("output", (None, 2)),
    ]
    x = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    expected = x @ module.weight.detach().numpy().T + module.bias.detach().numpy()
    np.testing.assert_allclose(backend.run({"input": x})["output"], expected, rtol=1e-6)
    assert backend.run({"input": x[:0]})["output"].shape == (0, 2)


def test_several_inputs_and_nested_outputs_are_named_by_their_keys() -> None:
    backend = open_backend(loaded(Two(), (2, 2), (2, 2)), backend="eager")
    a, b = np.ones((1, 2, 2), np.float32), np.full((1, 2, 2), 2, np.float32)
    outputs = backend.run({"a": a, "b": b})
    assert list(outputs) == ["sum", "rest.0", "rest.1"]
    np.testing.assert_array_equal(outputs["sum"], a + b)
    np.testing.assert_array_equal(outputs["rest.1"], b.reshape(1, 4))


def test_names_are_those_of_the_exported_file() -> None:
    from stn_infer.torch_export.plain import export_plain

    module = Two().eval()
    backend = EagerBackend(loaded(module, (2, 2), (2, 2)))
    model = export_plain(module, ((2, 2), (2, 2)))
    assert [spec.name for spec in backend.inputs] == [value.name for value in model.graph.input]
    assert [spec.name for spec in backend.outputs] == [value.name for value in model.graph.output]


class OnlyThree(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(3, 2) * 2


@pytest.mark.parametrize("count", [0, 2, 3, 7])
def test_a_fixed_batch_size_is_run_in_chunks(count: int) -> None:
    backend = EagerBackend(loaded(OnlyThree(), (2,), fixed_batch=3))
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    np.testing.assert_array_equal(backend.run({"x": x})["output"], 2 * x)


def test_read_only_and_strided_inputs_are_supported() -> None:
    backend = EagerBackend(loaded(nn.Identity(), (3,)))
    x = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    x.setflags(write=False)
    np.testing.assert_array_equal(backend.run({"input": x})["output"], x)


def test_wrong_inputs_and_failures_are_one_line() -> None:
    backend = EagerBackend(loaded(nn.Linear(3, 2), (3,)))
    with pytest.raises(InputError, match=r"takes shape \[\?, 3\], given \[1, 4\]"):
        backend.run({"input": np.zeros((1, 4), np.float32)})
    with pytest.raises(ModelError, match="toy fails in PyTorch") as caught:
        EagerBackend(loaded(nn.Linear(3, 2), (5,)))
    assert "\n" not in str(caught.value)
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        backend.run({"input": np.zeros((1, 3), np.float32)})


class Strange(nn.Module):
    def forward(self, x: torch.Tensor) -> str:
        return "not a tensor"


def test_a_result_that_is_not_a_tensor_is_rejected() -> None:
    with pytest.raises(ModelError, match="returns str"):
        EagerBackend(loaded(Strange(), (1,)))


def test_cuda_without_a_gpu_says_why() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingDependencyError, match="this PyTorch"):
        EagerBackend(loaded(nn.Identity(), (1,)), device="cuda")


@pytest.mark.slow
def test_compile_equals_eager() -> None:
    torch.manual_seed(0)
    model = loaded(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), (3,))
    x = {"input": np.random.default_rng(0).random((4, 3), dtype=np.float32)}
    compiled = EagerBackend(model, compile=True)
    assert compiled.name == "compile"
    np.testing.assert_allclose(compiled.run(x)["output"], EagerBackend(model).run(x)["output"], rtol=1e-5)
