from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from multifacet.ranking import (
    Examples,
    calibration_buckets,
    compare,
    correct_for_sampling,
    delong_covariance,
    delong_interval,
    delong_test,
    evaluate_segments,
    expected_calibration_error,
    standard_segments,
)
from multifacet.ranking.evaluation import roc_auc

from .conftest import Planted


def make_scores(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two models' scores, with ties."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(num_rows) < 0.3).astype(np.float32)
    first = np.round(labels + generator.normal(size=num_rows), 1)
    return labels, first, np.round(0.7 * first + generator.normal(size=num_rows), 1)


def test_the_covariance_is_that_of_the_definition() -> None:
    labels, *scores = make_scores(80)
    components = []
    for values in scores:
        positives, negatives = values[labels > 0], values[labels == 0]
        won = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
        components.append((won.mean(1), won.mean(0)))
    expected = np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            expected[i, j] = sum(
                np.cov(components[i][side], components[j][side])[0, 1] / len(components[i][side]) for side in (0, 1)
            )
    np.testing.assert_allclose(delong_covariance(labels, scores), expected, rtol=1e-10)


def test_intervals_and_tests_hold_as_often_as_they_say() -> None:
    truth = 0.5 * (1 + math.erf(0.5))  # of two normals one standard deviation apart
    covered = rejected = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        labels = (generator.random(200) < 0.4).astype(np.float32)
        common = labels + 0.8 * generator.normal(size=200)
        first, second = (common + 0.6 * generator.normal(size=200) for _ in range(2))
        low, high = delong_interval(labels, first)
        covered += low <= truth <= high
        rejected += delong_test(labels, first, second).p_value < 0.05
    assert 0.91 <= covered / 300 <= 0.99
    assert 0.02 <= rejected / 300 <= 0.09


def test_a_difference_is_told_with_its_sign_and_none_is_not_found_where_there_is_none() -> None:
    labels, first, second = make_scores(2000)
    found = delong_test(labels, first, second)
    assert found.difference == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, second))
    assert 0 < found.difference_low < found.difference < found.difference_high
    assert found.p_value < 1e-3
    assert delong_test(labels, second, first).p_value == pytest.approx(found.p_value)
    assert delong_test(labels, first, 3 * first + 1).p_value == 1.0
    perfect = delong_interval(labels, labels)
    assert perfect == (1.0, 1.0)
    with pytest.raises(ValueError, match="needs two of each"):
        delong_covariance(np.array([1, 0, 0]), [np.array([0.1, 0.2, 0.3])])


def test_buckets_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.random(5000) ** 2
    labels = (generator.random(5000) < probabilities).astype(np.float32)
    buckets = calibration_buckets(labels, probabilities, num_buckets=8)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=8, strategy="quantile")
    np.testing.assert_allclose([bucket.observed for bucket in buckets], observed, atol=0.002)
    np.testing.assert_allclose([bucket.predicted for bucket in buckets], predicted, atol=0.002)
    assert expected_calibration_error(buckets) < 0.02
    too_high = calibration_buckets(labels, np.minimum(1, probabilities * 1.5), num_buckets=8)
    assert expected_calibration_error(too_high) > 0.1
    assert sum(bucket.num_examples for bucket in buckets) == 5000


def test_tied_predictions_stay_in_one_bucket_and_weights_count() -> None:
    labels, probabilities = np.array([1, 0, 0, 1.0]), np.array([0.5, 0.5, 0.5, 0.9])
    (low, high) = calibration_buckets(labels, probabilities, num_buckets=3, weights=np.array([1.0, 3, 4, 1]))
    assert (low.num_examples, low.observed, high.observed) == (3, pytest.approx(1 / 8), 1.0)
    with pytest.raises(ValueError, match="not logits"):
        calibration_buckets(labels, probabilities * 3)


def test_probabilities_are_right_again_after_negatives_were_drawn() -> None:
    generator = np.random.default_rng(1)
    truth = generator.random(200_000) * 0.2
    labels = generator.random(len(truth)) < truth
    rate = np.where(generator.random(len(truth)) < 0.5, 0.1, 0.4)
    # What a perfect model of the drawn examples predicts.
    drawn = truth / (truth + (1 - truth) * rate)
    corrected = correct_for_sampling(drawn, rate)
    np.testing.assert_allclose(corrected, truth, rtol=1e-9)
    kept = labels | (generator.random(len(truth)) < rate)
    assert drawn[kept].mean() == pytest.approx(labels[kept].mean(), rel=0.02)
    np.testing.assert_array_equal(correct_for_sampling(np.array([0.0, 1.0]), 1e-9), [0.0, 1.0])
    with pytest.raises(ValueError, match="not positive"):
        correct_for_sampling(drawn, 0.0)


def test_segments_divide_the_examples_by_what_training_knew(planted: Planted) -> None:
    test: Examples = planted.test
    training = planted.train.take(planted.train.user_id < 200)
    segments = standard_segments(test, training)
    assert (segments["old_users"] == np.isin(test.user_id, training.user_id)).all()
    for old, new in (("old_users", "new_users"), ("old_pins", "new_pins"), ("head_advertisers", "tail_advertisers")):
        assert (segments[old] ^ segments[new]).all()
    heads = np.unique(test.advertiser_id[segments["head_advertisers"]])
    shares = np.array([(training.advertiser_id == advertiser).mean() for advertiser in range(5)])
    assert shares[heads].sum() >= 0.5
    assert shares[heads].sum() - shares[heads].min() < 0.5
    scores = np.random.default_rng(0).random((len(test), 2)).astype(np.float32)
    nobody = np.zeros(len(test), dtype=bool)
    measured = evaluate_segments(scores, test, segments | {"nobody": nobody}, num_resamples=20)
    mask = segments["new_users"]
    assert measured["new_users"]["ctr"]["roc_auc"] == pytest.approx(roc_auc(test.ctr_label[mask], scores[mask, 0]))
    assert measured["nobody"] == {"counts": {"num_examples": 0.0, "num_positives": 0.0}}
    with pytest.raises(ValueError, match="expected bool"):
        evaluate_segments(scores, test, {"first": np.arange(3)})  # type: ignore[dict-item]


def test_the_bootstraps_p_value_tells_a_difference_from_none(planted: Planted) -> None:
    test = planted.test
    generator = np.random.default_rng(0)
    good = np.stack([0.5 * test.ctr_label + 0.5 * generator.random(len(test))] * 2, axis=1).astype(np.float32)
    noise = generator.random((len(test), 2)).astype(np.float32)
    found = compare(good, noise, test)["ctr"]
    assert found["p_value"] == pytest.approx(2 / 201)
    assert compare(noise, noise, test)["ctr"]["p_value"] == 1.0
