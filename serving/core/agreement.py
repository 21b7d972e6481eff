"""Whether rows that came may be taken for those that were asked for: the check that keeps scores from being mixed."""

from __future__ import annotations

from typing import Literal, TypeAlias

Misfit: TypeAlias = Literal["", "version", "shard"]

_WHOLE = (0, 1)


def misfit(asked: str, given: str, shard: tuple[int, int] = _WHOLE, given_shard: tuple[int, int] = _WHOLE) -> Misfit:
    """What keeps rows from being taken; empty if they may be.

    Args:
        asked: The version that was asked for, or that an upper model is of.
        given: The version that the rows are of.
        shard: The shard that was asked for, as (its index, of how many).
        given_shard: The shard that the rows are of.

    Example:
        >>> misfit("a", "b"), misfit("a", "a", (0, 2), (1, 2)), misfit("a", "a")
        ('version', 'shard', '')
    """
    if given != asked:
        return "version"
    return "" if given_shard == shard else "shard"
