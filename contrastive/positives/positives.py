"""Positives: weighted distinct (query, item) pairs of a view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multifacet.contrastive.positives.merging import EdgeColumns, merge_edges
from multifacet.inputs import whole
from multifacet.training import PairIndex, check_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from multifacet.contrastive.config import ComposedTower, ContrastiveValidation, PositivesConfig
    from multifacet.graphdb import GraphView

__all__ = ["Positives", "compose", "hold_out_latest", "read_positives"]

_DAY_US = 86_400_000_000
_UNTIMED = np.iinfo(np.int64).min
# Pairs that are widened to float64 at once.
_BLOCK: Final = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Positives:
    """Distinct pairs, ordered by (query, item), each as likely to be drawn as its weight says.

    Attributes:
        queries: int32 [P].
        items: int32 [P].
        weights: sum over the pair's edges of edge weight times relation weight times decay, float32 [P].
        first_times: when the pair's first timed edge was, microseconds since the epoch, int64 [P]; None if nobody asks.
        num_queries: rows of the queries' table.
        num_items: rows of the items' table.
    """

    queries: NDArray[np.int32]
    items: NDArray[np.int32]
    weights: NDArray[np.float32]
    first_times: NDArray[np.int64] | None
    num_queries: int
    num_items: int

    def __len__(self) -> int:
        return len(self.queries)

    def item_weights(self) -> NDArray[np.float64]:
        """Sum the weights of each item's pairs, float64 [num_items]: how often it is drawn as a positive."""
        sums = np.zeros(self.num_items)
        for begin in range(0, len(self), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            sums += np.bincount(self.items[part], weights=self.weights[part], minlength=self.num_items)
        return sums

    def index(self) -> PairIndex:
        """Index the pairs by query; the index shares their items."""
        counts = np.bincount(self.queries, minlength=self.num_queries)
        indptr = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])
        return PairIndex.from_sorted(indptr, self.items, num_right=self.num_items)

    def keep(self, mask: NDArray[np.bool_]) -> Positives:
        """Keep the pairs where the mask is true."""
        return Positives(
            queries=self.queries[mask],
            items=self.items[mask],
            weights=self.weights[mask],
            first_times=None if self.first_times is None else self.first_times[mask],
            num_queries=self.num_queries,
            num_items=self.num_items,
        )

    @classmethod
    def from_pairs(
        cls,
        queries: NDArray[Any],
        items: NDArray[Any],
        *,
        num_queries: int,
        num_items: int,
        weights: NDArray[Any] | None = None,
    ) -> Positives:
        """Take plain pairs [E] without a time; one that stands twice counts double.

        Args:
            queries: int [E].
            items: int [E].
            num_queries: rows of the queries' table.
            num_items: rows of the items' table.
            weights: how often each pair stands there, [E], finite and not negative; a pair of weight zero is none. None for
                once each.

        Raises:
            ValueError: if the columns' lengths differ, a row lies outside its table, or a weight is no such number.
            TypeError: if rows are no integers.
        """
        whole(0)("num_queries", num_queries)
        whole(0)("num_items", num_items)
        queries, items = np.asarray(queries), np.asarray(items)
        for name, column in (("queries", queries), ("items", items)):
            if not column.ndim or (len(column) and column.dtype.kind not in "iu"):
                raise TypeError(f"{name} are {column.dtype}; expected integer rows of a table (for ids, see `read_pairs`)")
        check_rows(queries, items, num_left=num_queries, num_right=num_items)
        columns = EdgeColumns(
            queries=queries.astype(np.int32),
            items=items.astype(np.int32),
            weights=np.ones(1),
            times=np.full(1, _UNTIMED),
            repetitions=None if weights is None else _check_repetitions(weights, len(queries), "weights"),
        )
        return cls.merge([columns], num_queries=num_queries, num_items=num_items)

    @classmethod
    def merge(cls, parts: Sequence[EdgeColumns], *, num_queries: int, num_items: int, with_times: bool = True) -> Positives:
        """Sum edges into distinct pairs; the rows are not checked."""
        indptr, merged, weights, first_times = merge_edges(parts, num_queries=num_queries, with_times=with_times)
        return cls(
            queries=np.repeat(np.arange(num_queries, dtype=np.int32), np.diff(indptr)),
            items=merged,
            weights=weights,
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
        The positives, of weight above zero. An edge of a weighted relation counts as often as its weight says.

    Raises:
        ValueError: if a type or relation is unknown or joins other types, an edge has a negative weight, or there are no
            positives.
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
    columns: list[EdgeColumns] = []
    end_us = _window_end_us(view, weights) if config.half_life_days is not None else 0
    with_times = config.validation.num_queries > 0
    for name, weight in weights.items():
        if weight == 0 or view.num_edges[name] == 0:
            continue
        part = _read_edges(view, name, weight, config, end_us, with_times=with_times)
        if part is not None:
            columns.append(part)
    if not columns:
        raise ValueError(
            f"there are no positives from {config.query_type!r} to {config.item_type!r}: the weights are {weights} and "
            f"the view has { {name: view.num_edges[name] for name in joining} } edges; widen the window or the weights"
        )
    return Positives.merge(
        columns,
        num_queries=view.num_nodes[config.query_type],
        num_items=view.num_nodes[config.item_type],
        with_times=with_times,
    )


def _read_edges(
    view: GraphView, name: str, weight: float, config: PositivesConfig, end_us: int, *, with_times: bool
) -> EdgeColumns | None:
    """Read the edges of one relation; None if all of them stand there zero times."""
    edges = view.edges(name)
    edge_weights, times = np.full(1, weight), np.full(1, _UNTIMED)
    if edges.time is not None and config.half_life_days is not None:
        edge_weights = weight * np.exp2(-(end_us - edges.time.numpy()) / (config.half_life_days * _DAY_US))
    if edges.time is not None and with_times:
        times = edges.time.numpy()
    repetitions = None
    if edges.weight is not None:
        repetitions = _check_repetitions(edges.weight.numpy(), len(edges), f"the weights of relation {name!r}")
        if not repetitions.any():
            return None
    return EdgeColumns(
        queries=edges.src.numpy(), items=edges.dst.numpy(), weights=edge_weights, times=times, repetitions=repetitions
    )


def compose(positives: Positives, view: GraphView, item_type: str, tower: ComposedTower) -> Positives:
    """Carry positives over from items to the nodes that they are related to.

    An item related to several nodes shares its weight among them by the weights of its edges to them, evenly where these are
    alike; one related to none drops out.

    Args:
        positives: pairs of query and item.
        view: the graph window.
        item_type: node type of the items.
        tower: which nodes, through which relation.

    Returns:
        Pairs of query and node.

    Raises:
        ValueError: if the relation does not join the two types, an edge of it has a negative weight, or no positive has such
            a node.
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
    through = Positives.merge(
        [
            EdgeColumns(
                queries=item_end.numpy(),
                items=node_end.numpy(),
                weights=np.ones(1),
                times=np.full(1, _UNTIMED),
                repetitions=None
                if edges.weight is None
                else _check_repetitions(edges.weight.numpy(), len(edges), f"the weights of relation {tower.through!r}"),
            )
        ],
        num_queries=view.num_nodes[item_type],
        num_items=num_nodes,
        with_times=False,
    )
    nodes_of = through.index()
    fanout = np.diff(nodes_of.indptr)[positives.items]
    if not fanout.any():
        raise ValueError(f"no item of the positives has an edge of {tower.through!r}; leave the tower out")
    pair = np.repeat(np.arange(len(positives)), fanout)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(fanout) - fanout, fanout)
    places = nodes_of.indptr[positives.items[pair]] + within
    shares: NDArray[np.float64] = through.weights[places].astype(np.float64)
    totals = np.bincount(through.queries, weights=through.weights, minlength=through.num_queries)
    columns = EdgeColumns(
        queries=positives.queries[pair],
        items=nodes_of.indices[places],
        weights=positives.weights[pair] / (totals[positives.items[pair]] / shares),
        times=np.full(1, _UNTIMED),
    )
    return Positives.merge([columns], num_queries=positives.num_queries, num_items=num_nodes, with_times=False)


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
    if not validation.num_queries:
        return positives, positives.keep(np.zeros(len(positives), dtype=np.bool_))
    if positives.first_times is None:
        raise ValueError("items are held out by their times, which these positives were read without")
    counts = np.bincount(positives.queries, minlength=positives.num_queries)
    eligible = np.flatnonzero(counts >= validation.num_latest + validation.min_remaining)
    chosen = generator.choice(eligible, size=min(validation.num_queries, len(eligible)), replace=False)
    is_chosen = np.zeros(positives.num_queries, dtype=np.bool_)
    is_chosen[chosen] = True
    of_chosen = np.flatnonzero(is_chosen[positives.queries])
    queries, tie_breaks = positives.queries[of_chosen], generator.random(len(positives))[of_chosen]
    order = np.lexsort((tie_breaks, positives.first_times[of_chosen], queries))
    own_counts = counts[np.flatnonzero(is_chosen)]
    from_the_end = np.repeat(np.cumsum(own_counts), own_counts) - np.arange(len(order))
    held_out = np.zeros(len(positives), dtype=np.bool_)
    held_out[of_chosen[order[from_the_end <= validation.num_latest]]] = True
    return positives.keep(~held_out), positives.keep(held_out)


def _check_repetitions(weights: NDArray[Any], num_edges: int, what: str) -> NDArray[np.float64]:
    """Give how often each edge stands there, float64 [E]."""
    try:
        column = np.asarray(weights).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} are no numbers: {error}") from error
    if column.shape != (num_edges,):
        raise ValueError(f"{what} are {list(column.shape)}; expected one for each of {num_edges} edges")
    wrong = ~((column >= 0) & np.isfinite(column))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{what}: edge {place} has {column[place]:g}, and {int(wrong.sum())} of {num_edges} are such. An edge's weight "
            "says how often it stands there, so it must be a finite number of zero or more: leave such edges out, or load them "
            "as a relation of their own"
        )
    return column


def _window_end_us(view: GraphView, names: Sequence[str] | dict[str, float]) -> int:
    if view.as_of is not None:
        return int(np.datetime64(view.as_of.replace(tzinfo=None), "us").astype(np.int64))
    times = [view.edges(name).time for name in names]
    return max((int(time.max()) for time in times if time is not None and len(time)), default=0)
