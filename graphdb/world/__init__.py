"""Synthetic worlds of any size whose truth is known: interests that drift, clicks, conversions, churn and noise."""

from multifacet.graphdb.world.config import WorldConfig
from multifacet.graphdb.world.response import Response
from multifacet.graphdb.world.world import World

__all__ = ["Response", "World", "WorldConfig"]
