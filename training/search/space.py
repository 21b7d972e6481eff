"""What a search may choose from: ranges and choices of the fields of a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Choice", "Family", "Range", "Recipe", "Space", "widen"]

# A best value this near an edge, as a share of the range, says that better ones may lie beyond it.
_EDGE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers between two others, the same chance for each factor.

    Attributes:
        low: smallest number, above 0.
        high: largest number.
        least: what widening stops at below; 0 for no end.
        most: what widening stops at above.
        whole: whether the numbers are whole.

    Raises:
        ValueError: if the ends are not in order, or not above 0.

    Example:
        >>> Range(low=0.01, high=1.0)
        Range(low=0.01, high=1.0, least=0.0, most=inf, whole=False)
    """

    low: float
    high: float
    least: float = 0.0
    most: float = math.inf
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"a range needs 0 < low < high, as it is tried by factors; got {self.low:g} to {self.high:g}")
        if self.low < self.least or self.high > self.most:
            raise ValueError(
                f"{self.low:g} to {self.high:g} is not within what widening stops at, {self.least:g}, {self.most:g}"
            )

    def place(self, value: float) -> float:
        """Give where a value lies: 0 at the lower end, 1 at the upper one."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def including(self, value: float) -> Range:
        """Give the range, wide enough for a value."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def widened(self, value: float) -> Range:
        """Give the range, half as wide again towards an end that a value lies at; the same if it lies at none."""
        factor = math.sqrt(self.high / self.low)
        low, high = self.low, self.high
        if self.place(value) < _EDGE:
            low = max(low / factor, self.least or low / factor)
        elif self.place(value) > 1.0 - _EDGE:
            high = min(high * factor, self.most)
        if self.whole:
            low, high = max(1.0, round(low)), round(high)
        return replace(self, low=low, high=high)

    def is_edge(self, value: float) -> bool:
        """Say whether a value lies at an end."""
        return not _EDGE <= self.place(value) <= 1.0 - _EDGE


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values.

    Attributes:
        values: numbers, words, flags or None.

    Raises:
        ValueError: if there are none.

    Example:
        >>> Choice((0.0, 0.1)).values
        (0.0, 0.1)
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a choice has no values: give at least one")


Space = dict[str, "Range | Choice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Configurations that share what a space can not vary: a preset, or a base.

    Attributes:
        settings: fields that all of its trials have, by dotted name.
        space: dotted name of a field -> what it may be.
    """

    settings: Mapping[str, Any]
    space: Space = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Values that people have found good before: where a search begins.

    Attributes:
        family: name of the family.
        values: by dotted name, for all of the family's space.
    """

    family: str
    values: Mapping[str, Any]


def widen(space: Space, best: Mapping[str, Any]) -> Space:
    """Widen each range of a space whose end the best values lie at.

    Args:
        space: the space.
        best: the best values so far.

    Returns:
        The space, with wider ranges where there was reason.
    """
    return {
        name: part.widened(best[name]) if isinstance(part, Range) and name in best and part.is_edge(best[name]) else part
        for name, part in space.items()
    }
