"""A measurement, beside that of a peer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["lower", "higher"]
LOWER: Direction = "lower"
HIGHER: Direction = "higher"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is measured.

    Attributes:
        name: `p50_latency`, `edges_per_s`.
        unit: `us`, `s`, `bytes`, `1/s`; "" for a pure number.
        better: Whether lower or higher values are better.
    """

    name: str
    unit: str
    better: Direction


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The same measurement of what one would otherwise use, made in the same run.

    Attributes:
        name: `redis 8.2`, `torch.index_add`.
        value: In the metric's unit.
    """

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        case: The model or the size that it is of: `complex d=100`, `8M rows`.
        metric: What was measured.
        value: In the metric's unit.
        peer: What it is compared with; None where there is nothing to compare.
        config: Everything that someone would need to measure it again.

    Raises:
        ValueError: If a value is not finite, or the ratio to the peer's is not defined.
    """

    case: str
    metric: Metric
    value: float
    peer: Peer | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"{self.case!r}, {self.metric.name}"
        if not math.isfinite(self.value):
            raise ValueError(f"{where}: the value is {self.value}, not a finite number; measure again")
        if self.peer is not None and not (math.isfinite(self.peer.value) and self.peer.value > 0 and self.value > 0):
            message = f"{where}: {self.value} against {self.peer.name}'s {self.peer.value}; a ratio needs positive values"
            raise ValueError(message)

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer, whatever the unit: 2.0 is twice as fast, or half as large."""
        if self.peer is None:
            return None
        if self.metric.better == HIGHER:
            return self.value / self.peer.value
        return self.peer.value / self.value

    def document(self, benchmark: str, machine: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
        """The row as it is written: one JSON object."""
        return {
            "benchmark": benchmark,
            "case": self.case,
            "metric": self.metric.name,
            "value": self.value,
            "unit": self.metric.unit,
            "peer": self.peer.name if self.peer else None,
            "peer_value": self.peer.value if self.peer else None,
            "ratio": self.ratio,
            "machine": dict(machine),
            "versions": dict(versions),
            "config": dict(self.config),
        }
