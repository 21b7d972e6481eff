"""Sampling from the graph: neighbourhoods for PyG's loaders, negatives, and random walks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multifacet.graphdb.sampling.adjacency import Adjacency
from multifacet.graphdb.sampling.config import SamplerConfig
from multifacet.graphdb.sampling.negatives import NegativeSampler
from multifacet.graphdb.sampling.topology import Topology
from multifacet.graphdb.sampling.walks import MetapathWalker

if TYPE_CHECKING:
    from multifacet.graphdb.sampling.sampler import MultifacetSampler

__all__ = ["Adjacency", "MetapathWalker", "MultifacetSampler", "NegativeSampler", "SamplerConfig", "Topology"]


def __getattr__(name: str) -> Any:
    """Imports the sampler of neighbourhoods at its first use: walks and negatives need not wait seconds for PyG."""
    if name != "MultifacetSampler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from multifacet.graphdb.sampling.sampler import MultifacetSampler  # noqa: PLC0415

    return MultifacetSampler
