"""Finds the change of basis that brings new tables nearest to old ones, of those that a facet's scores allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from multifacet.inputs import expect_type, one_of, takes
from multifacet.tables.alignment.alignment import SYMMETRIES, Alignment, Symmetry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fit_alignment"]

_BLOCK_ROWS: Final = 1 << 16


@takes(symmetry=one_of(*SYMMETRIES))
def fit_alignment(symmetry: Symmetry, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Alignment:
    """Finds the change of basis of new tables that brings them nearest to old ones.

    A rotation is the orthogonal Procrustes problem's (Schönemann, Psychometrika 1966). Coordinates are matched by the
    assignment of the largest sum of correlations, and a sign or a phase is that of the correlation. Each table counts alike.

    Args:
        symmetry: What leaves the facet's scores as they are.
        pairs: node type -> (old rows, new rows) of the same ids, float [n, D] each, D the same in all.

    Returns:
        A change of basis for every node type of `pairs`; for one without rows, the others' matrix.

    Raises:
        TypeError: A pair is no pair of tensors.
        ValueError: There is no row, a value is not finite, the shapes do not match, or complex coordinates are to be paired
            and D is odd.

    Example:
        >>> old = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]])
        >>> new = torch.stack([-old[:, 1], old[:, 0]], dim=1)
        >>> found = fit_alignment("rotation", {"pin": (old, new)})
        >>> torch.allclose(found.apply("pin", new), old, atol=1e-6)
        True
    """
    expect_type("pairs", pairs, Mapping)
    for name, rows in pairs.items():
        _check_pair(name, rows)
    dims = {new.shape[1] for _, new in pairs.values()} | {old.shape[1] for old, _ in pairs.values()}
    if len(dims) != 1 or any(old.shape != new.shape for old, new in pairs.values()):
        shapes = {name: (list(old.shape), list(new.shape)) for name, (old, new) in pairs.items()}
        raise ValueError(f"rows of tables are {shapes}: expected pairs of rows of one width, at least one table")
    if not any(len(old) for old, _ in pairs.values()):
        raise ValueError("no row is in both the old and the new tables, so there is nothing to align by")
    dim = dims.pop()
    if symmetry == "phases" and dim % 2:
        raise ValueError(f"complex coordinates are pairs of numbers, and the rows have {dim}: expected an even width")
    is_shifted = symmetry in {"shifted_rotation", "shifted_signs"}
    means = {
        name: (_mean(old), _mean(new)) if is_shifted else (old.new_zeros(dim).double(), old.new_zeros(dim).double())
        for name, (old, new) in pairs.items()
    }
    products = {name: _product(old, new, *means[name]) for name, (old, new) in pairs.items() if len(old)}
    if symmetry in {"rotation", "shifted_rotation"}:
        left, _, right = torch.linalg.svd(torch.stack(list(products.values())).sum(0).t())
        matrices = dict.fromkeys(pairs, left @ right)
    elif symmetry == "phases":
        matrices = _match_phases(products, list(pairs))
    else:
        matrices = _match_signs(products, list(pairs), by_table=symmetry == "signs")
    shifts = {name: old - new @ matrices[name] for name, (old, new) in means.items()} if is_shifted else {}
    return Alignment(symmetry=symmetry, matrices=matrices, shifts=shifts)


def _check_pair(name: str, rows: object) -> None:
    if not isinstance(rows, tuple) or len(rows) != 2 or not all(isinstance(part, torch.Tensor) for part in rows):
        raise TypeError(f"pairs[{name!r}] is a {type(rows).__name__}; expected (old rows, new rows), two tensors")
    if any(part.ndim != 2 or not part.is_floating_point() for part in rows):
        shapes = [f"{part.dtype} {list(part.shape)}" for part in rows]
        raise ValueError(f"pairs[{name!r}] are {' and '.join(shapes)}; expected float [n, D] each")
    if not all(bool(part.isfinite().all()) for part in rows):
        raise ValueError(f"pairs[{name!r}] hold values that are not finite numbers; pretrain again")


def _mean(rows: Tensor) -> Tensor:
    return rows.double().mean(0) if len(rows) else rows.new_zeros(rows.shape[1]).double()


def _product(old: Tensor, new: Tensor, old_mean: Tensor, new_mean: Tensor) -> Tensor:
    """Gives the correlations of old with new coordinates, [D, D], as a share of the tables' lengths."""
    product = torch.zeros(old.shape[1], new.shape[1], dtype=torch.float64)
    squares = torch.zeros(2, dtype=torch.float64)
    for begin in range(0, len(old), _BLOCK_ROWS):
        part = slice(begin, begin + _BLOCK_ROWS)
        before, after = old[part].double() - old_mean, new[part].double() - new_mean
        product += before.t() @ after
        squares += torch.stack([before.square().sum(), after.square().sum()])
    return product / squares.prod().sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def _match_signs(products: Mapping[str, Tensor], names: list[str], *, by_table: bool) -> dict[str, Tensor]:
    """Pairs coordinates; a sign is each table's own, or one for all of them."""
    stacked = torch.stack(list(products.values()))
    gains = stacked.abs().sum(0) if by_table else stacked.sum(0).abs()
    old, new = linear_sum_assignment(gains.numpy(), maximize=True)
    common = stacked.sum(0)
    matrices = {}
    for name in names:
        source = products.get(name, common) if by_table else common
        matrix = torch.zeros(len(gains), len(gains), dtype=torch.float64)
        matrix[new, old] = torch.where(source[old, new] < 0, -1.0, 1.0).double()
        matrices[name] = matrix
    return matrices


def _match_phases(products: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Pairs complex coordinates, as they are or conjugated; a phase is each table's own."""
    half = len(next(iter(products.values()))) // 2
    plain, conjugated = {}, {}
    for name, product in products.items():
        real, cross = product[:half, :half] + product[half:, half:], product[half:, :half] - product[:half, half:]
        plain[name] = torch.complex(real, cross)  # sum of old * conj(new)
        real, cross = product[:half, :half] - product[half:, half:], product[half:, :half] + product[:half, half:]
        conjugated[name] = torch.complex(real, cross)  # sum of old * new
    gains = [torch.stack(list(kind.values())).abs().sum(0) for kind in (plain, conjugated)]
    old, new = linear_sum_assignment(torch.maximum(*gains).numpy(), maximize=True)
    is_conjugated = (gains[1] > gains[0])[old, new]
    matrices = {}
    for name in names:
        if name in plain:
            found = torch.where(is_conjugated, conjugated[name][old, new], plain[name][old, new])
            phases = torch.where(found.abs() > 0, found / found.abs().clamp_min(1e-300), torch.ones_like(found))
        else:
            phases = torch.ones(half, dtype=torch.complex128)
        matrices[name] = _phase_matrix(old, new, phases, is_conjugated)
    return matrices


def _phase_matrix(old: np.ndarray, new: np.ndarray, phases: Tensor, is_conjugated: Tensor) -> Tensor:
    """Gives the real matrix of: take coordinate `new`, conjugate it if so, multiply it by its phase, call it `old`."""
    half = len(old)
    matrix = torch.zeros(2 * half, 2 * half, dtype=torch.float64)
    sign = torch.where(is_conjugated, -1.0, 1.0).double()
    # (x + i s y)(p + i q) = (x p - s y q) + i (x q + s y p)
    matrix[new, old], matrix[new, half + old] = phases.real, phases.imag
    matrix[half + new, old], matrix[half + new, half + old] = -sign * phases.imag, sign * phases.real
    return matrix
