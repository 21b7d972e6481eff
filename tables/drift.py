"""How far a table has moved from an older one, row by row, matched by external id."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F

from multifacet.inputs import FLAG, expect_attributes, takes, whole
from multifacet.tables.ids.id_map import IdMap
from multifacet.tables.searching.neighbors import find_neighbors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.tables.snapshot import Snapshot
    from multifacet.tables.snapshot_table import SnapshotTable

__all__ = ["TableDrift", "compare_snapshots", "compare_tables", "match_ids"]

QUANTILES: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BLOCK_ROWS: Final = 1 << 16
_NUM_SAMPLED: Final = 1000
_MAX_CANDIDATES: Final = 1 << 17
_NUM_NEIGHBORS: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class TableDrift:
    """What became of one node type's rows.

    Attributes:
        num_matched: ids in both tables.
        num_new: ids in the new table only.
        num_gone: ids in the old table only.
        num_zero: matched rows that either table has not trained (marked so, or zero), which no figure below counts.
        cosine: quantile -> cosine of a row with its old self, as both lie.
        aligned_cosine: the same after the rotation that brings the old tables closest to the new ones; tables of two
            trainings that do not start from each other are only comparable so. None if it was not asked for.
        norm_ratio: quantile -> new length over old length.
        neighbor_overlap: of the 10 nearest matched rows (by cosine) of a row in the old table, the share that is among its
            10 nearest in the new one; a mean over a sample of 1000 rows, among 131,072 at most. No rotation changes it.
    """

    num_matched: int
    num_new: int
    num_gone: int
    num_zero: int
    cosine: dict[str, float]
    aligned_cosine: dict[str, float] | None
    norm_ratio: dict[str, float]
    neighbor_overlap: float | None

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return asdict(self)


def match_ids(old_ids: Any, new_ids: Any) -> NDArray[np.int64]:
    """Finds the old row of each new id, by external id.

    Args:
        old_ids: int64 or string [M], distinct.
        new_ids: of the same type, [N].

    Returns:
        The old row, or -1, int64 [N].

    Raises:
        TypeError: The ids are of two types.
    """
    rows = IdMap.exact(old_ids).rows(new_ids).astype(np.int64)
    rows[rows == len(old_ids)] = -1
    return rows


@takes(align=FLAG, neighbors=FLAG, seed=whole(0))
def compare_snapshots(
    old: Snapshot, new: Snapshot, *, align: bool = True, neighbors: bool = True, seed: int = 0
) -> dict[str, TableDrift]:
    """Compares the tables of two snapshots.

    Args:
        old: The earlier one.
        new: The later one, of the same dimension.
        align: Whether to fit a rotation too.
        neighbors: Whether to compare nearest neighbours too, which takes a scan of each table.
        seed: Chooses the rows whose neighbours are compared.

    Returns:
        By node type, of both snapshots.

    Raises:
        ValueError: A table's dimension or type of id differs.
    """
    for name, given in (("old", old), ("new", new)):
        expect_attributes(name, given, ("node_types", "vectors", "trained"), "Snapshot")
    from multifacet.tables.snapshot_table import SnapshotTable  # noqa: PLC0415 - it imports FBGEMM, which opening this module need not

    tables = {
        node_type: SnapshotTable(ids=new.ids(node_type), vectors=new.vectors(node_type), trained=new.trained(node_type))
        for node_type in new.node_types
    }
    return compare_tables(old, tables, align=align, neighbors=neighbors, seed=seed)


def compare_tables(
    old: Snapshot, new: Mapping[str, SnapshotTable], *, align: bool = True, neighbors: bool = True, seed: int = 0
) -> dict[str, TableDrift]:
    """As `compare_snapshots`, with tables that are not written yet."""
    matches: dict[str, tuple[Tensor, Tensor]] = {}
    num_matched: dict[str, int] = {}
    for node_type, table in new.items():
        if node_type not in old.node_types:
            continue
        if old.dim(node_type) != table.vectors.shape[1]:
            raise ValueError(
                f"table {node_type!r} has dimension {old.dim(node_type)} in the old snapshot and {table.vectors.shape[1]} in "
                "the new one: such rows cannot be compared"
            )
        try:
            old_row_of = torch.from_numpy(match_ids(old.ids(node_type), table.ids))
        except TypeError as error:
            raise ValueError(f"table {node_type!r}: {error}") from error
        new_rows = torch.nonzero(old_row_of >= 0).flatten()
        old_rows = old_row_of[new_rows]
        num_matched[node_type] = len(new_rows)
        old_trained, kept = old.trained(node_type), torch.ones(len(new_rows), dtype=torch.bool)
        if old_trained is not None:
            kept &= old_trained[old_rows]
        if table.trained is not None:
            kept &= table.trained[new_rows]
        old_rows, new_rows = old_rows[kept], new_rows[kept]
        matches[node_type] = old_rows, new_rows
    rotation = _rotation(old, new, matches) if align else None
    generator = np.random.default_rng(seed)
    result = {}
    for node_type in sorted({*old.node_types, *new}):
        num_old = old.num_rows(node_type) if node_type in old.node_types else 0
        num_new = len(new[node_type].vectors) if node_type in new else 0
        old_rows, new_rows = matches.get(node_type, (torch.empty(0), torch.empty(0)))
        columns = np.empty((0, 3))
        overlap = None
        if len(new_rows):
            columns = _compare_rows(old.vectors(node_type), new[node_type].vectors, old_rows, new_rows, rotation)
            if neighbors and len(new_rows) > _NUM_NEIGHBORS:
                some = generator.choice(len(new_rows), size=min(_MAX_CANDIDATES, len(new_rows)), replace=False)
                overlap = _overlap(old.vectors(node_type)[old_rows[some]], new[node_type].vectors[new_rows[some]])
        trained = columns[columns[:, 2] > 0]
        result[node_type] = TableDrift(
            num_matched=num_matched.get(node_type, 0),
            num_new=num_new - num_matched.get(node_type, 0),
            num_gone=num_old - num_matched.get(node_type, 0),
            num_zero=num_matched.get(node_type, 0) - len(trained),
            cosine=_quantiles(trained[:, 0]),
            aligned_cosine=_quantiles(trained[:, 1]) if align else None,
            norm_ratio=_quantiles(trained[:, 2]),
            neighbor_overlap=overlap,
        )
    return result


def _rotation(old: Snapshot, new: Mapping[str, SnapshotTable], matches: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor | None:
    """The rotation R that makes old @ R closest to new (Schönemann, Psychometrika 1966): U V^T of the SVD of old^T new.

    One for all types, since what a rotation leaves alone are the products between tables; each type counts alike.
    """
    products = []
    for node_type, (old_rows, new_rows) in matches.items():
        if not len(new_rows):
            continue
        left, right = old.vectors(node_type), new[node_type].vectors
        product = torch.zeros(left.shape[1], left.shape[1], dtype=torch.float64)
        for part in range(0, len(new_rows), _BLOCK_ROWS):
            rows = slice(part, part + _BLOCK_ROWS)
            a = F.normalize(left[old_rows[rows]].double())
            b = F.normalize(right[new_rows[rows]].double())
            product += a.t() @ b
        products.append(product / len(new_rows))
    if not products or len({len(product) for product in products}) > 1:
        return None
    u, _, vh = torch.linalg.svd(torch.stack(products).sum(0))
    rotation: Tensor = u @ vh
    return rotation


def _compare_rows(old: Tensor, new: Tensor, old_rows: Tensor, new_rows: Tensor, rotation: Tensor | None) -> NDArray[np.float64]:
    """Cosine, cosine after the rotation, and length ratio of each matched row, float64 [n, 3]; ratio 0 if a row is zero."""
    columns = np.zeros((len(new_rows), 3))
    for begin in range(0, len(new_rows), _BLOCK_ROWS):
        part = slice(begin, begin + _BLOCK_ROWS)
        a, b = old[old_rows[part]].double(), new[new_rows[part]].double()
        lengths = a.norm(dim=1), b.norm(dim=1)
        trained = (lengths[0] > 0) & (lengths[1] > 0)
        aligned = a @ rotation if rotation is not None else a
        columns[part, 0] = F.cosine_similarity(a, b).numpy()
        columns[part, 1] = F.cosine_similarity(aligned, b).numpy()
        columns[part, 2] = torch.where(trained, lengths[1] / lengths[0], 0.0).numpy()
    return columns


def _overlap(old: Tensor, new: Tensor) -> float:
    """Mean share of a row's nearest rows that both tables agree on, for the first rows; they are matched row by row."""
    sampled = torch.arange(min(_NUM_SAMPLED, len(old)))
    nearest = []
    for table in (old, new):
        _, rows = find_neighbors(table[sampled], table, _NUM_NEIGHBORS + 1)
        own = rows == sampled[:, None]
        own[:, -1] |= ~own.any(1)  # among equals a row may miss itself: its last one goes instead
        nearest.append(rows[~own].view(len(sampled), _NUM_NEIGHBORS))
    return float((nearest[0][:, :, None] == nearest[1][:, None, :]).any(2).double().mean())


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {}
    levels = np.quantile(values, QUANTILES)
    return {f"p{100 * level:g}": float(value) for level, value in zip(QUANTILES, levels, strict=True)} | {
        "mean": float(values.mean())
    }
