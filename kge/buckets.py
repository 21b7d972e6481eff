"""Triples by the partitions of their two ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from multifacet.kge.triples import TripleSet

__all__ = ["EdgeBuckets", "count_partitions", "visit_pairs"]

# Tables of fewer rows than this in a partition are not cut: they cost little, and stay in memory whole.
_MIN_PARTITION_ROWS: Final = 1000
# Partitions that are in memory at once: two at work, one on its way in, one on its way out.
_NUM_HELD: Final = 4
_FLOAT_BYTES: Final = 4


def count_partitions(num_nodes: Mapping[str, int], dim: int, *, partitions: int | None, memory_limit_gb: float | None) -> int:
    """Give how many partitions a training's tables are cut into.

    Args:
        num_nodes: node type -> rows.
        dim: width of a row.
        partitions: what was asked for; None to follow the limit.
        memory_limit_gb: most memory for rows and their optimiser state, in 1e9 bytes; None for no limit.

    Raises:
        ValueError: if no number of partitions keeps to the limit.
    """
    if partitions is not None or memory_limit_gb is None:
        return partitions or 1
    row_bytes, limit = _FLOAT_BYTES * (dim + 1), memory_limit_gb * 1e9
    total = sum(num_nodes.values()) * row_bytes
    if total <= limit:
        return 1
    for number in range(_NUM_HELD + 1, max(num_nodes.values()) // _MIN_PARTITION_ROWS + 1):
        whole = sum(count for count in num_nodes.values() if count < number * _MIN_PARTITION_ROWS)
        cut = sum(-(-count // number) for count in num_nodes.values() if count >= number * _MIN_PARTITION_ROWS)
        if (whole + _NUM_HELD * cut) * row_bytes <= limit:
            return number
    raise ValueError(
        f"memory_limit_gb={memory_limit_gb:g} is too small: tables of {dict(num_nodes)} rows take {total / 1e9:.3g} GB, and no "
        f"partitions of at least {_MIN_PARTITION_ROWS} rows keep four of them below it; raise the limit or lower dim"
    )


def visit_pairs(num_partitions: int) -> list[tuple[int, int]]:
    """Give all pairs of partitions in an order in which each shares one with the pair before: one partition a step is read.

    Example:
        >>> visit_pairs(4)
        [(0, 1), (0, 2), (0, 3), (1, 3), (1, 2), (2, 3)]
    """
    if num_partitions == 1:
        return [(0, 0)]
    pairs = []
    for first in range(num_partitions - 1):
        others = list(range(first + 1, num_partitions))
        pairs += [(first, other) for other in (others if first % 2 == 0 else reversed(others))]
    return pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeBuckets:
    """Triples in buckets, one for each pair of partitions: its own, and a share of those within either of them.

    Attributes:
        triples: all of them.
        num_partitions: P.
        partitioned: the node types that are cut; the others' rows are always there.
        order: positions of the triples, bucket by bucket.
        bounds: of bucket low * P + high in `order`.
    """

    triples: TripleSet
    num_partitions: int
    partitioned: frozenset[str]
    order: NDArray[np.intp]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, triples: TripleSet, num_partitions: int, *, seed: int, min_rows: int = _MIN_PARTITION_ROWS) -> EdgeBuckets:
        """Sort triples into buckets.

        Args:
            triples: the triples.
            num_partitions: P.
            seed: decides which bucket has those whose ends are in one partition.
            min_rows: types of fewer rows a partition are not cut.
        """
        partitioned = frozenset(name for name, count in triples.num_nodes.items() if count >= min_rows * num_partitions)
        head_is_cut, tail_is_cut = _cut_ends(triples, partitioned)
        generator = np.random.default_rng((seed, num_partitions))
        anywhere = generator.integers(0, num_partitions, len(triples), dtype=np.int32)
        heads = np.where(head_is_cut, triples.heads % num_partitions, -1)
        tails = np.where(tail_is_cut, triples.tails % num_partitions, -1)
        first = np.where(head_is_cut, heads, np.where(tail_is_cut, tails, anywhere))
        second = np.where(tail_is_cut, tails, first)
        if num_partitions > 1:
            partner = (first + 1 + generator.integers(0, num_partitions - 1, len(triples), dtype=np.int32)) % num_partitions
            second = np.where(first == second, partner, second)
        buckets = np.minimum(first, second).astype(np.int64) * num_partitions + np.maximum(first, second)
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(num_partitions**2 + 1))
        return cls(triples=triples, num_partitions=num_partitions, partitioned=partitioned, order=order, bounds=bounds)

    def size(self, pair: tuple[int, int]) -> int:
        """Give a bucket's triples, in number."""
        return len(self._positions(pair))

    def num_draws(self, pair: tuple[int, int]) -> int:
        """Give how many triples of a bucket an epoch has, on average: weighted ones as often as their weights say."""
        weights = self.triples.weights
        return self.size(pair) if weights is None else round(float(weights[self._positions(pair)].sum()))

    def local_nodes(self) -> dict[str, int]:
        """Give each type's rows in memory: two partitions' (one's where there is no other), or all of them."""
        slots = min(2, self.num_partitions)
        return {
            name: slots * -(-count // self.num_partitions) if name in self.partitioned else count
            for name, count in self.triples.num_nodes.items()
        }

    def local(self, slots: tuple[int, int]) -> TripleSet:
        """Give a bucket's triples, numbered by the rows in memory.

        Args:
            slots: the bucket's two partitions in the order in which they lie in memory.
        """
        low, high = sorted(slots)
        bucket = self.triples.take(self._positions((low, high)))
        head_is_cut, tail_is_cut = _cut_ends(bucket, self.partitioned)
        rows = {name: -(-count // self.num_partitions) for name, count in self.triples.num_nodes.items()}
        columns = []
        for column, is_cut, end in ((bucket.heads, head_is_cut, 0), (bucket.tails, tail_is_cut, 1)):
            sizes = np.array([rows[bucket.ends[name][end]] for name in bucket.relation_names], dtype=np.int32)[bucket.relations]
            slot = np.where(column % self.num_partitions == slots[0], 0, 1).astype(np.int32)
            columns.append(np.where(is_cut, slot * sizes + column // self.num_partitions, column).astype(np.int32))
        return replace(bucket, heads=columns[0], tails=columns[1], num_nodes=self.local_nodes(), ids={}, times=None)

    def _positions(self, pair: tuple[int, int]) -> NDArray[np.intp]:
        number = min(pair) * self.num_partitions + max(pair)
        return self.order[self.bounds[number] : self.bounds[number + 1]]


def _cut_ends(triples: TripleSet, partitioned: frozenset[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    ends = [triples.ends[name] for name in triples.relation_names]
    by_relation = np.array([[src in partitioned, dst in partitioned] for src, dst in ends], dtype=np.bool_).reshape(-1, 2)
    return by_relation[triples.relations, 0], by_relation[triples.relations, 1]
