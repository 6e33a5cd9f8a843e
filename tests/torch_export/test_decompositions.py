"""Operators without an ONNX form: exported, right, or refused in a sentence that names the line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ExportError
from stn_infer.quiet import quiet
from stn_infer.torch_export.decompositions import decompose
from stn_infer.torch_export.origin import calls, function_of
from stn_infer.torch_export.plain import export_plain, sample_batch


class Small(nn.Module):
    """Each function once."""

    def forward(self, x: Tensor, volume: Tensor) -> dict[str, Tensor]:
        inverse, info = torch.linalg.inv_ex(x[:, :2, :2])
        return {
            "inverse": inverse,
            "info": info,
            "solved": torch.linalg.solve(x, x[:, 0]),
            "det": torch.linalg.det(x[:, :2, :2]),
            "average": F.adaptive_avg_pool3d(volume, (2, 1, 3)),
            "maximum": F.adaptive_max_pool3d(volume, (2, 1, 3)),
        }


class More(nn.Module):
    """The other spellings."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        sign, size = torch.linalg.slogdet(x)
        solved = torch.linalg.solve_ex(x, x[..., :2]).result
        return {
            "inverse": torch.inverse(x),
            "method": x.mT.inverse(),
            "inv": torch.linalg.inv(x),
            "solved": solved,
            "right": torch.linalg.solve(x, x[:, :2], left=False),
            "det": torch.det(x),
            "sign": sign,
            "size": size,
            "logdet": torch.logdet(0.1 * x + torch.eye(3)),
            "plane": F.adaptive_avg_pool2d(x[:, None], (2, 3)),
            "line": F.adaptive_max_pool1d(x, 2),
        }


def check(module: nn.Module, *shapes: tuple[int, ...]) -> set[str]:
    """Exports, compares with float64 at batches of 3 and 0, and returns the file's operators."""
    model = export_plain(module.eval(), shapes)
    backend = OrtBackend(model.SerializeToString(), threads=1)
    inputs = sample_batch(shapes, 3)
    names = [spec.name for spec in backend.inputs]
    found = backend.run({name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    wanted = module.double()(*(value.double() for value in inputs))
    for name, value in wanted.items():
        scale = float(value.abs().max()) or 1
        np.testing.assert_allclose(found[name] / scale, value.numpy() / scale, atol=2e-5, err_msg=name)
    empty = backend.run({name: value.numpy()[:0] for name, value in zip(names, inputs, strict=True)})
    assert [value.shape for value in empty.values()] == [(0, *value.shape[1:]) for value in wanted.values()]
    return {node.op_type for node in model.graph.node}


def test_matrices_and_volumes() -> None:
    operators = check(Small(), (3, 3), (2, 5, 4, 7))
    assert not operators & {"Det", "Loop", "If", "Scan"}


@pytest.mark.slow
def test_every_spelling() -> None:
    assert "Det" not in check(More(), (3, 3))


@pytest.mark.slow
def test_a_singular_sample_gives_inf_or_nan_and_leaves_the_others() -> None:
    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.inverse()

    backend = OrtBackend(export_plain(Inverse().eval(), [(2, 2)]).SerializeToString(), threads=1)
    x = np.array([[[1, 2], [2, 4]], [[2, 0], [0, 4]]], np.float32)
    (found,) = backend.run({"x": x}).values()
    assert not np.isfinite(found[0]).any()
    np.testing.assert_array_equal(found[1], [[0.5, 0], [0, 0.25]])


class Large(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(x)  # line of the large one


class Factors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


def test_larger_matrices_are_refused_with_the_line() -> None:
    message = r"inv of a 9x9 matrix .* \(test_decompositions.py, line \d+: return torch.linalg.inv\(x\).* up to 8x8"
    with pytest.raises(ExportError, match=message):
        export_plain(Large().eval(), [(9, 9)])


def test_an_operator_without_an_onnx_form_is_named_with_its_line() -> None:
    message = r"the operator aten\.\w*svd\w* \(test_decompositions.py, line \d+: .*\) has no ONNX form"
    with pytest.raises(ExportError, match=message):
        export_plain(Factors().eval(), [(3, 3)])


def test_programs_that_were_decomposed_before() -> None:
    class Solved(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.linalg.solve(x, x[..., :1] + 1), torch.linalg.det(x)

    x = 0.1 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)) + torch.eye(3)
    with quiet():
        program = torch.export.export(Solved(), (x,)).run_decompositions()
    assert {"_linalg_solve_ex", "_linalg_det"} <= {function_of(node) for node in calls(program)}
    with quiet():
        replaced = decompose(program, "net").module()
    for found, wanted in zip(replaced(x), Solved()(x), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_factors_that_some_functions_return_are_refused() -> None:
    class Factors(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten._linalg_det(x)[1]  # type: ignore[no-any-return]

    with quiet():
        program = torch.export.export(Factors(), (torch.randn(2, 3, 3),))
    with pytest.raises(ExportError, match=r"the LU factors that _linalg_det returns"):
        decompose(program, "net")
