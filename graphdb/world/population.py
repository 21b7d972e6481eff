"""Who lives when, and how much of everything is theirs."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from multifacet.graphdb.counter import derive_key, fill_units
from multifacet.graphdb.world.alias import build_alias


@dataclasses.dataclass(frozen=True, kw_only=True)
class Population:
    """The nodes of one type over the whole world; a node's id is its position.

    As many live at any time: at each month's turn a share of the living, chosen at random, dies, and as many are born.

    Attributes:
        born: First month of each node's life, int16 [n].
        died: First month after it, the number of months where the node outlives the world, int16 [n].
        weights: Share of the activity or popularity, not normalised, float64 [n]. They follow a Pareto law, cut off where
            one of as many draws as nodes live would be expected.
    """

    born: NDArray[np.int16]
    died: NDArray[np.int16]
    weights: NDArray[np.float64]

    @classmethod
    def draw(
        cls, name: str, *, num_alive: int, churn_per_month: float, num_months: int, exponent: float, seed: int
    ) -> Population:
        """Draws the lives and weights of one type's nodes.

        Args:
            name: The node type, which tells its draws from those of others.
            num_alive: Nodes that live at any time.
            churn_per_month: Share of them that is replaced at a month's turn.
            num_months: Length of the world.
            exponent: Exponent of the weights' power law, above 1.
            seed: The world's seed.
        """
        num_replaced = round(churn_per_month * num_alive)
        total = num_alive + num_replaced * (num_months - 1)
        born = np.zeros(total, dtype=np.int16)
        died = np.full(total, num_months, dtype=np.int16)
        alive = np.arange(num_alive)
        for month in range(1, num_months) if num_replaced else ():
            luck = np.empty(num_alive)
            fill_units(derive_key(seed, name, "death", month), luck)
            ends = np.sort(np.argpartition(luck, num_replaced - 1)[:num_replaced])
            died[alive[ends]] = month
            first = num_alive + (month - 1) * num_replaced
            alive[ends] = np.arange(first, first + num_replaced)
            born[alive[ends]] = month
        return cls(born=born, died=died, weights=pareto(derive_key(seed, name, "weight"), total, exponent, num_alive))

    def __len__(self) -> int:
        return len(self.born)

    def alive(self, month: int) -> NDArray[np.int64]:
        """Ids of those that live in a month, ascending."""
        return np.flatnonzero((self.born <= month) & (self.died > month))

    def alias(self, month: int) -> NDArray[np.uint32]:
        """A table from which the living are drawn in proportion to their weights."""
        alive = self.alive(month)
        return build_alias(self.weights[alive], alive)


def pareto(key: np.uint64, total: int, exponent: float, cutoff: int) -> NDArray[np.float64]:
    """Draws numbers from 1 up with density x^-exponent.

    Args:
        key: Key of the draws.
        total: How many.
        exponent: Above 1.
        cutoff: No number is larger than what one in `cutoff` draws exceeds.
    """
    rank = np.empty(total)
    fill_units(key, rank)
    return np.asarray((1 / cutoff + (1 - 1 / cutoff) * rank) ** (-1 / (exponent - 1)))
