from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from multifacet.ranking import Examples, compare, evaluate
from multifacet.ranking.evaluation.intervals import bootstrap_roc_auc
from multifacet.ranking.evaluation.metrics import log_loss, normalized_entropy, pr_auc, roc_auc
from tests.ranking.conftest import Planted

labelled_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(rows=labelled_scores)
def test_areas_are_those_of_scikit_learn_with_ties(rows: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in rows], dtype=np.float32)
    scores = np.array([score for _, score in rows], dtype=np.float32) / 7
    assert roc_auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert pr_auc(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-12)


def test_losses_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(500) < 0.3).astype(np.float32)
    scores = generator.random(500)
    assert log_loss(labels, scores) == pytest.approx(metrics.log_loss(labels, scores))
    base = metrics.log_loss(labels, np.full(500, labels.mean()))
    assert normalized_entropy(labels, scores) == pytest.approx(metrics.log_loss(labels, scores) / base)
    assert normalized_entropy(labels, np.full(500, labels.mean())) == pytest.approx(1)


def test_a_resample_counts_a_users_rows_as_often_as_the_user_was_drawn() -> None:
    generator = np.random.default_rng(3)
    users = generator.integers(0, 9, 80) * 11
    labels = (generator.random(80) < 0.4).astype(np.float32)
    scores = np.round(generator.random(80), 1).astype(np.float32)
    resampled = bootstrap_roc_auc(labels, scores, users, num_resamples=20, seed=4)
    distinct = np.unique(users)
    draws = np.random.default_rng(4).multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), 20)
    for area, counts in zip(resampled, draws, strict=True):
        rows = np.repeat(np.arange(80), counts[np.searchsorted(distinct, users)])
        assert area == pytest.approx(metrics.roc_auc_score(labels[rows], scores[rows]), abs=1e-12)


def test_intervals_by_user_are_wider_where_a_users_rows_are_alike() -> None:
    generator = np.random.default_rng(5)
    users = np.repeat(np.arange(40), 25)
    labels = (generator.random(1000) < 0.3).astype(np.float32)
    shared = generator.normal(size=40)[users]
    scores = (labels * 0.5 + shared).astype(np.float32)
    by_user = bootstrap_roc_auc(labels, scores, users).std()
    by_row = bootstrap_roc_auc(labels, scores, np.arange(1000)).std()
    assert by_user > 1.2 * by_row


def perfect(examples: Examples) -> np.ndarray:
    cvr = np.nan_to_num(examples.cvr_label, nan=0.5)
    return np.stack([examples.ctr_label * 0.98 + 0.01, cvr * 0.98 + 0.01], axis=1).astype(np.float32)


def test_a_perfect_score_is_perfect_in_both_tasks(planted: Planted) -> None:
    result = evaluate(perfect(planted.test), planted.test)
    for task, labels in (("ctr", planted.test.ctr_label), ("cvr", planted.test.cvr_label)):
        assert result[task]["roc_auc"] == result[task]["roc_auc_low"] == result[task]["roc_auc_high"] == 1
        assert result[task]["pr_auc"] == 1
        assert result[task]["num_examples"] == np.isfinite(labels).sum()
        assert result[task]["num_positives"] == np.nansum(labels)
        assert result[task]["normalized_entropy"] < 0.1


def test_the_interval_holds_the_estimate(planted: Planted) -> None:
    generator = np.random.default_rng(2)
    scores = np.clip(0.3 * perfect(planted.test) + 0.5 * generator.random((len(planted.test), 2)), 0, 1)
    for task in evaluate(scores.astype(np.float32), planted.test).values():
        assert task["roc_auc_low"] < task["roc_auc"] < task["roc_auc_high"]


def test_corrected_calibration_undoes_the_sampling() -> None:
    generator = np.random.default_rng(8)
    num_exposures = 200_000
    rate = generator.choice([0.1, 0.3, 0.5], num_exposures)
    probability = generator.choice([0.01, 0.05, 0.2], num_exposures)
    clicked = generator.random(num_exposures) < probability
    copies = np.where(clicked, 1, generator.poisson(rate))
    rows = np.repeat(np.arange(num_exposures), copies)
    labels, rates = clicked[rows].astype(np.float32), rate[rows].astype(np.float32)
    ids = np.arange(len(rows)) % 500
    examples = Examples(
        user_id=ids,
        pin_id=ids,
        advertiser_id=ids,
        context=ids.astype(np.int32),
        period=ids.astype(np.int32),
        dense=np.zeros((len(rows), 0), dtype=np.float32),
        ctr_label=labels,
        cvr_label=np.full(len(rows), np.nan, dtype=np.float32),
        sampling_rate=np.where(labels > 0, np.float32(1), rates),
        negative_rate=rates,
        dense_names=(),
        metadata={},
    )
    # What a model that fits the sampled rows perfectly predicts: odds over all exposures / rate.
    odds = probability[rows] / (1 - probability[rows]) / rates
    scores = np.stack([odds / (1 + odds)] * 2, axis=1).astype(np.float32)
    result = evaluate(scores, examples, num_resamples=5)
    assert result["ctr"]["calibration"] == pytest.approx(1, abs=0.03)
    assert result["ctr"]["calibration_corrected"] == pytest.approx(1, abs=0.03)
    doubled = np.clip(scores * [[1.3, 1]], 0, 0.999).astype(np.float32)
    assert evaluate(doubled, examples, num_resamples=5)["ctr"]["calibration_corrected"] > 1.2
    assert "cvr" not in result


def test_a_difference_is_paired_by_resample(planted: Planted) -> None:
    generator = np.random.default_rng(2)
    examples = planted.test
    scores = (0.2 * perfect(examples) + 0.6 * generator.random((len(examples), 2))).astype(np.float32)
    better = np.clip(scores + 0.02 * perfect(examples), 0, 1)
    paired = compare(better, scores, examples)["ctr"]
    assert paired["difference"] == pytest.approx(
        roc_auc(examples.ctr_label, better[:, 0]) - roc_auc(examples.ctr_label, scores[:, 0])
    )
    assert 0 < paired["difference_low"] < paired["difference"] < paired["difference_high"]
    alone = evaluate(scores, examples)["ctr"]
    assert paired["difference_high"] - paired["difference_low"] < (alone["roc_auc_high"] - alone["roc_auc_low"]) / 2
    same = compare(scores, scores, examples)
    assert set(same) == {"ctr", "cvr"}
    assert same["cvr"] == {"difference": 0, "difference_low": 0, "difference_high": 0, "p_value": 1}


def test_useless_arguments_are_refused(planted: Planted) -> None:
    scores = np.full((len(planted.test), 2), 0.5, dtype=np.float32)
    with pytest.raises(ValueError, match="expected \\[4000, 2\\]"):
        evaluate(scores[:10], planted.test)
    with pytest.raises(ValueError, match="pass probabilities, not logits"):
        evaluate(scores * 4, planted.test)
    with pytest.raises(ValueError, match="needs both 0 and 1"):
        roc_auc(np.zeros(3), np.arange(3.0))
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        roc_auc(np.array([0, 1]), np.array([0.5, np.nan]))
