"""A feed's edges in another order each epoch: some shards open at once, and a buffer that is shuffled.

    shards, in the epoch's order     3 | 0 | 5 | 1 | 4 | 2
    open at once                     [3  0  5], the next one when one has been read
    buffer                           a block of each open shard, shuffled, then given out

The shards are in random order already, so that what a buffer holds is a random part of the edges; the buffer sees to it that
edges that were in one batch in one epoch are not in the next. Memory holds two buffers, however many edges there are.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from multifacet.graphdb import Feed

__all__ = ["Edges", "deal_shards", "read_shuffled"]


class Edges(NamedTuple):
    """Some edges of a feed, as columns [n].

    Attributes:
        relations: numbers of relations.
        heads: rows of their types.
        tails: rows of their types.
    """

    relations: NDArray[Any]
    heads: NDArray[Any]
    tails: NDArray[Any]

    def take(self, positions: NDArray[np.int64]) -> Edges:
        """Give some of them."""
        return Edges(*(column[positions] for column in self))

    def before(self, others: Edges) -> Edges:
        """Put others after these."""
        return Edges(*(np.concatenate(pair) for pair in zip(self, others, strict=True)))


def deal_shards(num_shards: int, key: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Give the shards that a process reads in an epoch, in its order: every W-th of a permutation that all draw alike.

    Args:
        num_shards: shards of the feed.
        key: of the epoch.
        rank: number of the process.
        world_size: processes, W.
    """
    return np.random.default_rng((key, 0)).permutation(num_shards)[rank::world_size]


def read_shuffled(
    feed: Feed, shards: Sequence[int], generator: np.random.Generator, *, buffer_edges: int, num_open: int
) -> Iterator[Edges]:
    """Read shards through a buffer.

    Args:
        feed: the feed.
        shards: in the order in which they are opened.
        generator: source of the shuffles.
        buffer_edges: edges of a buffer.
        num_open: shards that are open at once.

    Yields:
        Buffers; the last one has what is left.
    """
    waiting = list(shards)[::-1]
    with ExitStack() as stack:
        opened: list[Any] = []
        turn = 0
        while opened or waiting:
            parts, room = [], buffer_edges
            while room and (opened or waiting):
                while waiting and len(opened) < num_open:
                    opened.append(stack.enter_context(feed.shard(waiting.pop())))
                reader = opened[turn % len(opened)]
                part = reader.read(min(room, max(1, buffer_edges // num_open)))
                parts.append(part)
                room -= len(part)
                if len(reader):
                    turn += 1
                else:
                    reader.close()
                    opened.remove(reader)
            order = generator.permutation(buffer_edges - room)
            columns = (np.concatenate([part[name] for part in parts])[order] for name in ("relation", "src", "dst"))
            # One type for all feeds: the kernels that take them are compiled once.
            yield Edges(*(column.astype(np.int32, copy=False) for column in columns))
