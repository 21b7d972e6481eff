"""How an approximate index is built, and how right it has to be."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multifacet.inputs import Configuration

__all__ = ["IndexConfig"]


class IndexConfig(Configuration):
    """The settings of an index.

    Example:
        >>> IndexConfig(recall=0.99).k
        10
    """

    backend: Literal["faiss", "usearch"] = Field(default="faiss", description="what searches; usearch has hnsw only")
    structure: Literal["auto", "ivf", "hnsw"] = Field(
        default="auto",
        description="ivf: lists of 4-bit codes, the quickest on one core; hnsw: a graph over whole vectors; auto: ivf from "
        "50,000 rows on, where faiss searches",
    )
    num_lists: int | None = Field(default=None, ge=1, description="ivf: lists; by default about 4 times the root of the rows")
    links: int = Field(default=32, ge=2, le=256, description="hnsw: links of a row")
    build_effort: int = Field(default=100, ge=1, description="hnsw: rows looked at to place one")
    k: int = Field(default=10, ge=1, description="neighbours that recall is measured of")
    recall: float = Field(default=0.95, gt=0, le=1, description="recall that a search has to reach on the sampled queries")
    num_queries: int = Field(default=1000, ge=2, description="queries sampled: half to choose the effort, half to report")
    seed: int = Field(default=0, ge=0, description="of all that is drawn")
