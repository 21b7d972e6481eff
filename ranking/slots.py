"""Slots: which feature and facet each of an upper model's looked-up rows is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RECENT_PINS: Final = "recent_pins"
#: Features that tell of the user; all others tell of the candidate.
USER_FEATURES: Final = ("user", RECENT_PINS)


class Slot(NamedTuple):
    """One of the rows that an upper model sees of an example.

    Attributes:
        feature: Id feature, such as "user"; or "recent_pins", whose row is pooled.
        facet: Which pretraining its table may have started from, such as "kge".
    """

    feature: str
    facet: str


def make_slots(slots: Iterable[tuple[str, str]]) -> tuple[Slot, ...]:
    """Check that no slot occurs twice.

    Args:
        slots: (feature, facet) of each.

    Raises:
        ValueError: If one does.
    """
    made = tuple(Slot(*slot) for slot in slots)
    if len(set(made)) != len(made):
        raise ValueError(f"slots are {[tuple(slot) for slot in made]}; each (feature, facet) may occur once")
    return made


def facing_pairs(slots: Sequence[Slot]) -> list[tuple[int, int]]:
    """Pair each of the user's slots with each of the candidate's of the same facet.

    Args:
        slots: The slots.

    Returns:
        Positions (user's, candidate's). Rows of different facets are not paired: their spaces have nothing in common.

    Example:
        >>> facing_pairs(make_slots([("user", "kge"), ("pin", "kge"), ("pin", "contrastive")]))
        [(0, 1)]
    """
    return [
        (left, right)
        for left, mine in enumerate(slots)
        for right, other in enumerate(slots)
        if mine.feature in USER_FEATURES and other.feature not in USER_FEATURES and mine.facet == other.facet
    ]
