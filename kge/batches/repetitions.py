"""Weighted triples as repeated ones: a triple of weight w stands in an epoch w times, on average where w is no integer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EpochPlaces", "Repetitions"]

# An epoch that is both so many times as long as its triples, and so long at all, is taken for a mistake in the weights' unit.
_MAX_REPETITIONS: Final = 64
_MAX_DRAWS: Final = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetitions:
    """How often each of some triples stands in an epoch.

    Attributes:
        whole: the weights' integer parts, int64 [n].
        fraction: the rest, float64 [n]: the chance of standing there once more; None where all weights are integers.
    """

    whole: NDArray[np.int64]
    fraction: NDArray[np.float64] | None

    @classmethod
    def of(cls, weights: NDArray[np.float64], *, bounded: bool, where: str) -> Self:
        """Take weights.

        Args:
            weights: float64 [n], finite and above zero.
            bounded: whether the epoch's length has another bound.
            where: which triples these are, for errors.

        Raises:
            ValueError: if an epoch would be many times as long as its triples, and too long to hold.
        """
        total = float(weights.sum())
        if not bounded and total > max(_MAX_DRAWS, _MAX_REPETITIONS * len(weights)):
            raise ValueError(
                f"the weights of the {len(weights)} triples between {where} sum to {total:.4g}: an epoch would repeat them so "
                "often. Divide the weights, or bound an epoch by max_edges_per_relation"
            )
        whole = np.floor(weights)
        fraction = weights - whole
        return cls(whole=whole.astype(np.int64), fraction=fraction if fraction.any() else None)

    def draw(self, generator: np.random.Generator) -> EpochPlaces:
        """Draw an epoch's counts; integer weights take nothing from the generator."""
        counts = self.whole
        if self.fraction is not None:
            counts = counts + (generator.random(len(counts)) < self.fraction)
        return EpochPlaces(ends=np.cumsum(counts))


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPlaces:
    """The places of an epoch: triple i has those from `ends[i - 1]` to `ends[i]`.

    Attributes:
        ends: int64 [n].
    """

    ends: NDArray[np.int64]

    def shuffle(
        self, generator: np.random.Generator, begin: int = 0, end: int | None = None, cap: int | None = None
    ) -> NDArray[np.int64]:
        """Give the triples of some places in a random order, as a permutation of triples that really stand there would.

        Args:
            generator: source of randomness.
            begin: first triple.
            end: last triple and one; None for all.
            cap: places that are given at most, a random choice of all.
        """
        end = len(self.ends) if end is None else end
        first = int(self.ends[begin - 1]) if begin else 0
        num_places = int(self.ends[end - 1]) - first if end > begin else 0
        if cap is not None and num_places > _MAX_DRAWS:
            # Too many to permute, and so many that hardly one is drawn twice.
            drawn = generator.integers(0, num_places, size=min(cap, num_places))
            return np.searchsorted(self.ends, first + drawn, side="right")
        drawn = generator.permutation(num_places)[:cap]
        if cap is not None:
            return np.searchsorted(self.ends, first + drawn, side="right")
        counts = np.diff(self.ends[begin:end], prepend=first)
        return np.repeat(np.arange(begin, end), counts)[drawn]
