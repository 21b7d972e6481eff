"""A tower: the positives between queries and one table, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from multifacet.contrastive.candidates.candidates import CandidateSampler
from multifacet.contrastive.positives.draws import PositiveDraws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.contrastive.candidates.candidates import Candidates
    from multifacet.contrastive.candidates.hard import HardNegatives
    from multifacet.contrastive.config import ContrastiveConfig
    from multifacet.contrastive.positives.positives import Positives
    from multifacet.training import PairIndex

__all__ = ["Batch", "Tower"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Positives of one tower, by query, and what they are compared with.

    Attributes:
        queries: rows of the queries' table, each once, int32 [G].
        candidates: rows of the tower's table, with the queries' positives among them.
        seed: of what a step drops of the queries' vectors.
    """

    queries: NDArray[np.int32]
    candidates: Candidates
    seed: int = 0

    def __len__(self) -> int:
        return len(self.candidates.targets.slots)


class Tower:
    """Draws batches of positives, in proportion to their weights, with their candidates.

    Args:
        node_type: node type of the tower's table.
        positives: pairs of query and node of that type.
        config: batch size and negatives.
        share: steps for each step of the items' tower.

    Attributes:
        known: the known positives of each query.
        hard: where hard negatives are drawn from; None for none.
    """

    def __init__(self, node_type: str, positives: Positives, config: ContrastiveConfig, *, share: float) -> None:
        self.node_type = node_type
        self.positives = positives
        self.share = share
        self.known: PairIndex = positives.index()
        self.hard: HardNegatives | None = None
        self._num_draws = config.batch_size // config.positives_per_query
        self._draws = PositiveDraws(positives, config.positives_per_query)
        self._mask = config.mask_known
        self._popularity_power = config.popularity_power
        self.sampler = CandidateSampler(
            positives.item_weights(),
            positive_chance=self._draws.item_chance(),
            num_uniform=config.num_uniform,
            num_degree=config.num_degree,
            degree_power=config.degree_power,
            queue_size=config.queue_size,
            in_batch=config.in_batch,
        )
        self._drops = config.query_dropout > 0

    def popularity_lengths(self) -> NDArray[np.float32]:
        """Give each item's length by its popularity, 1 for the mean of those that have positives, float32 [num_items]."""
        weights = self.positives.item_weights()
        has_some = weights > 0
        relative = np.where(has_some, weights, weights[has_some].min()) / weights[has_some].mean()
        lengths: NDArray[np.float32] = (relative**self._popularity_power).astype(np.float32)
        return lengths

    def set_hard(self, hard: HardNegatives) -> None:
        """Draw hard negatives from here on."""
        self.hard = hard
        self.sampler.set_hard_chance(hard.item_chance(self._draws.query_chance()))

    def draw(self, generator: np.random.Generator) -> Batch:
        """Draw a batch with replacement: the chance of an item in it is then known exactly."""
        pairs = self._draws.draw(self._num_draws, generator)
        of_pair = self.positives.queries[pairs]
        starts = np.flatnonzero(np.concatenate([np.ones(1, dtype=np.bool_), of_pair[1:] != of_pair[:-1]]))
        queries = of_pair[starts]
        indptr = np.append(starts, len(pairs)).astype(np.int64)
        candidates = self.sampler.draw(
            self.positives.items[pairs],
            indptr,
            generator,
            num_draws=self._num_draws,
            hard=None if self.hard is None else self.hard.draw(of_pair[:: len(pairs) // self._num_draws], generator),
            queries=queries,
            known=self.known if self._mask else None,
        )
        seed = int(generator.integers(1 << 62)) if self._drops else 0
        return Batch(queries=queries, candidates=candidates, seed=seed)
