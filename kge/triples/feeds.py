"""A feed's triples: those in its shards, which no memory holds whole, and those that are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from multifacet.kge.triples.triples import TripleSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from multifacet.graphdb import Feed

__all__ = ["FeedSplit", "FeedTriples"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedTriples:
    """The triples in a feed's shards, as a trainer sees them: their vocabulary and their number.

    Attributes:
        feed: the feed.
    """

    feed: Feed

    @property
    def relation_names(self) -> tuple[str, ...]:
        """Names of the relations."""
        return tuple(relation.name for relation in self.feed.relations)

    @property
    def ends(self) -> Mapping[str, tuple[str, str]]:
        """Relation name -> (node type of the heads, node type of the tails)."""
        return {relation.name: (relation.src, relation.dst) for relation in self.feed.relations}

    @property
    def num_nodes(self) -> Mapping[str, int]:
        """Node type -> nodes."""
        return self.feed.num_nodes

    @property
    def weights(self) -> None:
        """None: each triple is learned from once an epoch."""
        return

    def __len__(self) -> int:
        return sum(self.feed.num_edges.values())

    def gathered(self, records: NDArray[Any]) -> TripleSet:
        """Give some records as triples in memory."""
        return TripleSet(
            heads=records["src"].astype(np.int32),
            relations=records["relation"].astype(np.int32),
            tails=records["dst"].astype(np.int32),
            relation_names=self.relation_names,
            ends=self.ends,
            num_nodes=self.num_nodes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedSplit:
    """A feed's triples to learn from and to validate on.

    Attributes:
        train: those in the shards.
        valid: those that are held out.
        known: those of the shards that answer a query of a held-out one, which filtered ranks leave out.
    """

    train: FeedTriples
    valid: TripleSet
    known: TripleSet

    @classmethod
    def of(cls, feed: Feed) -> Self:
        """Read what a feed holds out, with what is known of its queries."""
        train = FeedTriples(feed=feed)
        return cls(train=train, valid=train.gathered(feed.held_out()), known=train.gathered(feed.known()))

    def __repr__(self) -> str:
        return f"FeedSplit({self.train.feed!r})"
