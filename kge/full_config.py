"""What training against all entities is configured by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multifacet.tables.configuration import Configuration

__all__ = ["FullSoftmaxConfig"]


class FullSoftmaxConfig(Configuration):
    """How each query is scored against every entity of the right type, instead of against sampled negatives."""

    optimizer: Literal["adagrad", "adam"] = Field(
        default="adagrad", description="of the tables and the relation parameters, with a state for each number"
    )
    weigh: Literal["triples", "queries"] = Field(
        default="triples",
        description="a query (head and relation, or relation and tail) counts as often as it has answers, as in 1-vs-all "
        "training, or once, as in KvsAll",
    )
    answers_compete: bool = Field(
        default=True, description="let a query's answers push each other down, as in 1-vs-all; filtered ranks don't"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of each target spread over all entities")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="chance of each number of a query to be dropped; not of distances"
    )
    products: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="what the matrix products with all entities multiply: bf16 trains about twice as fast on CPUs that "
        "have its instructions (avx512_bf16, amx_bf16), and slower on others; tables and their updates stay float32",
    )
    relation_prediction: float = Field(
        default=0.0,
        ge=0,
        description="weight of the loss of the relation among all that join the same types, its ends given (arXiv 2110.02834)",
    )
