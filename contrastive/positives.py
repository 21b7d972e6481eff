"""Positives: weighted distinct (query, item) pairs of a view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tables.pairs import PairIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from contrastive.config import ComposedTower, ContrastiveValidation, PositivesConfig
    from graphdb import GraphView

__all__ = ["Positives", "compose", "hold_out_latest", "read_positives"]

_DAY_US = 86_400_000_000
_UNTIMED = np.iinfo(np.int64).min


@dataclass(frozen=True, kw_only=True, slots=True)
class Positives:
    """Distinct pairs, ordered by (query, item), each as likely to be drawn as its weight says.

    Attributes:
        queries: int32 [P].
        items: int32 [P].
        weights: sum over the pair's edges of relation weight times decay, float64 [P].
        first_times: when the pair's first timed edge was, microseconds since the epoch, int64 [P].
        num_queries: rows of the queries' table.
        num_items: rows of the items' table.
    """

    queries: NDArray[np.int32]
    items: NDArray[np.int32]
    weights: NDArray[np.float64]
    first_times: NDArray[np.int64]
    num_queries: int
    num_items: int

    def __len__(self) -> int:
        return len(self.queries)

    def item_weights(self) -> NDArray[np.float64]:
        """Sum the weights of each item's pairs, float64 [num_items]: how often it is drawn as a positive."""
        sums = np.zeros(self.num_items)
        np.add.at(sums, self.items, self.weights)
        return sums

    def index(self) -> PairIndex:
        """Index the pairs by query."""
        return PairIndex(self.queries, self.items, num_left=self.num_queries, num_right=self.num_items)

    def keep(self, mask: NDArray[np.bool_]) -> Positives:
        """Keep the pairs where the mask is true."""
        return Positives(
            queries=self.queries[mask],
            items=self.items[mask],
            weights=self.weights[mask],
            first_times=self.first_times[mask],
            num_queries=self.num_queries,
            num_items=self.num_items,
        )

    @classmethod
    def from_pairs(cls, queries: NDArray[Any], items: NDArray[Any], *, num_queries: int, num_items: int) -> Positives:
        """Take plain pairs [E], each of weight 1 and without a time; one that stands twice counts double.

        Raises:
            ValueError: if the columns' lengths differ or a row lies outside its table.
        """
        PairIndex(queries, items, num_left=num_queries, num_right=num_items)  # checks them
        return cls.merge(
            queries.astype(np.int32),
            items.astype(np.int32),
            np.ones(len(queries)),
            np.full(len(queries), _UNTIMED),
            num_queries=num_queries,
            num_items=num_items,
        )

    @classmethod
    def merge(
        cls,
        queries: NDArray[np.int32],
        items: NDArray[np.int32],
        weights: NDArray[np.float64],
        times: NDArray[np.int64],
        *,
        num_queries: int,
        num_items: int,
    ) -> Positives:
        """Sum edges [E] into distinct pairs."""
        keys, pair_of_edge = np.unique(queries.astype(np.int64) * num_items + items, return_inverse=True)
        summed = np.zeros(len(keys))
        np.add.at(summed, pair_of_edge, weights)
        first_times = np.full(len(keys), np.iinfo(np.int64).max)
        np.minimum.at(first_times, pair_of_edge, times)
        return cls(
            queries=(keys // num_items).astype(np.int32),
            items=(keys % num_items).astype(np.int32),
            weights=summed,
            first_times=first_times,
            num_queries=num_queries,
            num_items=num_items,
        )


def read_positives(view: GraphView, config: PositivesConfig) -> Positives:
    """Read the positives that a configuration asks for.

    Args:
        view: the graph window.
        config: node types, relations and their weights, decay.

    Returns:
        The positives, of weight above zero.

    Raises:
        ValueError: if a type or relation is unknown or joins other types, or there are no positives.
    """
    for field, node_type in (("query_type", config.query_type), ("item_type", config.item_type)):
        if node_type not in view.num_nodes:
            raise ValueError(f"{field} is {node_type!r}, but the view has the node types {sorted(view.num_nodes)}")
    joining = [
        relation.name for relation in view.relations if (relation.src, relation.dst) == (config.query_type, config.item_type)
    ]
    weights = config.relation_weights if config.relation_weights is not None else dict.fromkeys(joining, 1.0)
    unknown = [name for name in weights if name not in joining]
    if unknown:
        raise ValueError(
            f"relation_weights names {unknown}; from {config.query_type!r} to {config.item_type!r} this view has {joining}"
        )
    columns: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]] = []
    end_us = _window_end_us(view, weights)
    for name, weight in weights.items():
        if weight == 0 or view.num_edges[name] == 0:
            continue
        edges = view.edges(name)
        edge_weights = np.full(len(edges.src), weight)
        if edges.time is None:
            times = np.full(len(edges.src), _UNTIMED)
        else:
            times = edges.time.numpy()
            if config.half_life_days is not None:
                edge_weights *= np.exp2(-(end_us - times) / (config.half_life_days * _DAY_US))
        columns.append((edges.src.numpy(), edges.dst.numpy(), edge_weights, times))
    if not columns:
        raise ValueError(
            f"there are no positives from {config.query_type!r} to {config.item_type!r}: the weights are {weights} and "
            f"the view has { {name: view.num_edges[name] for name in joining} } edges; widen the window or the weights"
        )
    queries, items, edge_weights, times = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Positives.merge(
        queries,
        items,
        edge_weights,
        times,
        num_queries=view.num_nodes[config.query_type],
        num_items=view.num_nodes[config.item_type],
    )


