"""The edges of a view as a trainer needs them: typed columns, held-out edges apart, known edges indexed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kge.triples import EdgeList
from tables.pairs import PairIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphdb import GraphView
    from kge.config import KgeConfig, KgeValidation

__all__ = ["EdgeList", "RelationEdges", "split_edges"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RelationEdges:
    """One relation's edges, split for training.

    Attributes:
        name: the relation's name.
        src: node type of the heads.
        dst: node type of the tails.
        train: edges that are learned from.
        held_out: distinct edges that are not; no train edge joins the same two nodes by this relation.
        known: all (head, tail) pairs, held-out ones included: what filtered ranks leave out.
        tails_of: the tails of each head in `train`: what is no negative. Masking held-out edges too would tell of them.
        heads_of: the heads of each tail in `train`.
    """

    name: str
    src: str
    dst: str
    train: EdgeList
    held_out: EdgeList
    known: PairIndex
    tails_of: PairIndex
    heads_of: PairIndex


def split_edges(view: GraphView, config: KgeConfig, generator: np.random.Generator) -> list[RelationEdges]:
    """Read a view's edges and set the validation's apart.

    Args:
        view: the graph window.
        config: which relations take part, and what is held out.
        generator: source of the held-out sample.

    Returns:
        The relations that have edges and a weight above zero, in the view's order.

    Raises:
        ValueError: if the configuration names a relation that the view lacks, or no edge is left to train on.
    """
    known_names = [relation.name for relation in view.relations]
    for field, names in (
        ("relation_weights", tuple(config.relation_weights)),
        ("validation.relations", config.validation.relations or ()),
    ):
        unknown = [name for name in names if name not in known_names]
        if unknown:
            raise ValueError(f"{field} names {unknown}, but the view has the relations {known_names}")
    chosen = [
        relation
        for relation in view.relations
        if config.relation_weights.get(relation.name, 1.0) > 0 and view.num_edges[relation.name] > 0
    ]
    if not chosen:
        raise ValueError(
            f"there are no edges to train on: the view has {dict(view.num_edges)} and the relation weights are "
            f"{config.relation_weights}; widen the window or the weights"
        )
    validated = [
        relation.name
        for relation in chosen
        if config.validation.relations is None or relation.name in config.validation.relations
    ]
    quota = config.validation.num_edges // max(1, len(validated))
    result = []
    for relation in chosen:
        edges = view.edges(relation.name)
        heads, tails = edges.src.numpy(), edges.dst.numpy()
        num_src, num_dst = view.num_nodes[relation.src], view.num_nodes[relation.dst]
        times = edges.time.numpy() if edges.time is not None else None
        held_out = _choose_held_out(
            heads,
            tails,
            times,
            num_dst=num_dst,
            quota=quota if relation.name in validated else 0,
            validation=config.validation,
            generator=generator,
        )
        known = PairIndex(heads, tails, num_left=num_src, num_right=num_dst)
        if config.distinct_edges:
            heads, tails = known.left(), known.indices
        if len(held_out):
            held_pairs = PairIndex(held_out.heads, held_out.tails, num_left=num_src, num_right=num_dst)
            kept = ~held_pairs.contains(heads, tails)
            heads, tails = heads[kept], tails[kept]
        result.append(
            RelationEdges(
                name=relation.name,
                src=relation.src,
                dst=relation.dst,
                train=EdgeList(heads=heads, tails=tails),
                held_out=held_out,
                known=known,
                tails_of=PairIndex(heads, tails, num_left=num_src, num_right=num_dst),
                heads_of=PairIndex(tails, heads, num_left=num_dst, num_right=num_src),
            )
        )
    return result


def _choose_held_out(
    heads: NDArray[np.int32],
    tails: NDArray[np.int32],
    times: NDArray[np.int64] | None,
    *,
    num_dst: int,
    quota: int,
    validation: KgeValidation,
    generator: np.random.Generator,
) -> EdgeList:
    if not quota:
        return EdgeList(heads=heads[:0], tails=tails[:0])
    keys, first = np.unique(heads.astype(np.int64) * num_dst + tails, return_index=True)
    size = min(quota, int(len(keys) * validation.max_fraction))
    if validation.choose == "latest" and times is not None:
        # The newest by FIRST appearance: nothing of such a pair lies before the time that it is asked for.
        starts = np.full(len(keys), np.iinfo(np.int64).max)
        np.minimum.at(starts, np.searchsorted(keys, heads.astype(np.int64) * num_dst + tails), times)
        chosen = np.argsort(starts, kind="stable")[len(keys) - size :]
    else:
        chosen = generator.choice(len(keys), size=size, replace=False)
    positions = first[np.sort(chosen)]
    return EdgeList(heads=heads[positions], tails=tails[positions])
