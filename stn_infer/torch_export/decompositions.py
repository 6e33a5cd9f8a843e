"""Replaces operators without an ONNX form by operators that have one, with PyTorch's own decomposition pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from stn_infer.errors import ExportError
from stn_infer.torch_export.origin import calls, function_of, is_matrix_function, place_of

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node


def decompose(program: ExportedProgram, name: str) -> ExportedProgram:
    """Replaces the operators of :func:`_table` that the program uses; the program itself if it uses none.

    Raises:
        ExportError: a matrix to be inverted is larger than 8x8 or of dynamic size.
    """
    table = _table()
    used = {node.target for node in calls(program) if node.target in table}
    if not used:
        return program
    for node in calls(program):
        _check_matrix(node, name)
    replaced: ExportedProgram = program.run_decompositions({target: table[target] for target in used})
    return replaced


@cache
def _table() -> Mapping[Any, Callable[..., Any]]:
    """The decompositions by operator."""
    import torch

    from stn_infer.torch_export import linear_algebra as matrices
    from stn_infer.torch_export.pooling import adaptive_average, adaptive_maximum

    aten = torch.ops.aten

    def inverse(matrix: torch.Tensor) -> torch.Tensor:
        return matrices.inverse_ex(matrix)[0]

    def inverse_ex(matrix: torch.Tensor, *, check_errors: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return matrices.inverse_ex(matrix)

    def solve(matrix: torch.Tensor, right: torch.Tensor, *, left: bool = True) -> torch.Tensor:
        return matrices.solve_ex(matrix, right, left)[0]

    def solve_ex(
        matrix: torch.Tensor, right: torch.Tensor, *, left: bool = True, check_errors: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return matrices.solve_ex(matrix, right, left)

    # Programs that were decomposed before they were saved have the operators with an underscore. They return the
    # factorization too, of which _check_matrix makes sure that nothing uses it.
    def solve_lu(
        matrix: torch.Tensor, right: torch.Tensor, *, left: bool = True, check_errors: bool = False
    ) -> tuple[torch.Tensor, ...]:
        solved, info = matrices.solve_ex(matrix, right, left)
        return solved, matrix.clone(), matrix[..., 0].to(torch.int32), info

    def determinant(matrix: torch.Tensor) -> Any:
        # ONNX has Det, which runtimes other than onnxruntime lack
        return matrices.determinant(matrix) if _is_small(matrix.shape) else NotImplemented

    def determinant_lu(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return matrices.determinant(matrix), matrix.clone(), matrix[..., 0].to(torch.int32)

    def log_determinant_lu(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return *matrices.signed_log_determinant(matrix), matrix.clone(), matrix[..., 0].to(torch.int32)

    def log_determinant(matrix: torch.Tensor) -> torch.Tensor:
        sign, size = matrices.signed_log_determinant(matrix)
        return torch.where(sign < 0, torch.nan, size).to(matrix.dtype)

    def average(image: torch.Tensor, output_size: Sequence[int]) -> Any:
        return adaptive_average(image, output_size) if _is_uneven(image.shape, output_size) else NotImplemented

    def maximum(image: torch.Tensor, output_size: Sequence[int]) -> Any:
        return adaptive_maximum(image, output_size) if _is_uneven(image.shape, output_size) else NotImplemented

    return {
        aten.inverse.default: inverse,
        aten.linalg_inv.default: inverse,
        aten.linalg_inv_ex.default: inverse_ex,
        aten.linalg_solve.default: solve,
        aten.linalg_solve_ex.default: solve_ex,
        aten._linalg_solve_ex.default: solve_lu,
        aten.det.default: determinant,
        aten.linalg_det.default: determinant,
        aten._linalg_det.default: determinant_lu,
        aten.slogdet.default: matrices.signed_log_determinant,
        aten.linalg_slogdet.default: matrices.signed_log_determinant,
        aten._linalg_slogdet.default: log_determinant_lu,
        aten.logdet.default: log_determinant,
        aten.adaptive_avg_pool1d.default: average,
        aten.adaptive_avg_pool2d.default: average,
        aten._adaptive_avg_pool2d.default: average,
        aten.adaptive_avg_pool3d.default: average,
        aten._adaptive_avg_pool3d.default: average,
        aten.adaptive_max_pool1d.default: maximum,
        aten.adaptive_max_pool2d.default: maximum,
        aten.adaptive_max_pool3d.default: maximum,
    }


def _is_uneven(shape: Sequence[Any], output_size: Sequence[int]) -> bool:
    """Whether the windows of a fixed input size differ in size, which ONNX's pooling cannot express."""
    sizes = shape[-len(output_size) :]
    return all(isinstance(size, int) for size in sizes) and any(
        size % out for size, out in zip(sizes, output_size, strict=True)
    )


def _is_small(shape: Sequence[Any]) -> bool:
    from stn_infer.torch_export.linear_algebra import LARGEST

    return isinstance(shape[-1], int) and shape[-1] <= LARGEST


def _check_matrix(node: Node, name: str) -> None:
    from stn_infer.torch_export.linear_algebra import LARGEST

    function = function_of(node)
    if not is_matrix_function(node) or node.target not in _table():
        return
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    size = shape[-1]
    if function not in ("det", "linalg_det") and not _is_small(shape):
        kind = f"{size}x{size} matrix" if isinstance(size, int) else "matrix of dynamic size"
        raise ExportError(
            f"{name}: {function} of a {kind} that depends on the input{place_of(node)} has no ONNX form; up to "
            f"{LARGEST}x{LARGEST} is exported"
        )
    factorization = {"_linalg_solve_ex": (1, 2), "_linalg_det": (1, 2), "_linalg_slogdet": (2, 3)}.get(function, ())
    for user in node.users:
        if user.target is operator.getitem and user.args[1] in factorization and user.users:
            raise ExportError(f"{name}: the LU factors that {function} returns{place_of(node)} have no ONNX form")
