"""Which preset suits a graph."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from multifacet.kge.config import KgeConfig
from multifacet.kge.presets import MOST_ENTITIES, PRESETS, fill_in

if TYPE_CHECKING:
    from multifacet.kge.presets import PresetName
    from multifacet.kge.statistics import GraphStatistics

__all__ = ["choose_preset", "recommend", "resolve"]

logger = logging.getLogger(__name__)


def choose_preset(statistics: GraphStatistics) -> PresetName:
    """Give the name of the preset that suits a graph best, by what was best on the validation parts of public ones.

    Args:
        statistics: of the triples to learn from.

    Example:
        >>> from multifacet.kge.statistics import GraphStatistics
        >>> choose_preset(GraphStatistics(
        ...     num_entities=135, most_entities=135, num_relations=46, num_triples=5216, symmetric=0.1, inverse=0.0, skew=0.03
        ... ))
        'complex-dense'
    """
    if statistics.most_entities > MOST_ENTITIES:
        return "complex-sampled"
    return "complex-dense" if statistics.most_entities < 2000 and statistics.density > 15 else "complex-full"


def recommend(statistics: GraphStatistics) -> dict[str, Any]:
    """Give the fields of the preset that suits a graph, with what depends on the graph beyond the preset's name.

    Args:
        statistics: of the triples to learn from.
    """
    name = choose_preset(statistics)
    fields = dict(PRESETS[name])
    if name == "complex-full" and statistics.num_relations < 50:
        # Few relations are told apart by their ends anyway.
        fields["full_softmax"] = {"relation_prediction": 0.05}
        fields["batch_size"] = 250
        if statistics.symmetric > 0.3:
            fields |= {"relation_init": "signs", "lr": 0.2}
    return fields


def resolve(config: KgeConfig, statistics: GraphStatistics) -> KgeConfig:
    """Give a configuration with the fields of the preset that suits a graph, where it asks for one by "auto".

    Args:
        config: the configuration; another one is given back as it is.
        statistics: of the triples to learn from.
    """
    if config.preset != "auto":
        return config
    logger.info("kge: preset %s, for %s", choose_preset(statistics), statistics)
    return KgeConfig.model_validate(fill_in(config.given(), recommend(statistics)))
