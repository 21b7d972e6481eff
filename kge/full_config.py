"""What training against all entities is configured by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multifacet.inputs import Configuration

__all__ = ["FullSoftmaxConfig"]


# A younger option that is at its default is not written, so that what is kept by configurations stays what it was.
def _is_zero(value: object) -> bool:
    return value == 0.0


def _is_by_use(value: object) -> bool:
    return value == "uses"


def _is_none(value: object) -> bool:
    return value is None


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
    entity_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="chance of each number of an entity's vector to be dropped, of known ends and of all candidates, anew in "
        "each step",
        exclude_if=_is_zero,
    )
    relation_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="chance of each number of a relation's parameters to be dropped, for each query anew; distmult and complex",
        exclude_if=_is_zero,
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
    penalize: Literal["uses", "tables"] = Field(
        default="uses",
        description="l2 and n3 count a row as often as a step's examples use it (weighted, as Lacroix et al. define N3), or "
        "each row of every table once a step, used or not",
        exclude_if=_is_by_use,
    )
    relation_l2: float | None = Field(
        default=None, ge=0, description="l2 of the relations' parameters; None: that of the entities", exclude_if=_is_none
    )
    relation_n3: float | None = Field(
        default=None, ge=0, description="n3 of the relations' parameters; None: that of the entities", exclude_if=_is_none
    )
