"""Embedding tables' first values: random, or rows of snapshots by external id."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from logging import getLogger
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from ranking.model import RankingModel
    from tables import IdMap, Snapshot

logger = getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TableCoverage:
    """How much of a table came from a snapshot.

    Attributes:
        table: The table's name.
        snapshot: The snapshot's fingerprint.
        num_rows: Rows of the table, the out-of-vocabulary row included.
        num_filled: Rows that an id of the snapshot filled.
        num_missing: Rows that got the mean of the filled ones: the out-of-vocabulary row, and rows of ids that
            the snapshot does not know.
        num_unused: Ids of the snapshot that the table has no row for.
        norm_before: Root mean square norm of the filled rows as they were in the snapshot.
        norm_after: The same in the table.
    """

    table: str
    snapshot: str
    num_rows: int
    num_filled: int
    num_missing: int
    num_unused: int
    norm_before: float
    norm_after: float

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the fields, JSON-able."""
        return asdict(self)


def init_random(model: RankingModel, norm: float, generator: torch.Generator) -> None:
    """Fill every table with normal noise.

    Args:
        model: Model whose tables are overwritten.
        norm: Root mean square norm of the rows.
        generator: Source of the noise.
    """
    for spec in model.specs:
        model.table(spec.name).normal_(0, norm / spec.dim**0.5, generator=generator)


def init_tables(
    model: RankingModel,
    snapshots: Iterable[Snapshot],
    id_maps: Mapping[str, IdMap],
    *,
    norm: float = 1.0,
) -> list[TableCoverage]:
    """Start tables from snapshots of their facets, by external id.

    A table takes the vectors of its node type in the snapshot of its facet, times one factor that gives them the
    wanted norm: the rows' relative lengths, which tell popularity and certainty, stay. Where several ids share a
    row (hashed id maps) it gets their mean. A row that no id of the snapshot fills, the out-of-vocabulary row
    among them, gets the mean of the filled rows: an unknown id is then taken for an average one.

    Args:
        model: Model whose tables are overwritten; tables of other facets stay as they are.
        snapshots: At most one a facet.
        id_maps: Id map of each feature.
        norm: Root mean square norm of the filled rows.

    Returns:
        One coverage a table that was filled.

    Raises:
        ValueError: If two snapshots have the same facet, a snapshot has no table in the model, lacks a node type
            of the model or has vectors of another dimension, or no id of a snapshot is known to the id map.
    """
    coverages: list[TableCoverage] = []
    seen: set[str] = set()
    for snapshot in snapshots:
        specs = [spec for spec in model.specs if spec.facet == snapshot.facet]
        if snapshot.facet in seen or not specs:
            raise ValueError(
                f"snapshot of facet {snapshot.facet!r}: expected one a facet of the model, "
                f"{sorted({spec.facet for spec in model.specs})}"
            )
        seen.add(snapshot.facet)
        for spec in specs:
            if spec.node_type not in snapshot.node_types or snapshot.dim(spec.node_type) != spec.dim:
                raise ValueError(
                    f"table {spec.name} needs vectors of {spec.node_type!r} with {spec.dim} elements; the snapshot "
                    f"has { ({name: snapshot.dim(name) for name in snapshot.node_types}) }; choose the ranker's dim "
                    "and features to match, or pretrain again"
                )
            id_map = id_maps[spec.feature]
            rows = torch.from_numpy(id_map.rows(snapshot.ids(spec.node_type))).reshape(-1, id_map.num_hashes)
            coverage = _fill(
                model.table(spec.name),
                rows,
                snapshot.vectors(spec.node_type).float(),
                oov_row=id_map.oov_row,
                norm=norm,
                name=spec.name,
                fingerprint=snapshot.fingerprint,
            )
            coverages.append(coverage)
            logger.info("%s", coverage)
    return coverages


def _fill(
    table: Tensor,
    rows: Tensor,
    vectors: Tensor,
    *,
    oov_row: int | None,
    norm: float,
    name: str,
    fingerprint: str,
) -> TableCoverage:
    known = torch.ones(len(rows), dtype=torch.bool) if oov_row is None else rows[:, 0] != oov_row
    if not known.any():
        raise ValueError(
            f"table {name}: none of the snapshot's {len(rows)} ids is known to the id map; were the id map and the "
            "snapshot made from the same graph?"
        )
    rows, vectors = rows[known].long(), vectors[known]
    sums = torch.zeros_like(table)
    counts = torch.zeros(len(table))
    for hashed in rows.T:
        sums.index_add_(0, hashed, vectors)
        counts.index_add_(0, hashed, torch.ones(len(hashed)))
    filled = counts > 0
    means = sums[filled] / counts[filled, None]
    norm_before = float(vectors.square().sum(1).mean().sqrt())
    norm_means = float(means.square().sum(1).mean().sqrt())
    if norm_means == 0:
        raise ValueError(f"table {name}: all of the snapshot's vectors are zero; pretrain again")
    means *= norm / norm_means
    table[filled] = means
    table[~filled] = means.mean(0)
    return TableCoverage(
        table=name,
        snapshot=fingerprint,
        num_rows=len(table),
        num_filled=int(filled.sum()),
        num_missing=int((~filled).sum()),
        num_unused=int((~known).sum()),
        norm_before=norm_before,
        norm_after=float(means.square().sum(1).mean().sqrt()),
    )
