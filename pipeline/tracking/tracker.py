"""What a place that runs are told to takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Tracker"]


class Tracker(Protocol):
    """Somewhere that one run is told to."""

    def child(self, name: str) -> Tracker:
        """Begin a run within this one."""

    def parameters(self, values: Mapping[str, str]) -> None:
        """Tell how it was set."""

    def figures(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Tell what was measured; by step it is a curve."""

    def reference(self, name: str, value: str) -> None:
        """Tell where something is, or what it is."""

    def end(self, *, failed: bool) -> None:
        """End it."""
