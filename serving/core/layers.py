"""Whether a delta may be laid over a release: its rows mean nothing over any other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """What a release says of its place above others.

    Attributes:
        version: Its version.
        base: Of a delta, the version that it lies over; empty if it is whole.
        depth: Of a delta, its distance from the whole release; 0 if it is whole.
    """

    version: str
    base: str = ""
    depth: int = 0


def misplaced(delta: Layer, base: Layer) -> str:
    """Why a delta may not be laid over a release; empty if it may.

    Example:
        >>> misplaced(Layer("b", "a", 1), Layer("a")), misplaced(Layer("b", "a", 1), Layer("c"))
        ('', 'it is not a delta over version c, but over a')
    """
    if not delta.base or delta.base != base.version:
        return f"it is not a delta over version {base.version}, but over {delta.base or 'none'}"
    if delta.depth != base.depth + 1:
        return f"it says that it is delta {delta.depth}, and its base is delta {base.depth}"
    return ""
