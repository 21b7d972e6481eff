"""What a sampler is to draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from multifacet.graphdb.reverse import EdgeType
from multifacet.graphdb.sql import GraphError

Backend = Literal["auto", "numba", "pyg_lib"]
TemporalStrategy = Literal["uniform", "last"]


class SamplerConfig(BaseModel):
    """The settings of a `MultifacetSampler`.

    Example:
        >>> SamplerConfig(num_neighbors=[15, 10]).fanouts([("user", "clicks", "pin")])
        {('user', 'clicks', 'pin'): [15, 10]}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_neighbors: list[int] | dict[EdgeType | str, list[int]] = Field(
        description="edges to draw for a node at each hop, -1 for all; one list, or one for each edge type or relation name "
        "(relations that are not named are not walked)"
    )
    replace: bool = Field(default=False, description="whether an edge may be drawn more than once for a node")
    disjoint: bool = Field(
        default=False, description="whether each seed has a subgraph of its own; temporal sampling always does"
    )
    temporal: TemporalStrategy | None = Field(
        default=None,
        description="draw only edges strictly before the seed's time: uniform among them, or the last ones; None ignores times",
    )
    negative_alpha: float = Field(
        default=0.0,
        ge=0,
        description="negatives of a link are drawn in proportion to degree^alpha within the link's relation; 0 is uniform",
    )
    exclude_positives: bool = Field(
        default=False,
        description="draw a link's negative again where it is an edge of the link's relation; in temporal sampling, an edge up "
        "to the link's time",
    )
    seed: int = Field(default=0, description="seed of all that the sampler draws")
    backend: Backend = Field(
        default="auto", description="numba (this package's own kernels), pyg_lib, or auto: numba, which is the faster"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        lists = self.num_neighbors.values() if isinstance(self.num_neighbors, dict) else [self.num_neighbors]
        lengths = {len(fanouts) for fanouts in lists}
        if len(lengths) != 1 or 0 in lengths:
            msg = f"num_neighbors has {sorted(lengths)} hops; every relation needs the same number, at least 1"
            raise ValueError(msg)
        if any(fanout < -1 for fanouts in lists for fanout in fanouts):
            msg = f"num_neighbors={self.num_neighbors}: expected numbers from 0 up, or -1 for all neighbours"
            raise ValueError(msg)
        if self.replace and self.temporal == "last":
            msg = "replace=True draws at random, temporal='last' does not; leave one of them out"
            raise ValueError(msg)
        return self

    @property
    def num_hops(self) -> int:
        """Hops from the seeds."""
        return len(next(iter(self.num_neighbors.values())) if isinstance(self.num_neighbors, dict) else self.num_neighbors)

    @property
    def is_disjoint(self) -> bool:
        """Whether each seed has a subgraph of its own."""
        return self.disjoint or self.temporal is not None

    def fanouts(self, edge_types: Iterable[EdgeType]) -> dict[EdgeType, list[int]]:
        """The fanouts of each edge type, hop by hop.

        Raises:
            GraphError: `num_neighbors` names an edge type that is not there, or by a name that several have.
        """
        edge_types = list(edge_types)
        if not isinstance(self.num_neighbors, dict):
            return {edge_type: list(self.num_neighbors) for edge_type in edge_types}
        fanouts = {edge_type: [0] * self.num_hops for edge_type in edge_types}
        for name, wanted in self.num_neighbors.items():
            found = [edge_type for edge_type in edge_types if name in (edge_type, edge_type[1])]
            if len(found) != 1:
                msg = f"num_neighbors names {name!r}, which {len(found)} edge types are called; the edge types are {edge_types}"
                raise GraphError(msg)
            fanouts[found[0]] = list(wanted)
        return fanouts
