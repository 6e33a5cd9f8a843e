"""Export with PyTorch's exporter: inputs and outputs of every kind have the right names and values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ExportError
from stn_infer.torch_export.plain import export_plain

SHAPE = (3, 4)
Function = Callable[[Tensor], object]


class Model(nn.Module):
    """A linear layer ``head``; ``result`` computes the outputs from the input and the features."""

    def __init__(self, result: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.result = result

    def forward(self, x: Tensor) -> object:
        return self.result(x, self.head(x))


def exported(module: nn.Module, inputs: int = 1) -> tuple[list[str], list[str]]:
    """Exports a module, checks that the file computes the same, and returns the names of inputs and outputs."""
    module.eval()
    backend = OrtBackend(export_plain(module, [SHAPE] * inputs).SerializeToString(), threads=1)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(5, *SHAPE, generator=generator) for _ in range(inputs)]
    found = backend.run({spec.name: value.numpy() for spec, value in zip(backend.inputs, given, strict=True)})
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(module(*given))
    assert len(found) == len(wanted)
    for name, value in zip(found, wanted, strict=True):
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-5, err_msg=name)
    return [spec.name for spec in backend.inputs], list(found)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (lambda x, y: {"z": y, "a": x + 1}, ["z", "a"]),
        # names that other tensors of the graph have, including weights and inputs
        (lambda x, y: {"linear": x * 2, "val_0": y, "add": x + 1}, ["linear", "val_0", "add"]),
        (lambda x, y: {"x": y, "head.weight": x + 1}, ["x_out", "head.weight"]),
        (lambda x, y: {0: y, "0": x + 1, "": x - 1}, ["0", "0_out", "output_2"]),
        (lambda x, y: {"a": {"b": y}, "c": [x + 1]}, ["a", "c"]),
        (lambda x, y: (y, {"a": x + 1}), ["output_0", "output_1"]),
    ],
)
def test_outputs_are_named_by_their_keys(result: Callable[[Tensor, Tensor], object], names: list[str]) -> None:
    assert exported(Model(result)) == (["x"], names)


def test_an_input_with_the_default_output_name() -> None:
    class Named(nn.Module):
        def forward(self, output: Tensor) -> Tensor:
            return output * 2

    assert exported(Named()) == (["output"], ["output_out"])


def test_any_number_of_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, first: Tensor, *others: Tensor) -> Tensor:
            return first - sum(others)  # type: ignore[return-value]

    inputs, _ = exported(Sum(), inputs=3)
    assert inputs[0] == "first" and len(inputs) == 3
    assert len(exported(Sum())[0]) == 1


def test_complex_outputs_are_rejected() -> None:
    with pytest.raises(ExportError, match=r"complex outputs are not supported.*view_as_real"):
        export_plain(Model(lambda x, y: torch.fft.fft(y)), [SHAPE])
