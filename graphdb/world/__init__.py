"""Synthetic worlds of any size whose truth is known: interests that drift, clicks, conversions, churn and noise."""

from graphdb.world.config import WorldConfig
from graphdb.world.response import Response
from graphdb.world.world import World

__all__ = ["Response", "World", "WorldConfig"]
