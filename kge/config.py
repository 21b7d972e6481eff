"""What a knowledge graph embedding run is configured by."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from multifacet.inputs import Configuration
from multifacet.kge.full_config import FullSoftmaxConfig
from multifacet.kge.models.model import Distance, RelationInit
from multifacet.kge.models.registry import model_class
from multifacet.kge.presets import PRESETS, PresetName, fill_in

__all__ = ["ONLY_SAMPLED", "Distance", "KgeConfig", "KgeValidation", "LossName", "ModelName", "PlateauConfig", "RelationInit"]

LossName = Literal["softmax", "logistic", "margin", "self_adversarial"]
# What full_softmax has no use for.
ONLY_SAMPLED = (
    "distance",
    "chunk_size",
    "num_uniform",
    "num_degree",
    "degree_power",
    "mask_known",
    "loss",
    "margin",
    "adversarial_temperature",
    "logq",
    "max_edges_per_relation",
    "partitions",
    "memory_limit_gb",
    "distinct_edges",
    "dropout",
    "table_dtype",
)
# Of lr: the relations' parameters are in most steps, and row-wise Adagrad's steps shrink by what they have met.
_ADAGRAD_RELATION_LR: Final = 0.25
ModelName = Literal["transe", "transr", "transra", "distmult", "complex", "rotate"]
"""The models that come with the package."""


def _is_off(value: object) -> bool:
    """Whether an option that is younger than the others is at its default.

    It is not written then, so that configurations, and what is kept by them (checkpoints, results), stay what they were.
    """
    return value in {0.0, "fp32", None}


def _derive_relation_lr(given: dict[str, Any]) -> float:
    """Give the relations' learning rate, from the fields before it."""
    lr, factor, full_softmax = (given.get(name) for name in ("lr", "relation_lr_factor", "full_softmax"))
    if factor is None:
        factor = 1.0 if full_softmax is not None and full_softmax.optimizer == "adam" else _ADAGRAD_RELATION_LR
    return factor * (lr or 1.0)  # without a valid lr, which is refused by itself


class PlateauConfig(Configuration):
    """Lower learning rates when validation stops rising."""

    factor: float = Field(default=0.95, gt=0, lt=1, description="what both learning rates are then multiplied by")
    patience: int = Field(default=1, ge=1, description="validations in a row without a better filtered MRR before that")


class KgeValidation(Configuration):
    """Which edges are held out of training, to rank them after each epoch."""

    num_edges: int = Field(
        default=2000, ge=0, description="distinct edges held out over all chosen relations; 0 for no validation"
    )
    choose: Literal["random", "latest"] = Field(
        default="random", description="hold out a random sample, or each timed relation's newest distinct edges"
    )
    relations: tuple[str, ...] | None = Field(
        default=None, description="names of the relations to hold out from; None for all of the view's"
    )
    max_fraction: float = Field(
        default=0.05, gt=0, lt=1, description="most of one relation's distinct edges that may be held out"
    )
    every: int = Field(default=2, ge=1, description="epochs between validations; the last epoch always has one")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many validations without a better filtered MRR, and give the tables of the best one; None "
        "runs all epochs and gives the last",
    )


