"""A tower: the positives between queries and one table, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tables.candidates import CandidateSampler
from tables.negatives import AliasSampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from contrastive.config import ContrastiveConfig
    from contrastive.positives import Positives
    from tables.candidates import Candidates
    from tables.pairs import PairIndex

__all__ = ["Batch", "Tower"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Positives of one tower and what they are compared with.

    Attributes:
        queries: rows of the queries' table, int32 [B].
        candidates: rows of the tower's table, with each example's positive among them.
    """

    queries: NDArray[np.int32]
    candidates: Candidates


class Tower:
    """Draws batches of positives, in proportion to their weights, with their candidates.

    Args:
        node_type: node type of the tower's table.
        positives: pairs of query and node of that type.
        config: batch size and negatives.
        share: steps for each step of the items' tower.
    """

    def __init__(self, node_type: str, positives: Positives, config: ContrastiveConfig, *, share: float) -> None:
        self.node_type = node_type
        self.positives = positives
        self.share = share
        self._batch_size = config.batch_size
        self._draws = AliasSampler(positives.weights)
        self._known: PairIndex | None = positives.index() if config.mask_known else None
        self.sampler = CandidateSampler(
            positives.item_weights(),
            num_uniform=config.num_uniform,
            num_degree=config.num_degree,
            degree_power=config.degree_power,
            queue_size=config.queue_size,
        )

    def draw(self, generator: np.random.Generator) -> Batch:
        """Draw a batch with replacement: the chance of an item in it is then known exactly."""
        pairs = self._draws.draw(self._batch_size, generator)
        queries = self.positives.queries[pairs]
        candidates = self.sampler.draw(self.positives.items[pairs], generator, queries=queries, known=self._known)
        return Batch(queries=queries, candidates=candidates)
