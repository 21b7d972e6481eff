"""What a search says of itself: what it found, what mattered, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multifacet.training.search.sampler import measure_importance
from multifacet.training.search.space import Range
from multifacet.training.search.trials import curve, summarise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multifacet.training.search.space import Family
    from multifacet.training.search.trials import Final, Record

__all__ = ["SearchReport"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchReport:
    """What a search has found and tried.

    Attributes:
        best: the winner: the best trial of the last round.
        finals: the winner, trained anew in seeds that chose nothing.
        records: all trials in their order.
        families: what was searched, with ranges as wide as they ended.
        minutes: the budget.
    """

    best: Record
    finals: tuple[Final, ...]
    records: tuple[Record, ...]
    families: Mapping[str, Family]
    minutes: float

    @property
    def figure(self) -> tuple[float, float]:
        """The mean score of the winner's seeds, and half their range; of the winner's trial where there are no seeds."""
        return summarise([final.score for final in self.finals] or [self.best.score])

    def importance(self) -> dict[str, float]:
        """Give what share of the first round's variance each field of the winner's family explains."""
        whole = [r for r in self.records if r.round == 0 and r.family == self.best.family and not r.pruned]
        return measure_importance(self.families[self.best.family], whole)

    def advice(self) -> list[str]:
        """Say what to try next, in sentences; empty where nothing stands out."""
        family, values = self.families[self.best.family], self.best.values
        said = []
        for name, part in family.space.items():
            if isinstance(part, Range) and part.is_edge(values[name]):
                end = "low" if part.place(values[name]) < 0.5 else "high"
                said.append(f"{name}={values[name]:g} lies at the {end} end of {part.low:g} to {part.high:g}: try beyond it.")
        shorter = [r.score for r in self.records if r.round == self.best.round - 1 and not r.pruned]
        if shorter and self.best.score > 1.02 * max(shorter):
            said.append(
                f"Trials of {self.best.epochs} epochs still gain ({max(shorter):.4f} to {self.best.score:.4f}): train for more "
                "epochs, or search for more minutes."
            )
        mean, spread = self.figure
        if self.finals and mean < self.best.score - max(spread, 0.01 * self.best.score):
            said.append(
                f"The winner's own trial had {self.best.score:.4f} and its seeds {mean:.4f}: part of it was luck; search for "
                "more minutes, or hold out more."
            )
        num_sampled = sum(record.source == "sampler" for record in self.records)
        if num_sampled < 10:
            said.append(f"Only {num_sampled} trials went beyond the recipes: search for more minutes.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as JSON-able values, for a snapshot's metrics."""
        mean, spread = self.figure
        return {
            "minutes": self.minutes,
            "cpu_minutes": round(
                (sum(r.cpu_seconds for r in self.records) + sum(final.cpu_seconds for final in self.finals)) / 60, 2
            ),
            "figure": mean,
            "half_range": spread,
            "seeds": [{"seed": final.seed, "score": final.score} for final in self.finals],
            "best": self.best.to_dict(),
            "importance": self.importance(),
            "curve": [list(point) for point in curve(self.records)],
            "advice": self.advice(),
            "trials": [record.to_dict() for record in self.records],
        }
