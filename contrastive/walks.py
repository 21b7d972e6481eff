"""More positives: items that random walks query-item-query-item reach over the training positives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from multifacet.contrastive.distinct import EdgeColumns
from multifacet.contrastive.positives import Positives
from multifacet.graphdb.sampling import Adjacency, MetapathWalker, Topology

if TYPE_CHECKING:
    from multifacet.contrastive.config import PositiveWalks

__all__ = ["add_walks"]

_NEVER = np.full(1, np.iinfo(np.int64).max)


def add_walks(positives: Positives, walks: PositiveWalks, *, seed: int) -> Positives:
    """Walk from every query over its positives, and count where the walks end as further positives.

    The walks see the positives alone, so nothing that was held out of them. A walk may end at an item that the query has: that
    item's weight grows.

    Args:
        positives: what to walk over, each step in proportion to weight.
        walks: how many, how far, and what they weigh together.
        seed: of the walks.

    Returns:
        The positives and the walks' ends, merged into distinct pairs.
    """
    weight = positives.weights
    shape: dict[str, Any] = {"num_src": positives.num_queries, "num_dst": positives.num_items}
    turned: dict[str, Any] = {"num_src": positives.num_items, "num_dst": positives.num_queries}
    topology = Topology(
        {"query": positives.num_queries, "item": positives.num_items},
        [
            Adjacency.from_edges(("query", "has", "item"), positives.queries, positives.items, weight=weight, **shape),
            Adjacency.from_edges(("item", "rev_has", "query"), positives.items, positives.queries, weight=weight, **turned),
        ],
    )
    walker = MetapathWalker(topology, ["has", *["has^-1", "has"] * walks.hops], seed=seed)
    starts = np.repeat(np.unique(positives.queries), walks.num_walks)
    ends = walker.walk(torch.from_numpy(starts)).numpy()[:, -1]
    arrived = ends >= 0
    own = np.bincount(positives.queries, weights=positives.weights, minlength=positives.num_queries)
    parts = [
        EdgeColumns(queries=positives.queries, items=positives.items, weights=positives.weights, times=_NEVER),
        EdgeColumns(
            queries=starts[arrived],
            items=ends[arrived],
            weights=own[starts[arrived]] * walks.weight / walks.num_walks,
            times=_NEVER,
        ),
    ]
    return Positives.merge(parts, num_queries=positives.num_queries, num_items=positives.num_items, with_times=False)