def compose(positives: Positives, view: GraphView, item_type: str, tower: ComposedTower) -> Positives:
    """Carry positives over from items to the nodes that they are related to.

    An item related to several nodes shares its weight evenly among them; one related to none drops out.

    Args:
        positives: pairs of query and item.
        view: the graph window.
        item_type: node type of the items.
        tower: which nodes, through which relation.

    Returns:
        Pairs of query and node.

    Raises:
        ValueError: if the relation does not join the two types, or no positive has such a node.
    """
    by_name = {relation.name: relation for relation in view.relations}
    relation = by_name.get(tower.through)
    ends = {relation.src, relation.dst} if relation else set()
    if relation is None or ends != {item_type, tower.node_type}:
        fitting = [name for name, other in by_name.items() if {other.src, other.dst} == {item_type, tower.node_type}]
        raise ValueError(
            f"the tower {tower.node_type!r} goes through {tower.through!r}, which must join it to {item_type!r}; "
            f"relations of this view that do: {fitting}"
        )
    edges = view.edges(tower.through)
    item_end, node_end = (edges.src, edges.dst) if relation.src == item_type else (edges.dst, edges.src)
    num_nodes = view.num_nodes[tower.node_type]
    nodes_of = PairIndex(item_end.numpy(), node_end.numpy(), num_left=view.num_nodes[item_type], num_right=num_nodes)
    fanout = np.diff(nodes_of.indptr)[positives.items]
    if not fanout.any():
        raise ValueError(f"no item of the positives has an edge of {tower.through!r}; leave the tower out")
    pair = np.repeat(np.arange(len(positives)), fanout)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(fanout) - fanout, fanout)
    return Positives.merge(
        positives.queries[pair],
        nodes_of.indices[nodes_of.indptr[positives.items[pair]] + within],
        positives.weights[pair] / fanout[pair],
        positives.first_times[pair],
        num_queries=positives.num_queries,
        num_items=num_nodes,
    )


def hold_out_latest(
    positives: Positives, validation: ContrastiveValidation, generator: np.random.Generator
) -> tuple[Positives, Positives]:
    """Set apart the items that some queries came to last.

    An item's time is the query's FIRST edge to it, so that nothing about a held-out pair is in training.

    Args:
        positives: all positives.
        validation: how many queries and items.
        generator: source of the sample of queries, and of the choice among items of equal time.

    Returns:
        The positives to train on, and the held-out ones.
    """
    counts = np.bincount(positives.queries, minlength=positives.num_queries)
    eligible = np.flatnonzero(counts >= validation.num_latest + validation.min_remaining)
    chosen = generator.choice(eligible, size=min(validation.num_queries, len(eligible)), replace=False)
    is_chosen = np.zeros(positives.num_queries, dtype=np.bool_)
    is_chosen[chosen] = True
    order = np.lexsort((generator.random(len(positives)), positives.first_times, positives.queries))
    ends = np.cumsum(counts)[positives.queries[order]]
    from_the_end = ends - np.arange(len(order))
    held_out = np.zeros(len(positives), dtype=np.bool_)
    held_out[order] = is_chosen[positives.queries[order]] & (from_the_end <= validation.num_latest)
    return positives.keep(~held_out), positives.keep(held_out)


def _window_end_us(view: GraphView, names: Sequence[str] | dict[str, float]) -> int:
    if view.as_of is not None:
        return int(np.datetime64(view.as_of.replace(tzinfo=None), "us").astype(np.int64))
    times = [view.edges(name).time for name in names]
    return max((int(time.max()) for time in times if time is not None and len(time)), default=0)
