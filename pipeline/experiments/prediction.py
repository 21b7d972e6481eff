"""Whether what a pretrainer says of its own tables tells how well they rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import spearmanr

#: Metric of held-out edges -> what a table calls it.
_METRICS: Final = {
    "filtered_mrr": "held-out MRR",
    "filtered_mrr_of_type/pin": "MRR of pins",
    "filtered_mrr_of_type/user": "MRR of users",
}
#: Fewer arms have no rank correlation worth a number.
_MIN_ARMS: Final = 4


@dataclass(frozen=True, kw_only=True)
class PretrainingMetrics:
    """Held-out metrics of arms that have one pretrained facet each, beside what they gave the ranker.

    Attributes:
        names: Of the metrics.
        titles: Of the arms.
        values: Mean over seeds [arm][metric].
        areas: CTR ROC-AUC [arm].
        correlations: Spearman's rank correlation of each metric with the areas, over the arms.
    """

    names: tuple[str, ...]
    titles: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    areas: tuple[float, ...]
    correlations: tuple[float, ...]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> PretrainingMetrics | None:
        """Reads them from an experiment's document; None where too few arms have one facet with such metrics."""
        found = []
        for arm in document["arms"]:
            seeds = _seeds(document, arm)
            if seeds and all(metric in row for row in seeds for metric in _METRICS):
                means = tuple(float(np.mean([row[metric] for row in seeds])) for metric in _METRICS)
                found.append((arm["title"], means, arm["metrics"]["ctr"]["all"]["roc_auc"]))
        if len(found) < _MIN_ARMS:
            return None
        titles, values, areas = zip(*found, strict=True)
        correlations = tuple(float(spearmanr(column, areas).statistic) for column in zip(*values, strict=True))
        return cls(names=tuple(_METRICS.values()), titles=titles, values=values, areas=areas, correlations=correlations)


def _seeds(document: Mapping[str, Any], arm: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """Metrics of an arm's only facet, by seed; empty where it has none or several."""
    facets = arm.get("facets") or []
    if len(facets) != 1:
        return []
    kind, _, _ = facets[0].rpartition(".s")
    return [stage["metrics"] for name, stage in document["pretraining"].items() if name.rpartition(".s")[0] == kind]
