"""What a search has tried and found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Final", "Record", "curve", "summarise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One training of a search.

    Attributes:
        round: number of its round; later rounds train for longer.
        family: what its settings are of.
        values: what was chosen for it.
        source: where the values came from: a recipe, the sampler, or the round before.
        epochs: how long it was to be trained.
        score: of validation, at its end or where it was stopped; 0 where the loss was not a number.
        curve: share of the training -> score of validation.
        pruned: whether it was stopped before its end.
        cpu_seconds: what it cost, the measuring of its speed included.
    """

    round: int
    family: str
    values: Mapping[str, Any]
    source: str
    epochs: int
    score: float
    curve: tuple[tuple[float, float], ...] = ()
    pruned: bool = False
    cpu_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON-able values."""
        return {
            "round": self.round,
            "family": self.family,
            "values": dict(self.values),
            "source": self.source,
            "epochs": self.epochs,
            "score": self.score,
            "curve": [list(point) for point in self.curve],
            "pruned": self.pruned,
            "cpu_seconds": self.cpu_seconds,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Take what `to_dict` gave."""
        return cls(**{**document, "curve": tuple((share, score) for share, score in document["curve"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Final:
    """The winner, trained anew in one seed.

    Attributes:
        seed: its seed.
        score: of the whole validation part.
        cpu_seconds: what it cost.
    """

    seed: int
    score: float
    cpu_seconds: float = 0.0


def curve(records: Sequence[Record]) -> list[tuple[float, float]]:
    """Give the best score of any finished trial against the CPU minutes spent, where it rose."""
    points: list[tuple[float, float]] = []
    spent, best = 0.0, -math.inf
    for record in records:
        spent += record.cpu_seconds
        if not record.pruned and record.score > best:
            best = record.score
            points.append((round(spent / 60, 3), best))
    return points


def summarise(scores: Sequence[float]) -> tuple[float, float]:
    """Give the mean of scores and half their range.

    Example:
        >>> summarise([0.25, 0.75])
        (0.5, 0.25)
    """
    return sum(scores) / len(scores), (max(scores) - min(scores)) / 2