class KgeConfig(Configuration):
    """Configuration of `kge.train`."""

    preset: Literal[PresetName, "auto"] | None = Field(
        default=None,
        description="fields that are not given are those of this preset (docs/kge.md has a table), not the defaults; auto: of "
        "the one that suits the graph, chosen when training begins",
        exclude=True,
    )
    model: str = Field(
        default="complex",
        description="scoring model: transe, transr, transra, distmult, complex, rotate, or one that is registered by name",
    )
    dim: int = Field(default=64, ge=2, description="width of an entity's vector; complex and rotate need an even one")
    rank: int = Field(default=8, ge=1, description="transra: rank of a relation's projection beside the identity")
    distance: Distance = Field(
        default="squared",
        description="transe, transr, transra, rotate: score by minus the squared Euclidean distance, its root (l2), or the sum "
        "of absolute differences (l1; of rotate, of complex moduli), which is the slowest",
    )
    reciprocal: bool = Field(
        default=False, description="give head queries relation parameters of their own (the relation's inverse)"
    )

    epochs: int = Field(default=4, ge=1, description="passes over the edges")
    batch_size: int = Field(
        default=256, ge=2, description="edges a step, all between the same two node types; with full_softmax, queries"
    )
    chunk_size: int = Field(
        default=256,
        ge=2,
        description="edges of a batch that share negatives, themselves among them; at most batch_size",
    )
    num_uniform: int = Field(default=256, ge=0, description="uniform negatives a chunk and side, of the side's type")
    num_degree: int = Field(default=64, ge=0, description="negatives a chunk and side drawn by degree, of the side's type")
    degree_power: float = Field(default=0.75, ge=0, description="power of the degree that those are drawn by")
    mask_known: bool = Field(default=False, description="mask negatives that make another training edge (its own is never one)")

    loss: LossName = Field(default="softmax", description="loss of an edge's score among those of its negatives")
    margin: float | None = Field(
        default=None,
        description="of the margin loss (default 1), or added to each score before its sigmoid by the logistic and the "
        "self-adversarial loss (default 0)",
    )
    adversarial_temperature: float | None = Field(
        default=None, gt=0, description="self_adversarial: factor of the scores that weigh the negatives (default 1)"
    )
    logq: bool | None = Field(
        default=None, description="softmax: correct scores for the chance of being drawn as a negative (default: yes)"
    )

    full_softmax: FullSoftmaxConfig | None = Field(
        default=None,
        description="compare each query with every entity of the right type; None: with sampled negatives. Then options of "
        "chunks and negatives are refused",
    )
    lr: float = Field(default=0.2, gt=0, description="learning rate of entity tables (row-wise Adagrad)")
    relation_lr_factor: float | None = Field(
        default=None,
        gt=0,
        description="learning rate of relation parameters as a multiple of lr (default: a quarter with Adagrad, 1 with Adam); "
        "written as the relation_lr that it gives",
        exclude=True,
    )
    relation_lr: float = Field(
        default_factory=_derive_relation_lr,
        gt=0,
        description="learning rate of relation parameters; by default it follows lr, by relation_lr_factor",
    )
    projection_lr: float | None = Field(
        default=None, ge=0, description="learning rate of the projections of transr and transra (Adagrad; default: relation_lr)"
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="both learning rates over the run: as they are, or falling to zero after the warm-up"
    )
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the run in which the learning rates rise from zero")
    plateau: PlateauConfig | None = Field(
        default=None,
        description="lower both learning rates, beside lr_schedule, when validation stops rising; None: they do not",
        exclude_if=_is_off,
    )
    average_epochs: int = Field(
        default=0,
        ge=0,
        description="give the mean of the tables and relations as they are after each of the last so many epochs; 0: the last "
        "ones",
        exclude_if=_is_off,
    )
    init_scale: float = Field(default=0.1, gt=0, description="standard deviation of the entities' first values")
    relation_init: RelationInit | None = Field(
        default=None,
        description="distmult, complex: relations begin as the identity but for noise, which learns soonest where linked nodes "
        "are alike; or with numbers of both signs (signs: normal of deviation 1), which symmetric relations need: by positive "
        "ones, one of any two nodes scores at least as high with itself as with the other; or as short as entities (entities: "
        "normal of deviation init_scale), as most published recipes begin. By default signs with Adam, else identity",
        exclude_if=_is_off,
    )
    l2: float = Field(default=0.02, ge=0, description="weight of the squared lengths of an edge's two entities in its loss")
    n3: float = Field(
        default=0.0,
        ge=0,
        description="weight of the cubed moduli of an edge's two entities' coordinates in its loss; with full_softmax, of its "
        "relation's too (Lacroix et al., ICML 2018)",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="chance of each number of a query to be dropped, of models that score by a dot product (full_softmax has "
        "its own)",
        exclude_if=_is_off,
    )
    relation_weights: dict[str, float] = Field(
        default_factory=dict, description="relation name -> weight of its loss; 1 where not named, 0 leaves it out"
    )
    max_edges_per_relation: int | None = Field(
        default=None, ge=1, description="edges of one relation seen in an epoch, a fresh sample each time; None for all"
    )
    table_dtype: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32",
        description="number format of the tables while they are trained; below FP32 rows are rounded stochastically, their "
        "Adagrad state, all arithmetic and the snapshot stay FP32",
        exclude_if=_is_off,
    )
    partitions: int | None = Field(
        default=None,
        ge=1,
        description="parts that tables are cut into, on disk but for four of them; None: 1, or as many as memory_limit_gb asks",
    )
    memory_limit_gb: float | None = Field(
        default=None,
        gt=0,
        description="most memory that tables and their optimiser state may take, in 1e9 bytes; they are cut if they don't fit",
    )
    distinct_edges: bool = Field(
        default=True,
        description="learn from each pair of a relation once, whatever its edges' number and weights; False: "
        "as often as it has edges, an edge of weight w counting w times (see docs/kge.md)",
    )
    validation: KgeValidation = Field(default_factory=KgeValidation, description="held-out edges")
    seed: int = Field(default=0, ge=0, description="seed of initial values, shuffling, negatives and held-out edges")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Take what was not given from the preset."""
        if not isinstance(given, dict) or given.get("preset") not in PRESETS:
            return given
        return fill_in(given, PRESETS[given["preset"]])

    def given(self) -> dict[str, Any]:
        """Give the fields that were set, and not left to a default, as they can be validated again."""
        document = self.model_dump(exclude_unset=True)
        if self.relation_lr_factor is not None:
            document["relation_lr_factor"] = self.relation_lr_factor
        return document

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_model()
        if self.relation_lr_factor is not None and "relation_lr" in self.model_fields_set:
            raise ValueError(
                f"relation_lr_factor={self.relation_lr_factor:g} and relation_lr={self.relation_lr:g} both say how fast "
                "relations learn: give one of them"
            )
        for field, losses in (
            ("margin", ("margin", "logistic", "self_adversarial")),
            ("adversarial_temperature", ("self_adversarial",)),
            ("logq", ("softmax",)),
        ):
            if getattr(self, field) and self.loss not in losses:
                raise ValueError(f"{field} means nothing to the {self.loss} loss, only to {', '.join(losses)}: leave it out")
        if self.full_softmax is not None:
            self._check_full_softmax()
        self._check_tables()
        self._check_average()
        for name, weight in self.relation_weights.items():
            if weight < 0:
                raise ValueError(f"relation_weights[{name!r}] must not be negative, got {weight}")
        return self

    def _check_model(self) -> None:
        """Refuse what means nothing to the model."""
        model = model_class(self.model)
        if model.has_complex_entities and self.dim % 2:
            raise ValueError(f"{self.model} pairs real and imaginary parts: dim must be even, got {self.dim}")
        if self.projection_lr is not None and not model.has_projection:
            raise ValueError(
                f"projection_lr={self.projection_lr:g} is for transr and transra: {self.model} has no projections, leave it out"
            )
        if self.relation_init not in {None, "identity"} and not model.has_diagonal:
            raise ValueError(
                f"relation_init={self.relation_init!r} is for the diagonals of distmult and complex: {self.model} has none, "
                "leave it out"
            )
        if self.dropout and model.is_distance:
            raise ValueError(
                f"dropout={self.dropout:g} drops numbers of dot products, and {self.model} scores by a distance: leave it out"
            )
        if self.distance != "squared" and not model.is_distance:
            raise ValueError(f"distance means nothing to {self.model}, which scores by a dot product: leave it out")

    def _check_average(self) -> None:
        """Refuse what does not go with the mean of the last epochs."""
        if not self.average_epochs:
            return
        if self.average_epochs > self.epochs:
            raise ValueError(f"average_epochs={self.average_epochs} are more than there are: epochs={self.epochs}")
        if self.validation.patience is not None:
            raise ValueError(
                "average_epochs and validation.patience both say which tables are given out: leave one or the other out"
            )
        if self.table_dtype != "fp32":
            raise ValueError(f"average_epochs sums FP32 tables, not table_dtype={self.table_dtype!r}: leave one of them out")

    def _check_tables(self) -> None:
        """Refuse what is not for tables in partitions."""
        if self.partitions is not None and self.memory_limit_gb is not None:
            raise ValueError("partitions and memory_limit_gb both say how tables are cut: give one of them")
        cuts = self.partitions not in {None, 1} or self.memory_limit_gb is not None
        if cuts and (self.max_edges_per_relation is not None or self.validation.patience is not None):
            raise ValueError(
                "max_edges_per_relation and validation.patience are not for tables in partitions (partitions, "
                "memory_limit_gb): leave one or the other out"
            )
        if cuts and (self.average_epochs or self.plateau is not None):
            raise ValueError(
                "average_epochs and plateau are not for tables in partitions (partitions, memory_limit_gb): leave one or the "
                "other out"
            )
        if cuts and self.table_dtype != "fp32":
            raise ValueError(
                f"table_dtype={self.table_dtype!r} is not for tables in partitions (partitions, memory_limit_gb), whose files "
                "hold FP32: leave one or the other out"
            )

    def _check_full_softmax(self) -> None:
        """Refuse what only training with sampled negatives does."""
        fields = type(self).model_fields
        changed = [name for name in ONLY_SAMPLED if getattr(self, name) != fields[name].default]
        if changed:
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in changed)
            raise ValueError(
                f"{given}: means nothing with full_softmax, which compares each distinct query with all entities by matrix "
                "products: leave it out, or full_softmax"
            )
        if self.full_softmax is not None and self.full_softmax.relation_dropout and not model_class(self.model).has_diagonal:
            raise ValueError(
                f"full_softmax.relation_dropout drops numbers of diagonals, and {self.model} has none: leave it out"
            )
        if self.full_softmax is not None and self.full_softmax.products == "bf16" and model_class(self.model).is_distance:
            raise ValueError(
                f"full_softmax.products='bf16' keeps 8 bits of a score, and {self.model}'s distances are differences of larger "
                "ones: use fp32"
            )

    @property
    def first_relations(self) -> RelationInit:
        """How diagonals begin, by `relation_init` or its default.

        Adam moves all numbers alike, so that diagonals of ones stay of one sign, and ComplEx ends a third lower.
        """
        if self.relation_init is not None:
            return self.relation_init
        is_diagonal = model_class(self.model).has_diagonal
        by_adam = self.full_softmax is not None and self.full_softmax.optimizer == "adam"
        return "signs" if is_diagonal and by_adam else "identity"

    @property
    def corrects_logq(self) -> bool:
        """Whether scores are corrected for the chance of being drawn."""
        return self.loss == "softmax" and self.logq is not False
