"""What a contrastive pretraining run is configured by."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from multifacet.contrastive.objective.losses import LossName
from multifacet.contrastive.presets import PRESETS, PresetName
from multifacet.inputs import Configuration

__all__ = ["ComposedTower", "ContrastiveConfig", "ContrastiveValidation", "PositiveWalks", "PositivesConfig"]


def _is_off(value: object) -> bool:
    """Whether an option that is younger than the others is at its default: what is kept by configurations stays as it was."""
    return value == 0.0


def _is_on(value: object) -> bool:
    return value is True


class ComposedTower(Configuration):
    """One more table, of the nodes that items belong to: its positives are (query, node of the query's item).

    With `node_type="advertiser", through="made_by"`, a user who bought a pin is a positive of the pin's advertiser.
    """

    node_type: str = Field(description="node type of the table")
    through: str = Field(description="relation between items and that type, in either direction")
    share: float = Field(default=0.25, gt=0, le=1, description="steps of this tower for each step of the items")


class PositiveWalks(Configuration):
    """More positives, from random walks query-item-query-item over the training positives."""

    num_walks: int = Field(default=10, ge=1, description="walks from each query; each step goes in proportion to weight")
    hops: int = Field(default=1, ge=1, description="times that a walk goes on from the item to another query and its item")
    weight: float = Field(
        default=0.2, gt=0, description="weight of a query's walks together, for each weight of its own positives together"
    )


class ContrastiveValidation(Configuration):
    """Which positives are held out of training, to rank them after each epoch."""

    num_queries: int = Field(default=1000, ge=0, description="queries sampled for validation; 0 for none")
    num_latest: int = Field(default=5, ge=1, description="distinct items held out of each: those that it came to last")
    min_remaining: int = Field(default=5, ge=1, description="distinct items that a sampled query must keep for training")
    k: int = Field(default=20, ge=1, description="length of the ranked list in recall@k and ndcg@k")
    every: int = Field(default=1, ge=1, description="epochs between validations; the last epoch always has one")


class PositivesConfig(Configuration):
    """Which edges of a graph are positives, what they weigh, and which of them are held out."""

    query_type: str = Field(default="user", description="node type that asks")
    item_type: str = Field(default="pin", description="node type that answers")
    relation_weights: dict[str, float] | None = Field(
        default=None,
        description="relation from query to item -> weight of its edges as positives; None for all of them with 1",
    )
    half_life_days: float | None = Field(
        default=None, gt=0, description="age at which a timed edge counts half, before the window's end; None for no decay"
    )
    validation: ContrastiveValidation = Field(default_factory=ContrastiveValidation, description="held-out positives")


class ContrastiveConfig(PositivesConfig):
    """Configuration of `contrastive.train`."""

    walks: PositiveWalks | None = Field(
        default=None, description="more positives of the items' tower, from walks over them; None for none"
    )
    composed: tuple[ComposedTower, ...] = Field(default=(), description="further tables over the items' relations")

    preset: PresetName | None = Field(
        default=None,
        description="fields that are not given are those of this preset (docs/contrastive.md has a table), not the defaults",
        exclude=True,
    )
    dim: int = Field(default=64, ge=1, description="width of a vector")
    similarity: Literal["cosine", "dot"] = Field(default="cosine", description="what two vectors are compared by")
    popularity_power: float = Field(
        default=0.0,
        ge=0,
        description="cosine: a trained item's vector is multiplied by this power of its positives' weight, relative to their "
        "mean, so that popularity counts more in a ranking; 0 leaves all lengths 1",
    )
    smoothing: float = Field(
        default=0.0,
        ge=0,
        description="cosine: what the mean of its queries' vectors counts in an item's vector, both of length 1; added to the "
        "trained tables once, when they are ranked or given out (one step of propagation); 0 leaves items as trained",
    )
    history: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the mean of its items in a query's vector; at 1 a query has no row of its own to learn",
    )
    loss: LossName = Field(default="softmax", description="loss of a positive's score among those of its negatives")
    temperature: float | None = Field(
        default=None, gt=0, description="softmax, bpr, bilateral: what similarities are divided by (default 0.1)"
    )
    temperature_lr: float = Field(
        default=0.0,
        ge=0,
        description="softmax, bpr, bilateral: learning rate of the temperature's logarithm (Adagrad); 0 keeps it fixed",
    )
    margin: float | None = Field(default=None, description="ccl: similarity above which a negative costs (default 0.4)")
    negative_weight: float | None = Field(
        default=None,
        gt=0,
        description="ccl: weight of the mean over the negatives, against the positive's 1 (default 150); bilateral: of the log "
        "of their mean exponential (default 1)",
    )

    query_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="chance of each number of a query's vector to be dropped in a step, before it gets length 1",
        exclude_if=_is_off,
    )

    epochs: int = Field(default=8, ge=1, description="epochs of as many draws as there are distinct positives")
    batch_size: int = Field(default=1024, ge=2, description="positives a step, sharing negatives")
    positives_per_query: int = Field(
        default=1,
        ge=1,
        description="positives drawn of a query together; they share its scores, so that a step costs that many times less",
    )
    in_batch: bool = Field(
        default=True,
        description="let the batch's own positives be negatives of its other queries; off for the bilateral loss only, whose "
        "negatives are then those that are drawn",
        exclude_if=_is_on,
    )
    num_uniform: int = Field(default=256, ge=0, description="uniform negatives a batch")
    num_degree: int = Field(default=256, ge=0, description="negatives a batch drawn by how often they are positives")
    degree_power: float = Field(default=0.75, ge=0, description="power of that count")
    queue_size: int = Field(default=0, ge=0, description="positives of past batches that are negatives as well")
    num_hard: int = Field(
        default=0,
        ge=0,
        description="negatives drawn for each query of a batch among its best unknown items of the epoch's start",
    )
    hard_depth: int = Field(default=200, ge=1, description="how many best items those are drawn from")
    mask_known: bool = Field(
        default=True, description="mask negatives that are known positives of the query, not only the example's own"
    )
    logq: bool | None = Field(
        default=None,
        description="correct scores for the chance of being drawn as a negative (default: softmax yes, bilateral no; not of "
        "other losses)",
    )

    optimizer: Literal["adagrad", "adam", "lazy_adam"] = Field(
        default="adagrad",
        description="row-wise Adagrad (a number of state a row), row-wise Adam (dim + 2 of them), or Adam of each number of "
        "the rows that a step names (2 dim + 1)",
    )
    momentum: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="adam, lazy_adam: decay of the mean gradient (default 0.9); at 0 only the last one counts",
    )
    lr: float = Field(default=0.1, gt=0, description="learning rate")
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="the learning rate over the steps: as it is, or down to 0 along a half cosine"
    )
    init_scale: float = Field(default=0.1, gt=0, description="standard deviation of the first values")
    seed: int = Field(default=0, ge=0, description="seed of initial values, positives, negatives and held-out items")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Set what the loss needs and was not given, so that the configuration says all that it does."""
        if not isinstance(given, dict):
            return given
        given = {**PRESETS.get(given.get("preset") or "", {}), **given}
        own = {"temperature": 0.1}
        if given.get("loss") == "ccl":
            own = {"margin": 0.4, "negative_weight": 150.0}
        if given.get("loss") == "bilateral":
            own |= {"negative_weight": 1.0}
        own |= {"momentum": 0.9} if given.get("optimizer") in {"adam", "lazy_adam"} else {}
        return given | {name: value for name, value in own.items() if given.get(name) is None}

    @model_validator(mode="after")
    def _check_meanings(self) -> Self:
        for field, losses in (
            ("temperature", ("softmax", "bpr", "bilateral")),
            ("temperature_lr", ("softmax", "bpr", "bilateral")),
            ("margin", ("ccl",)),
            ("negative_weight", ("ccl", "bilateral")),
            ("logq", ("softmax", "bilateral")),
        ):
            if getattr(self, field) and self.loss not in losses:
                raise ValueError(f"{field} means nothing to the {self.loss} loss, only to {' and '.join(losses)}: leave it out")
        if self.momentum is not None and self.optimizer == "adagrad":
            raise ValueError("momentum means nothing to Adagrad: leave it out, or set optimizer='adam'")
        if not self.in_batch:
            self._check_drawn()
        for field in ("popularity_power", "smoothing"):
            if getattr(self, field) and self.similarity != "cosine":
                raise ValueError(f"{field} is of vectors under cosine: leave it out, or set similarity='cosine'")
        if self.loss == "ccl" and self.similarity != "cosine":
            raise ValueError('the ccl loss is one of cosines: set similarity="cosine", or take another loss')
        return self

    def _check_drawn(self) -> None:
        """Refuse what needs the batch's own positives among the negatives."""
        if self.loss != "bilateral":
            raise ValueError(
                f"in_batch=False leaves a positive out of the negatives, and the {self.loss} loss has it among them: set "
                "loss='bilateral'"
            )
        if self.corrects_logq:
            raise ValueError(
                "logq corrects for the batch's own positives, which in_batch=False leaves out: leave one of them out"
            )
        if not (self.num_uniform or self.num_degree or self.queue_size or self.num_hard):
            raise ValueError("in_batch=False leaves no negatives: set num_uniform, num_degree, queue_size or num_hard")

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.batch_size % self.positives_per_query:
            raise ValueError(
                f"batch_size counts positives, {self.positives_per_query} of a query together: it must be a multiple of "
                f"that, got {self.batch_size}"
            )
        for name, weight in (self.relation_weights or {}).items():
            if weight < 0:
                raise ValueError(f"relation_weights[{name!r}] must not be negative, got {weight}")
        types = [self.query_type, self.item_type, *(tower.node_type for tower in self.composed)]
        repeated = sorted({name for name in types if types.count(name) > 1})
        if repeated:
            raise ValueError(f"each table needs a node type of its own, but {repeated} stand more than once in {types}")
        return self

    @property
    def corrects_logq(self) -> bool:
        """Whether scores are corrected for the chance of being drawn."""
        return (self.loss == "softmax" and self.logq is not False) or (self.loss == "bilateral" and self.logq is True)
