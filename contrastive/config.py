"""What a contrastive pretraining run is configured by."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ComposedTower", "ContrastiveConfig", "ContrastiveValidation"]


class ComposedTower(BaseModel):
    """One more table, of the nodes that items belong to: its positives are (query, node of the query's item).

    With `node_type="advertiser", through="made_by"`, a user who bought a pin is a positive of the pin's advertiser.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_type: str = Field(description="node type of the table")
    through: str = Field(description="relation between items and that type, in either direction")
    share: float = Field(default=0.25, gt=0, le=1, description="steps of this tower for each step of the items")


class ContrastiveValidation(BaseModel):
    """Which positives are held out of training, to rank them after each epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_queries: int = Field(default=1000, ge=0, description="queries sampled for validation; 0 for none")
    num_latest: int = Field(default=5, ge=1, description="distinct items held out of each: those that it came to last")
    min_remaining: int = Field(default=5, ge=1, description="distinct items that a sampled query must keep for training")
    k: int = Field(default=20, ge=1, description="length of the ranked list in recall@k and ndcg@k")
    every: int = Field(default=1, ge=1, description="epochs between validations; the last epoch always has one")


class ContrastiveConfig(BaseModel):
    """Configuration of `contrastive.train`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_type: str = Field(default="user", description="node type that asks")
    item_type: str = Field(default="pin", description="node type that answers")
    relation_weights: dict[str, float] | None = Field(
        default=None,
        description="relation from query to item -> weight of its edges as positives; None for all of them with 1",
    )
    half_life_days: float | None = Field(
        default=None, gt=0, description="age at which a timed edge counts half, before the window's end; None for no decay"
    )
    composed: tuple[ComposedTower, ...] = Field(default=(), description="further tables over the items' relations")

    dim: int = Field(default=64, ge=1, description="width of a vector")
    similarity: Literal["cosine", "dot"] = Field(default="cosine", description="what two vectors are compared by")
    temperature: float = Field(default=0.1, gt=0, description="what similarities are divided by")

    epochs: int = Field(default=8, ge=1, description="epochs of as many draws as there are distinct positives")
    batch_size: int = Field(default=1024, ge=2, description="positives a step, sharing negatives")
    num_uniform: int = Field(default=256, ge=0, description="uniform negatives a batch")
    num_degree: int = Field(default=256, ge=0, description="negatives a batch drawn by how often they are positives")
    degree_power: float = Field(default=0.75, ge=0, description="power of that count")
    queue_size: int = Field(default=0, ge=0, description="positives of past batches that are negatives as well")
    mask_known: bool = Field(
        default=True, description="mask negatives that are known positives of the query, not only the example's own"
    )
    logq: bool = Field(default=True, description="correct scores for the chance of being drawn as a negative")

    lr: float = Field(default=0.1, gt=0, description="learning rate (row-wise Adagrad)")
    init_scale: float = Field(default=0.1, gt=0, description="standard deviation of the first values")
    validation: ContrastiveValidation = Field(default_factory=ContrastiveValidation, description="held-out positives")
    seed: int = Field(default=0, ge=0, description="seed of initial values, positives, negatives and held-out items")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, weight in (self.relation_weights or {}).items():
            if weight < 0:
                raise ValueError(f"relation_weights[{name!r}] must not be negative, got {weight}")
        types = [self.query_type, self.item_type, *(tower.node_type for tower in self.composed)]
        repeated = sorted({name for name in types if types.count(name) > 1})
        if repeated:
            raise ValueError(f"each table needs a node type of its own, but {repeated} stand more than once in {types}")
        return self
