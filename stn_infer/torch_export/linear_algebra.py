"""Inverse, linear solve and determinant of small matrices in operators that every runtime has.

Gaussian elimination with partial pivoting (G. Golub and C. Van Loan, Matrix Computations, 3.4), unrolled over the
columns: the algorithm of LAPACK's getrf and getrs, hence of PyTorch's own functions, with their accuracy. A formula
with cofactors is shorter, but less exact where two singular values are small. The pivot is a tensor: ArgMax finds it,
GatherElements fetches its row.

Eager PyTorch raises an error for a singular matrix; here the result is inf or NaN, and ``info`` is the number of the
first zero pivot, as in PyTorch's ``inv_ex`` and ``solve_ex``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: The largest matrix; n x n takes about 20 n nodes.
LARGEST = 8


@dataclass(frozen=True)
class _Eliminated:
    """An upper triangular system U x = right.

    Attributes:
        rows: row k of U and of the right-hand side from column k on, [..., 1, n - k + m].
        odd: whether the rows were swapped an odd number of times, bool [...].
    """

    rows: tuple[Tensor, ...]
    odd: Tensor

    @property
    def pivots(self) -> list[Tensor]:
        """The diagonal of U, each [...]."""
        return [row[..., 0, 0] for row in self.rows]


def _eliminate(matrix: Tensor, right: Tensor | None) -> _Eliminated:
    """Eliminates the columns of ``matrix`` [..., n, n] beside ``right`` [..., n, m]."""
    size = matrix.shape[-1]
    rest = matrix if right is None else torch.cat([matrix, right], -1)  # [..., n - k, n - k + m] in step k
    rows = []
    odd = torch.zeros(matrix.shape[:-2], dtype=torch.bool, device=matrix.device)
    for step in range(size):
        if step == size - 1:
            rows.append(rest)
            break
        pivot = rest[..., :1].abs().argmax(-2, keepdim=True)  # [..., 1, 1]
        row = rest.gather(-2, pivot.expand(*pivot.shape[:-1], rest.shape[-1]))
        rows.append(row)
        numbers = torch.arange(1, size - step, device=matrix.device).unsqueeze(-1)  # [n - k - 1, 1]
        below = torch.where(
            numbers == pivot, rest[..., :1, :], rest[..., 1:, :]
        )  # the first row takes the pivot's place
        odd = odd ^ (pivot[..., 0, 0] != 0)
        factors = below[..., :1] / row[..., :1]
        rest = below[..., 1:] - factors * row[..., 1:]
    return _Eliminated(tuple(rows), odd)


def _substitute(system: _Eliminated) -> Tensor:
    """The solution [..., n, m], from the last row up."""
    solved: Tensor | None = None
    for step, row in enumerate(reversed(system.rows)):
        right = row[..., 1 + step :]
        if solved is not None:
            # no MatMul: onnxruntime 1.31 fails where it fuses one with a transpose and there are no samples
            right = right - (row[..., 1 : 1 + step].mT * solved).sum(-2, keepdim=True)
        found = right / row[..., :1]
        solved = found if solved is None else torch.cat([found, solved], -2)
    assert solved is not None
    return solved


def _info(system: _Eliminated) -> Tensor:
    """int32 [...]: the number of the first pivot that is 0, counted from 1; 0 if there is none."""
    pivots = torch.stack(system.pivots, -1) == 0  # [..., n]
    first = pivots.to(torch.int32).argmax(-1) + 1
    return torch.where(pivots.any(-1), first, 0).to(torch.int32)


def inverse_ex(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of ``matrix`` [..., n, n], and ``info`` [...]."""
    size = matrix.shape[-1]
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)
    system = _eliminate(matrix, identity)
    return _substitute(system), _info(system)


def solve_ex(matrix: Tensor, right: Tensor, left: bool = True) -> tuple[Tensor, Tensor]:
    """The solution of ``matrix @ x = right`` (``x @ matrix = right`` if not ``left``), and ``info``.

    Args:
        matrix: [..., n, n].
        right: [..., n, m] ([..., m, n] if not ``left``), or vectors [..., n], as ``torch.linalg.solve`` takes them.
        left: on which side of the solution ``matrix`` is.
    """
    vectors = takes_vectors(matrix, right)
    columns = right.unsqueeze(-1) if vectors else right
    if not left and not vectors:
        matrix, columns = matrix.mT, columns.mT
    batch = torch.broadcast_shapes(matrix.shape[:-2], columns.shape[:-2])  # type: ignore[no-untyped-call]
    system = _eliminate(matrix.expand(*batch, *matrix.shape[-2:]), columns.expand(*batch, *columns.shape[-2:]))
    found = _substitute(system)
    info = _info(system if batch == matrix.shape[:-2] else _eliminate(matrix, None))
    if vectors:
        return found.squeeze(-1), info
    return (found if left else found.mT), info


def takes_vectors(matrix: Tensor, right: Tensor) -> bool:
    """Whether ``torch.linalg.solve`` takes ``right`` for vectors rather than matrices."""
    return right.ndim == 1 or (matrix.ndim - 1 == right.ndim and right.shape == matrix.shape[:-1])


def _size_of_determinant(system: _Eliminated) -> Tensor:
    return torch.stack([pivot.abs() for pivot in system.pivots], -1).log().sum(-1)


def _sign(system: _Eliminated) -> Tensor:
    sign = torch.where(system.odd, -1.0, 1.0).to(system.rows[0].dtype)
    for pivot in system.pivots:
        sign = sign * pivot.sign()
    return sign


def determinant(matrix: Tensor) -> Tensor:
    """The determinant [...] of ``matrix`` [..., n, n]: 0 for a singular matrix."""
    system = _eliminate(matrix, None)
    # A pivot of 0 means that the column is 0, and the determinant with it; what follows is NaN.
    found = torch.where(system.odd, -1.0, 1.0).to(matrix.dtype)
    singular = torch.zeros_like(system.odd)
    for pivot in system.pivots:
        singular = singular | (pivot == 0)
        found = found * pivot
    return torch.where(singular, 0.0, found).to(matrix.dtype)


def signed_log_determinant(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The sign and the logarithm of the magnitude of the determinant, each [...]: 0 and -inf for a singular matrix."""
    system = _eliminate(matrix, None)
    singular = _info(system) > 0
    sign = torch.where(singular, 0.0, _sign(system)).to(matrix.dtype)
    return sign, torch.where(singular, -torch.inf, _size_of_determinant(system)).to(matrix.dtype)
