"""Which preset suits a graph."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from multifacet.kge.config import ONLY_SAMPLED, KgeConfig
from multifacet.kge.presets import MOST_ENTITIES, PRESETS, fill_in

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def recommend(statistics: GraphStatistics, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give the fields of the preset that suits a graph, with what depends on the graph beyond the preset's name.

    Args:
        statistics: of the triples to learn from.
        given: fields that are set already: a preset of their model is taken, and of sampled negatives if they are of those.

    Returns:
        The fields; none for a model, or a model and an objective, that there is no preset of.
    """
    given = given or {}
    model, against_all = given.get("model", "complex"), given.get("full_softmax") is not None
    if model not in {"complex", "distmult"}:
        return {} if against_all or model not in PRESETS else dict(PRESETS[model])
    if not against_all and (set(ONLY_SAMPLED) & set(given) or statistics.most_entities > MOST_ENTITIES):
        return dict(PRESETS["complex-sampled"])
    if against_all and dict(given["full_softmax"]).get("optimizer") == "adam":
        return dict(PRESETS["complex-adam"])
    name = choose_preset(statistics)
    if name == "complex-sampled":
        name = "complex-full"
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
    given = config.given()
    resolved = KgeConfig.model_validate(fill_in(given, recommend(statistics, given)))
    logger.info("kge: preset auto is %s, for %s", resolved.model_dump(exclude_defaults=True), statistics)
    return resolved
