"""Configuration of a ranking run, and the arms that are compared."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from multifacet.inputs import Configuration
from multifacet.ranking.slots import RECENT_PINS

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
Arm = Literal["no_ids", "scratch", "pretrained"]
FACETS: tuple[str, ...] = ("contrastive", "kge")


def _is_empty(value: object) -> bool:
    """Whether an option that is younger than the others is not used: it is not written then."""
    return not value


class HashedRows(Configuration):
    """Into how many rows a feature's ids are hashed."""

    rows: int = Field(ge=1, description="rows of the feature's tables")
    num_hashes: int = Field(default=1, ge=1, description="rows that an id reads; what it gets is their sum")


class RankingConfig(Configuration):
    """How a ranker is built and trained."""

    name: str = Field(default="pretrained", min_length=1, description="name of the arm, written to the model")
    features: tuple[str, ...] = Field(
        default=("user", "pin", "advertiser"),
        description="id features that have tables; each may start from the snapshot's table of that node type",
    )
    node_types: Mapping[str, str] = Field(
        default_factory=dict,
        description="feature -> node type of its ids, where that is not its name, such as liked_pin -> pin: features of one "
        "node type have tables of their own over the same ids",
        exclude_if=_is_empty,
    )
    facets: tuple[str, ...] = Field(
        default=FACETS, description="facets: each has one table a feature; empty for a ranker without ids"
    )
    pretrained_facets: tuple[str, ...] = Field(
        default=FACETS, description="facets whose tables start from the snapshot of that facet; others are random"
    )
    freeze_tables: bool = Field(default=False, description="leave the tables as initialised")
    dim: int = Field(default=64, ge=1, description="elements of a table row")
    table_dtype: Literal["fp32", "fp16"] = Field(
        default="fp32",
        description="type that tables are kept, trained and written in; fp16 rows are changed in FP32 and rounded by chance",
    )
    hash_rows: Mapping[str, HashedRows] = Field(
        default_factory=dict, description="features whose ids are hashed, in place of a row for each that is known"
    )
    pretrained_norm: float = Field(
        default=1.0, gt=0, description="root mean square norm of a pretrained table's rows at the start"
    )
    scratch_norm: float = Field(default=1.0, gt=0, description="root mean square norm of a random table's rows at the start")
    table_lr: float = Field(default=0.02, ge=0, description="row-wise Adagrad's learning rate of the tables")
    facet_lrs: Mapping[str, float] = Field(
        default_factory=dict, description="learning rate of a facet's tables in place of table_lr; 0 keeps them as they are"
    )
    row_lr_power: float = Field(
        default=0.0,
        ge=0,
        description="a row that occurs n times in the training examples learns at (n / mean n) ** power of its table's rate, "
        "at most at all of it: rows that are seldom seen stay nearer to where they began",
    )
    thaw_after_steps: int = Field(
        default=0, ge=0, description="steps in which only the upper model learns, before the tables begin to"
    )
    upper_lr: float = Field(default=1e-3, gt=0, description="AdamW's learning rate of the upper model")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's weight decay of the upper model")
    combination: Literal["concat", "sum", "gating", "attention"] = Field(
        default="concat", description="how the facets of one id come together before features meet"
    )
    interaction: Literal["dcn_v2", "dlrm", "masknet", "dhen"] = Field(
        default="dcn_v2", description="how features meet in the upper model"
    )
    heads: Literal["shared_bottom", "mmoe", "esmm", "esmm_dense"] = Field(
        default="shared_bottom",
        description="how CTR and CVR share the end of the upper model; with esmm_dense CVR reads the dense features alone",
    )
    sequence: Literal["none", "attention", "transformer"] = Field(
        default="none", description="how a user's recent pins are pooled; the examples must have them"
    )
    sequence_table: Literal["shared", "separate"] = Field(
        default="shared", description="whether recent pins read the tables of the feature pin, or tables of their own"
    )
    projected: int = Field(default=32, ge=1, description="elements that the rows, and the products, are projected to")
    num_cross_layers: int = Field(default=2, ge=0, description="cross layers of interaction dcn_v2")
    cross_rank: int = Field(default=32, ge=1, description="rank of a cross layer (dcn_v2, dhen)")
    num_blocks: int = Field(default=2, ge=1, description="blocks of interaction masknet, layers of dhen")
    num_attention_heads: int = Field(
        default=2, ge=1, description="heads of combination attention, interaction dhen and sequence transformer"
    )
    num_experts: int = Field(default=4, ge=2, description="experts of heads mmoe")
    hidden: tuple[int, ...] = Field(default=(128, 64), min_length=1, description="widths of the MLPs of the heads")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout after each layer of these MLPs")
    id_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of an example's embeddings, one for each feature and facet, that a step of training hides",
        exclude_if=_is_empty,
    )
    cvr_weight: float = Field(default=0.5, ge=0, description="weight of the CVR loss beside the CTR loss of 1")
    batch_size: int = Field(default=2048, ge=2, description="examples a step")
    max_epochs: int = Field(default=10, ge=1, description="most passes over the training examples")
    reinit_tables: bool = Field(
        default=False, description="start the tables from their first rows in every epoch, while the upper model goes on"
    )
    validations_per_epoch: int = Field(default=2, ge=1, description="validations in each epoch")
    patience: int = Field(default=3, ge=1, description="validations without a lower CTR log loss before training stops")
    keep: Literal["best", "last"] = Field(
        default="best",
        description="weights of the result: of the validation with the lowest CTR log loss, or of the last one; with last, "
        "training never stops early",
    )
    seed: int = Field(default=0, ge=0, description="seed of initialisation, shuffling and dropout")

    @model_validator(mode="after")
    def _check_facets(self) -> RankingConfig:
        stray = set(self.pretrained_facets) - set(self.facets)
        if stray:
            raise ValueError(f"pretrained_facets names {sorted(stray)}, which are not in facets {self.facets}")
        if self.facets and not self.features:
            raise ValueError(f"facets are {self.facets} but features are empty; name at least one id feature")
        unknown = set(self.facet_lrs) - set(self.facets)
        if unknown or not all(0 <= lr < math.inf for lr in self.facet_lrs.values()):
            raise ValueError(f"facet_lrs is {dict(self.facet_lrs)}; expected rates of 0 or more of the facets {self.facets}")
        self._check_features()
        unknown = set(self.hash_rows) - set(self.features)
        if unknown:
            raise ValueError(f"hash_rows names {sorted(unknown)}; expected some of the features {self.features}")
        if self.freeze_tables and self.reinit_tables:
            raise ValueError("freeze_tables keeps all tables as they are; leave out reinit_tables with it")
        if self.freeze_tables and (self.thaw_after_steps or self.facet_lrs or self.row_lr_power):
            raise ValueError(
                "freeze_tables keeps all tables as they are; leave out thaw_after_steps, facet_lrs and row_lr_power with it"
            )
        return self

    def _check_features(self) -> None:
        wrong = [name for name in self.features if not _NAME.fullmatch(name)]
        if wrong or len(set(self.features)) != len(self.features):
            raise ValueError(
                f"features are {self.features}; expected each name once, of letters, digits, '_', '-' and '.', as "
                f"tables are named "
                "by them"
            )
        unknown = set(self.node_types) - set(self.features)
        if unknown:
            raise ValueError(f"node_types names {sorted(unknown)}; expected some of the features {self.features}")
        names = [f"{feature}_{facet}" for feature in self.features for facet in self.facets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"features {self.features} and facets {self.facets} both name a table {repeated[0]!r}: rename one of them"
            )

    def node_type(self, feature: str) -> str:
        """Give the node type of a feature's ids."""
        return self.node_types.get(feature, feature)

    @model_validator(mode="after")
    def _check_uses(self) -> RankingConfig:
        """Refuse settings that would do nothing."""
        used = {
            "combination": bool(self.facets),
            "sequence": bool(self.facets) and "pin" in self.features,
            "sequence_table": self.sequence != "none",
            "projected": self.interaction != "dlrm",
            "num_cross_layers": self.interaction == "dcn_v2",
            "cross_rank": self.interaction in {"dcn_v2", "dhen"},
            "num_blocks": self.interaction in {"masknet", "dhen"},
            "num_attention_heads": "attention" in self.combination
            or self.interaction == "dhen"
            or self.sequence == "transformer",
            "num_experts": self.heads == "mmoe",
            "reinit_tables": bool(self.facets) and self.max_epochs > 1,
            "row_lr_power": bool(self.facets),
            "patience": self.keep == "best",
            "table_dtype": bool(self.facets),
            "id_dropout": bool(self.facets),
            "hash_rows": bool(self.facets),
        }
        idle = [
            f"{name}={getattr(self, name)!r}"
            for name, is_used in used.items()
            if not is_used and getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)
        ]
        if idle:
            raise ValueError(
                f"{', '.join(idle)} would do nothing with facets={self.facets}, combination={self.combination!r}, "
                f"interaction={self.interaction!r}, heads={self.heads!r}, sequence={self.sequence!r}, keep={self.keep!r}; "
                "leave it out"
            )
        if RECENT_PINS in self.features:
            raise ValueError(f"features name {RECENT_PINS!r}, which `sequence` adds by itself")
        if self.combination == "attention" and len(self.features) < 2:
            raise ValueError(f"combination 'attention' lets features ask about each other; there is only {self.features}")
        return self


def arm_config(arm: Arm, **overrides: Any) -> RankingConfig:
    """Return the configuration of one arm of the main comparison.

    Args:
        arm: "no_ids" (no tables), "scratch" (the tables of "pretrained", randomly initialised) or "pretrained"
            (every facet from its snapshot, fine-tuned).
        **overrides: Fields of RankingConfig.

    Raises:
        ValueError: For another arm.

    Example:
        >>> arm_config("scratch").facets, arm_config("scratch").pretrained_facets
        (('contrastive', 'kge'), ())
    """
    defaults: dict[str, dict[str, Any]] = {
        "no_ids": {"facets": (), "pretrained_facets": ()},
        "scratch": {"pretrained_facets": ()},
        "pretrained": {},
    }
    if arm not in defaults:
        raise ValueError(f"arm is {arm!r}; expected one of {', '.join(defaults)}")
    return RankingConfig(**({"name": arm} | defaults[arm] | overrides))
