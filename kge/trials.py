"""What a search has tried and found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multifacet.kge.config import KgeConfig

__all__ = ["Search", "Trial"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training of a search.

    Attributes:
        config: what was trained, with the epochs that its round gave it.
        values: what the space gave it, by the fields' names.
        filtered_mrr: of validation, at its end; 0 where the loss stopped being a number.
    """

    config: KgeConfig
    filtered_mrr: float
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        config: the winner: what to train and to write into a snapshot.
        trials: every training, round by round.
        space: what was searched.
    """

    config: KgeConfig
    trials: tuple[Trial, ...]
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give the space and the trials as JSON-able values, for a snapshot's metrics."""
        return {
            "space": {name: list(values) for name, values in self.space.items()},
            "trials": [
                {"values": dict(trial.values), "epochs": trial.config.epochs, "filtered_mrr": trial.filtered_mrr}
                for trial in self.trials
            ],
        }
