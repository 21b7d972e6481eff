"""The experiments: the paper's, its open questions, and the arms that keep both honest."""

from __future__ import annotations

from collections.abc import Callable

from multifacet.pipeline.experiments.catalogue.ablation import (
    ablation,
    ablation_without_pair_counts,
    existing,
    features,
    freezing,
    kge_models,
    sharing,
    surfaces,
)
from multifacet.pipeline.experiments.catalogue.age import refresh, staleness
from multifacet.pipeline.experiments.catalogue.epochs import epochs
from multifacet.pipeline.experiments.catalogue.size import collisions, precision_by_frequency, quantization
from multifacet.pipeline.experiments.catalogue.tasks import tasks
from multifacet.pipeline.experiments.experiment import Experiment, Settings

#: Name -> how it is made. The order is the page's.
CATALOGUE: dict[str, Callable[[Settings], Experiment]] = {
    "ablation": ablation,
    "ablation-no-pair-counts": ablation_without_pair_counts,
    "existing": existing,
    "freezing": freezing,
    "tasks": tasks,
    "epochs": epochs,
    "quantization": quantization,
    "precision-by-frequency": precision_by_frequency,
    "staleness": staleness,
    "refresh": refresh,
    "collisions": collisions,
    "sharing": sharing,
    "surfaces": surfaces,
    "features": features,
    "kge-models": kge_models,
}
