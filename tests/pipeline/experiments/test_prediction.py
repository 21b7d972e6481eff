"""What a page says of pretraining's own metrics beside ROC-AUC."""

from __future__ import annotations

from typing import Any

import pytest

from multifacet.pipeline.experiments.prediction import PretrainingMetrics


def document(num_arms: int = 4, facets_each: int = 1) -> dict[str, Any]:
    """Arms of which the MRR rises and the ROC-AUC falls, but for the first two; two seeds whose MRR differs by 0.02."""
    areas = [0.70, 0.75, 0.65, 0.60][:num_arms]
    arms = [{"name": "none", "title": "none", "facets": [], "metrics": {"ctr": {"all": {"roc_auc": 0.5}}}}]
    pretraining = {}
    for number, area in enumerate(areas):
        names = [f"facet.kge.{number}{part}.s0" for part in range(facets_each)]
        arms.append(
            {"name": f"a{number}", "title": f"A{number}", "facets": names, "metrics": {"ctr": {"all": {"roc_auc": area}}}}
        )
        for name in names:
            for seed in range(2):
                mrr = 0.1 * (number + 1) + 0.02 * seed
                metrics = {
                    "filtered_mrr": mrr,
                    "filtered_mrr_of_type/pin": 1 - mrr,
                    "filtered_mrr_of_type/user": area + 0.02 * seed,
                }
                pretraining[name.replace(".s0", f".s{seed}")] = {"metrics": metrics}
    return {"arms": arms, "pretraining": pretraining}


def test_metrics_are_means_over_seeds_and_correlated_by_rank() -> None:
    found = PretrainingMetrics.of(document())
    assert found is not None
    assert found.titles == ("A0", "A1", "A2", "A3")
    assert found.values[1] == pytest.approx((0.21, 0.79, 0.76))
    # Ranks 1 2 3 4 beside 3 4 2 1: 1 - 6 * (4 + 4 + 1 + 9) / (4 * 15).
    assert found.correlations == pytest.approx((-0.8, 0.8, 1.0))


def test_few_arms_or_several_facets_say_nothing() -> None:
    assert PretrainingMetrics.of(document(num_arms=3)) is None
    assert PretrainingMetrics.of(document(facets_each=2)) is None
