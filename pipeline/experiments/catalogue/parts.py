"""Facets and arms that the experiments share."""

from __future__ import annotations

from multifacet.contrastive import ComposedTower, ContrastiveConfig
from multifacet.contrastive.graph_facet import LightGcnConfig
from multifacet.kge import KgeConfig
from multifacet.pipeline.experiments.arm import TABLE_TRIALS, UPPER_TRIALS, Arm, Facet
from multifacet.pipeline.experiments.experiment import Settings

#: Periods of a month.
MONTH_PERIODS = 4
#: Names of the two facets.
FACETS = ("contrastive", "kge")


def _epochs(default: int, settings: Settings) -> int:
    return max(1, round(default * settings.pretraining_share))


def contrastive_facet(settings: Settings, name: str = "contrastive", *, dim: int = 64, **window: int) -> Facet:
    """Contrastive pretraining with the defaults, with a table of advertisers too."""
    config = ContrastiveConfig(composed=(ComposedTower(node_type="advertiser", through="made_by"),), dim=dim)
    config = config.model_copy(update={"epochs": _epochs(config.epochs, settings)})
    return Facet.model_validate(
        {"name": name, "pretrainer": config, "until_period": settings.source.splits.training[0], **window}
    )


def kge_facet(settings: Settings, name: str = "kge", **window: int) -> Facet:
    """KGE pretraining with the defaults."""
    config = KgeConfig()
    config = config.model_copy(update={"epochs": _epochs(config.epochs, settings)})
    return Facet.model_validate(
        {"name": name, "pretrainer": config, "until_period": settings.source.splits.training[0], **window}
    )


def lightgcn_facet(settings: Settings) -> Facet:
    """LightGCN's vectors of users and pins: an embedding that a company has already."""
    config = LightGcnConfig()
    config = config.model_copy(update={"epochs": _epochs(config.epochs, settings)})
    return Facet(name="lightgcn", pretrainer=config, until_period=settings.source.splits.training[0])


def without_tables(**fields: object) -> Arm:
    """The ranker with dense features alone."""
    return Arm.model_validate({"name": "none", "title": "no id tables", "trials": UPPER_TRIALS, **fields})


def both_facets(settings: Settings, **fields: object) -> Arm:
    """Tables of both facets, fine-tuned unless the fields say otherwise."""
    facets = (contrastive_facet(settings), kge_facet(settings))
    return Arm.model_validate(
        {
            "name": "both",
            "title": "contrastive and KGE, fine-tuned",
            "facets": facets,
            "trials": TABLE_TRIALS,
            "export": True,
            **fields,
        }
    )
