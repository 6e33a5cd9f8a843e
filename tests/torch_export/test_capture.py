"""Code that cannot be captured: the message names the line; a batch that the code fixes is exported as fixed."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ExportError
from stn_infer.metadata import ModelMetadata
from stn_infer.quiet import quiet
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.capture import capture
from stn_infer.torch_export.plain import export_plain, export_program


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 10:  # the line that decides
            x = x / 10
        return x


class Loops(nn.Module):
    """One sample after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[i] * (x[i].mean() + 1) for i in range(x.shape[0])])


def loaded(module: nn.Module, fixed_batch: int | None = None) -> LoadedModel:
    return LoadedModel("net", module.eval(), ((4,),), ModelMetadata(), "factory", fixed_batch)


def test_a_branch_on_data_is_refused_with_its_line() -> None:
    message = (
        r"net: .* decides by the values of a tensor \(test_capture.py, line \d+: if x.abs\(\).max\(\) > 10: "
        r"# the line that decides\).*torch.where"
    )
    with pytest.raises(ExportError, match=message):
        export_program(loaded(Decides()))


@pytest.mark.slow
def test_a_loop_over_the_batch_is_exported_with_a_fixed_batch() -> None:
    exported = export_program(loaded(Loops()))
    assert exported.fixed_batch == 1
    (note,) = exported.notes
    assert "needs a fixed batch (test_capture.py, line" in note and "batch of 1" in note
    x = torch.randn(5, 4)
    (found,) = OrtBackend(exported.model.SerializeToString(), threads=1).run({"x": x.numpy()}).values()
    np.testing.assert_allclose(found, Loops()(x).numpy(), rtol=1e-6)


class Lengths(nn.Module):
    """Python makes the length of a tensor a number; the size of the grid is one of them."""

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(x[:, :6].view(-1, 2, 3), [len(x), 1, 2, 3], align_corners=False)
        return F.grid_sample(x[:, None, 6:].reshape(len(x), 1, 2, 3), grid, align_corners=False)


def test_the_length_of_a_tensor_is_dynamic() -> None:
    exported = export_program(LoadedModel("net", Lengths().eval(), ((12,),), ModelMetadata(), "factory"))
    assert exported.fixed_batch is None and exported.notes == ()
    x = torch.randn(5, 12)
    (found,) = OrtBackend(exported.model.SerializeToString(), threads=1).run({"x": x.numpy()}).values()
    np.testing.assert_allclose(found, Lengths()(x).numpy(), atol=1e-5)
    assert len(x) == 5 and builtins.len.__name__ == "len"


class Counts(nn.Module):
    """A number of samples is needed before the model runs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * scale for row, scale in zip(x, range(len(x)), strict=True)])


@pytest.mark.slow
def test_a_batch_that_is_a_number_is_told_in_a_sentence() -> None:
    exported = export_program(loaded(Counts()))
    (note,) = exported.notes
    assert exported.fixed_batch == 1 and "TORCH_LOGS" not in note and "needs a fixed batch (" in note


class Guards(nn.Module):
    """A recurrent cell and a running sum: PyTorch guards that the batch is not 1, which does not fix it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, x.shape[0], 3)
        for _ in range(2):
            out, state = self.cell(x[:, None], state)
        return out.squeeze(1)


@pytest.mark.slow
def test_a_guard_on_the_batch_does_not_fix_it() -> None:
    from torch.export import Dim

    with quiet():
        program = capture(Guards().eval(), [torch.randn(2, 4)], ({0: Dim("batch")},))
    (shape,) = [node.meta["val"].shape for node in program.graph.nodes if node.name == "x"]
    assert isinstance(shape[0], torch.SymInt)


def test_a_plain_export_has_a_dynamic_batch() -> None:
    with pytest.raises(ExportError, match="needs a fixed batch"):
        export_plain(Loops().eval(), [(4,)], "net")
