"""Intervals, adjusted p-values and verdicts, against laws that are known."""

import numpy as np
import pytest
from scipy import stats

from multifacet.pipeline.experiments.statistics import holm, paired_effect
from multifacet.pipeline.experiments.verdict import judge

pytestmark = pytest.mark.slow


def simulate(rng: np.random.Generator, *, true: float, users_error: float, seed_deviation: float, num_seeds: int):
    """One run of an experiment whose users and seeds scatter by known amounts."""
    users = rng.normal(0, users_error)
    differences = true + users + rng.normal(0, seed_deviation, num_seeds)
    resampled = differences[:, None] + rng.normal(0, users_error, 200)[None, :]
    return paired_effect(differences.tolist(), resampled)


@pytest.mark.parametrize(("users_error", "seed_deviation"), [(0.01, 0.0), (0.002, 0.01), (0.01, 0.01)])
def test_an_interval_holds_the_truth_as_often_as_it_says(users_error: float, seed_deviation: float):
    rng = np.random.default_rng(0)
    effects = [
        simulate(rng, true=0.003, users_error=users_error, seed_deviation=seed_deviation, num_seeds=4) for _ in range(1500)
    ]
    covered = np.mean([effect.low <= 0.003 <= effect.high for effect in effects])
    assert 0.93 <= covered <= 0.975


def test_a_true_difference_of_the_detectable_size_is_found_four_times_in_five():
    rng = np.random.default_rng(1)
    detectable = np.median(
        [simulate(rng, true=0.0, users_error=0.01, seed_deviation=0.0, num_seeds=3).detectable for _ in range(200)]
    )
    found = [
        simulate(rng, true=float(detectable), users_error=0.01, seed_deviation=0.0, num_seeds=3).p_value < 0.05
        for _ in range(2000)
    ]
    assert 0.76 <= np.mean(found) <= 0.84


def test_few_scattered_seeds_widen_the_interval_beyond_the_normal():
    effect = paired_effect([0.01, 0.02, 0.03], np.tile([[0.01], [0.02], [0.03]], (1, 50)))
    margin = stats.t(2).ppf(0.975) * np.std([0.01, 0.02, 0.03], ddof=1) / np.sqrt(3)
    assert effect.high - effect.difference == pytest.approx(margin)
    assert effect.users_error == 0.0


def test_one_seed_has_the_users_interval_alone():
    rng = np.random.default_rng(2)
    resampled = rng.normal(0.01, 0.004, (1, 5000))
    effect = paired_effect([0.01], resampled)
    assert effect.seeds_error == 0.0
    assert effect.high - effect.low == pytest.approx(2 * 1.96 * 0.004, rel=0.05)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 seeds"):
        paired_effect([0.1, 0.2], np.zeros((3, 10)))


def test_holm_is_what_its_definition_says():
    rng = np.random.default_rng(3)
    p_values = rng.random(7).tolist()
    ordered = sorted(p_values)
    stepped = [max(min(1.0, (7 - earlier) * ordered[earlier]) for earlier in range(rank + 1)) for rank in range(7)]
    assert holm(p_values) == pytest.approx([stepped[ordered.index(p_value)] for p_value in p_values])


def test_holm_keeps_false_findings_rare():
    rng = np.random.default_rng(4)
    false = [min(holm(rng.random(8).tolist())) < 0.05 for _ in range(4000)]
    assert np.mean(false) < 0.06


def effect(difference: float, error: float, p_value: float) -> dict[str, float]:
    return {
        "difference": difference,
        "low": difference - 1.96 * error,
        "high": difference + 1.96 * error,
        "adjusted_p_value": p_value,
        "detectable": 2.8 * error,
    }


@pytest.mark.parametrize(
    ("difference", "error", "p_value", "expectation", "verdict"),
    [
        (0.01, 0.001, 0.0001, "higher", "reproduced"),
        (-0.01, 0.001, 0.0001, "higher", "not reproduced"),
        (0.0, 0.0005, 0.9, "higher", "not reproduced"),
        (0.002, 0.004, 0.6, "higher", "not decidable here"),
        (-0.01, 0.001, 0.0001, "lower", "reproduced"),
        (0.0, 0.0005, 0.9, "no difference", "reproduced"),
        (0.0, 0.005, 0.9, "no difference", "not decidable here"),
        (0.01, 0.001, 0.0001, "no difference", "not reproduced"),
        (0.0003, 0.0001, 0.001, "no difference", "reproduced"),
        # Significant before the adjustment only.
        (0.01, 0.004, 0.08, "higher", "not decidable here"),
    ],
)
def test_verdicts_follow_the_declared_rule(difference: float, error: float, p_value: float, expectation: str, verdict: str):
    found, reason = judge(effect(difference, error, p_value), expectation, margin=0.002)
    assert found == verdict
    assert f"{difference:+.4f}" in reason
