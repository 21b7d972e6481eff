"""What draws the batches of epochs, as trainers see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from multifacet.kge.batches.batch import Batch

if TYPE_CHECKING:
    from multifacet.training import Position

__all__ = ["Epoch", "EpochSource"]


class Epoch(NamedTuple):
    """An epoch, or what is left of one.

    Attributes:
        num_steps: steps of the whole epoch.
        batches: those that are left.
    """

    num_steps: int
    batches: Iterator[Batch]


class EpochSource(Protocol):
    """Draws batches: of triples in memory, or of a feed."""

    @property
    def chunk_size(self) -> int:
        """Edges a chunk, B."""

    @property
    def num_chunks(self) -> int:
        """Chunks of a full batch, C."""

    @property
    def mixes_relations(self) -> bool:
        """Whether a chunk's relations are mixed."""

    @property
    def max_candidates(self) -> int:
        """The most candidates that a side has."""

    @property
    def num_readers(self) -> int | None:
        """Processes that share an epoch's edges out, each drawing batches of its own; None where all draw the same ones."""

    def begin_epoch(self, position: Position) -> Epoch:
        """Draw the order of an epoch from the position's generator; in the middle of one, that with which it began."""
