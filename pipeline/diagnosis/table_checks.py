"""Checks of tables: do they use their width, does one row stand near everything, and have old rows moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F

from multifacet.pipeline.diagnosis.finding import Finding, above, below
from multifacet.tables import find_neighbors

if TYPE_CHECKING:
    from torch import Tensor

    from multifacet.pipeline.diagnosis.gates import GatesSection
    from multifacet.tables import TableDrift

__all__ = ["check_drift", "check_error", "check_table", "effective_rank", "hub_share", "information_abundance"]

_BLOCK_ROWS: Final = 1 << 16
_MIN_ROWS: Final = 200
_NUM_QUERIES: Final = 1000
_MAX_CANDIDATES: Final = 1 << 17
_NUM_NEIGHBORS: Final = 10
_ROWS_A_NUMBER: Final = 4


def check_table(subject: str, vectors: Tensor, trained: Tensor | None, gates: GatesSection) -> list[Finding]:
    """Checks a table for collapse and for hubs.

    A table of fewer than 200 trained rows, or of fewer than four for each number of its rows, tells nothing of either, and is
    passed over.

    Args:
        subject: What it is, in words.
        vectors: float [rows, dim].
        trained: bool [rows]; None for all.
        gates: The limits.
    """
    kept = vectors.any(1) if trained is None else trained & vectors.any(1)
    num_rows, dim = int(kept.sum()), vectors.shape[1]
    if num_rows < max(_MIN_ROWS, _ROWS_A_NUMBER * dim):
        return []
    rows = vectors[kept] if num_rows < len(vectors) else vectors
    values = singular_values(rows)
    rank, abundance = effective_rank(values), information_abundance(values)
    findings = [
        below(
            "collapse",
            subject,
            rank / dim,
            gates.effective_rank_warn,
            gates.effective_rank_stop,
            told=f"{subject}: effective rank {rank:.1f} of {dim}, information abundance {abundance:.1f}",
            cause="the rows lie in a few directions: the facet's loss or its negatives leave the others free, or dim is too "
            "large for the data (arXiv 2310.04400)",
            mend="set a smaller dim, more negatives (num_uniform) or a higher temperature for the facet, and pretrain anew",
        )
    ]
    share = hub_share(rows)
    findings.append(
        above(
            "hubs",
            subject,
            share,
            gates.hub_warn,
            gates.hub_stop,
            told=f"{subject}: one row is among the {_NUM_NEIGHBORS} nearest of {share:.0%} of the rows",
            cause="a row near everything: an id that stands for many (a bot, a default, a test account), or popular rows that "
            "uniform negatives do not push away",
            mend="drop the id or give view(min_degree=...) a limit; or add degree-weighted negatives (num_degree) to the facet",
        )
    )
    return findings


def check_drift(facet: str, drift: Mapping[str, TableDrift], gates: GatesSection) -> list[Finding]:
    """Checks how far old rows have moved.

    Args:
        facet: The facet's name.
        drift: By node type, of the tables before to the tables now.
        gates: The limits.
    """
    findings = []
    for name, found in drift.items():
        if "p50" not in found.cosine or found.num_matched < _MIN_ROWS:
            continue
        cosine = found.cosine["p50"]
        findings.append(
            below(
                "drift",
                f"{facet} {name}",
                cosine,
                gates.drift_warn,
                gates.drift_stop,
                told=f"{facet} {name}: half of {found.num_matched:,} old rows have a cosine below {cosine:.2f} with themselves "
                "a training ago",
                cause="the tables lie in another basis, or were trained anew: a ranker of yesterday cannot read them",
                mend="set align = true, or start = 'warm' with a pull, in the pipeline; by hand --align-to SNAPSHOT or "
                "--warm-start SNAPSHOT --pull 0.01",
            )
        )
    return findings


def check_error(subject: str, exact: Tensor, served: Tensor, precision: str, gates: GatesSection) -> Finding:
    """Checks what a release's precision took from a table's rows.

    Args:
        subject: The table.
        exact: The model's rows, float [rows, dim].
        served: The release's, decoded.
        precision: The release's.
        gates: The limits.
    """
    error = float((served.double() - exact).square().sum() / exact.double().square().sum().clamp_min(1e-300))
    return above(
        "row error",
        subject,
        error,
        gates.row_error_warn,
        gates.row_error_stop,
        told=f"{subject}: {precision.upper()} leaves {error:.2%} of the rows' squares wrong",
        cause="a few numbers of a row are far larger than the others, and the scale of the row goes to them",
        mend="publish with --precision int8, or lower table_lr so that rows grow less",
    )


def singular_values(rows: Tensor) -> Tensor:
    """Gives the singular values of a table, float64 [min(rows, dim)], the largest first; by its [dim, dim] products."""
    product = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = rows[begin : begin + _BLOCK_ROWS].double()
        product += block.t() @ block
    values: Tensor = torch.linalg.eigvalsh(product).clamp_min(0.0).sqrt().flip(0)
    return values


def effective_rank(values: Tensor) -> float:
    """Gives the exponential of the entropy of singular values as shares (Roy and Vetterli, EUSIPCO 2007).

    Example:
        >>> effective_rank(torch.tensor([1.0, 1.0, 0.0])), effective_rank(torch.tensor([1.0, 0.0, 0.0]))
        (2.0, 1.0)
    """
    shares = (values / values.sum()).numpy()
    shares = shares[shares > 0]
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 6)


def information_abundance(values: Tensor) -> float:
    """Gives the sum of singular values over the largest (Guo et al., arXiv 2310.04400).

    Example:
        >>> information_abundance(torch.tensor([2.0, 1.0, 1.0]))
        2.0
    """
    return float(values.sum() / values.max())


def hub_share(rows: Tensor, *, seed: int = 0) -> float:
    """Gives the largest share of the rows among whose ten nearest, by cosine, one row stands.

    At most 1,000 rows ask, among 131,072 at most.
    """
    generator = np.random.default_rng(seed)
    some = torch.from_numpy(generator.choice(len(rows), size=min(_MAX_CANDIDATES, len(rows)), replace=False))
    candidates = F.normalize(rows[some].float())
    queries = candidates[:_NUM_QUERIES]
    _, nearest = find_neighbors(queries, candidates, _NUM_NEIGHBORS + 1)
    others = nearest[nearest != torch.arange(len(queries))[:, None]]
    return float(torch.bincount(others, minlength=len(candidates)).max()) / len(queries)
