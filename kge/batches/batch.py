"""A batch of triples in chunks, each side with what it is compared with.

batch = C chunks of up to B edges          (batch_size = C * B)
known       [C, B]    the ends that queries are made of: heads where tails are asked for
candidates  [C, N]    what each chunk's queries are compared with: its own positives, uniform and degree-weighted draws
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from multifacet.kge.batches.chunks import ChunkCandidates
    from multifacet.kge.models.model import Side
    from multifacet.tables.optim import Occurrences

__all__ = ["Batch", "BatchSide"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSide:
    """One side of a batch: its edges' ends on that side are asked for, the others are known.

    Attributes:
        side: the side that is asked for.
        rows: each chunk's known ends, then its candidates, in the block of all types, [C, B + N]: int32, or int64 where tables
            are other processes' memory.
        keys: rows of the relation parameters, int32 [C, B].
        candidates: what is compared; its rows count in the block of all types.
    """

    side: Side
    rows: NDArray[Any]
    keys: NDArray[np.int32]
    candidates: ChunkCandidates

    @property
    def known(self) -> NDArray[Any]:
        """Rows of the known ends, [C, B]."""
        return self.rows[:, : self.keys.shape[1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Edges of one pair of node types in chunks, with their candidates.

    Attributes:
        num_edges: edges, padding left out.
        weights: each edge's share of the batch's loss, float32 [C, B]; 0 for padding.
        sides: tails asked for, then heads.
        rows: the places of each entity in the first side's rows, then in the second's; a place without a gradient is none.
            Empty, as `keys`, where tables are other processes' memory.
        keys: the places of each relation in the blocks of the first and the second side: an edge each, or a chunk each where
            chunks have one relation.
    """

    num_edges: int
    weights: NDArray[np.float32]
    sides: tuple[BatchSide, BatchSide]
    rows: Occurrences
    keys: Occurrences

    @property
    def num_chunks(self) -> int:
        """Chunks, C."""
        return len(self.weights)
