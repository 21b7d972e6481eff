"""Every metric counts an example for its weight: as scikit-learn's sample_weight, and as repeated examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from multifacet import ranking
from tests.ranking.conftest import Planted


def draw(seed: int, num_rows: int = 300) -> tuple[Any, Any, Any, Any]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, num_rows)
    labels[:2] = (0, 1)
    scores = (0.5 * generator.random(num_rows) + 0.4 * labels).round(generator.integers(1, 4))  # with ties
    weights = generator.integers(0, 5, num_rows) + generator.choice([0.0, 0.25])
    weights[:2] = 1.0
    return labels, scores, weights, generator.integers(0, 25, num_rows)


@pytest.mark.slow
@given(st.integers(0, 10_000))
def test_weighted_metrics_are_scikit_learns(seed: int) -> None:
    labels, scores, weights, users = draw(seed)
    assert ranking.roc_auc(labels, scores, weights) == pytest.approx(
        sklearn.roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
    )
    assert ranking.pr_auc(labels, scores, weights) == pytest.approx(
        sklearn.average_precision_score(labels, scores, sample_weight=weights), abs=1e-12
    )
    loss = sklearn.log_loss(labels, np.clip(scores, 1e-7, 1 - 1e-7), sample_weight=weights)
    assert ranking.log_loss(labels, scores, weights) == pytest.approx(loss, abs=1e-12)
    mean = np.average(labels, weights=weights)
    entropy = -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean))
    assert ranking.normalized_entropy(labels, scores, weights) == pytest.approx(loss / entropy, abs=1e-9)
    total = area = 0.0
    for user in np.unique(users):
        own = users == user
        if weights[own & (labels == 1)].sum() > 0 and weights[own & (labels == 0)].sum() > 0:
            total += weights[own].sum()
            area += weights[own].sum() * sklearn.roc_auc_score(labels[own], scores[own], sample_weight=weights[own])
    assert ranking.group_roc_auc(labels, scores, users, weights) == pytest.approx(area / total, abs=1e-12)


@given(st.integers(0, 10_000))
def test_whole_weights_are_repeated_rows(seed: int) -> None:
    labels, scores, weights, users = draw(seed)
    counts = weights.astype(np.int64)
    repeated = [np.repeat(column, counts) for column in (labels, scores, users)]
    for weighted, plain in (
        (ranking.roc_auc(labels, scores, counts), ranking.roc_auc(*repeated[:2])),
        (ranking.pr_auc(labels, scores, counts), ranking.pr_auc(*repeated[:2])),
        (ranking.group_roc_auc(labels, scores, users, counts), ranking.group_roc_auc(*repeated)),
        (ranking.normalized_entropy(labels, scores, counts), ranking.normalized_entropy(*repeated[:2])),
    ):
        assert weighted == pytest.approx(plain, abs=1e-12)
    options: dict[str, Any] = {"num_resamples": 20, "population": np.arange(25)}
    np.testing.assert_allclose(
        ranking.bootstrap_roc_auc(labels, scores, users, weights=counts, **options),
        ranking.bootstrap_roc_auc(*repeated, **options),
        atol=1e-12,
    )


def test_evaluate_and_compare_use_the_examples_weights(planted: Planted) -> None:
    examples = planted.valid.take(np.arange(1500))
    generator = np.random.default_rng(1)
    scores = generator.random((len(examples), 2)).astype(np.float32)
    baseline = generator.random((len(examples), 2)).astype(np.float32)
    counts = generator.integers(1, 4, len(examples))
    weighted = replace(examples, weight=counts.astype(np.float32))
    rows = np.repeat(np.arange(len(examples)), counts)
    found = ranking.evaluate(scores, weighted, num_resamples=20)
    expected = ranking.evaluate(scores[rows], examples.take(rows), num_resamples=20)
    assert found["ctr"]["num_examples"] == len(examples)
    for task, values in expected.items():
        for name, value in values.items():
            if not name.startswith("num_"):
                assert found[task][name] == pytest.approx(value, abs=1e-6), (task, name)
                assert task == "cvr" or found[task][name] != ranking.evaluate(scores, examples, num_resamples=20)[task][name]
    pairs = ranking.compare(scores, baseline, weighted, num_resamples=20)
    repeated = ranking.compare(scores[rows], baseline[rows], examples.take(rows), num_resamples=20)
    for task, values in repeated.items():
        assert pairs[task] == pytest.approx(values, abs=1e-9)


@pytest.mark.parametrize(
    "metric", ["roc_auc", "pr_auc", "log_loss", "normalized_entropy", "group_roc_auc", "bootstrap_roc_auc"]
)
@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.array([1.0, np.nan, 1.0, 1.0]), ValueError, "must be finite and not negative"),
        (np.array([1.0, -1.0, 1.0, 1.0]), ValueError, "must be finite and not negative"),
        (np.zeros(4), ValueError, "not all zero"),
        (np.ones(3), ValueError, r"weights \[3\]"),
        (np.array(["a"] * 4), TypeError, "weights"),
    ],
)
def test_what_are_no_weights_is_refused(metric: str, weights: Any, error: type[Exception], message: str) -> None:
    labels, scores, users = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]), np.array([1, 1, 2, 2])
    arguments = [labels, scores, *([users] if metric in ("group_roc_auc", "bootstrap_roc_auc") else [])]
    with pytest.raises(error, match=message):
        getattr(ranking, metric)(*arguments, weights=weights)


def test_a_class_without_weight_is_no_class() -> None:
    with pytest.raises(ValueError, match="the rows of label 1 all have weight zero"):
        ranking.roc_auc(np.array([0, 1]), np.array([0.1, 0.2]), np.array([1, 0]))
