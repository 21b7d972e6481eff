"""Sampling from the graph: neighbourhoods for PyG's loaders, negatives, and random walks."""

from graphdb.sampling.adjacency import Adjacency
from graphdb.sampling.config import SamplerConfig
from graphdb.sampling.negatives import NegativeSampler
from graphdb.sampling.sampler import MultifacetSampler
from graphdb.sampling.topology import Topology
from graphdb.sampling.walks import MetapathWalker

__all__ = ["Adjacency", "MetapathWalker", "MultifacetSampler", "NegativeSampler", "SamplerConfig", "Topology"]
