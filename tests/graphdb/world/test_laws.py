"""Whether a world obeys the laws that its settings declare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from multifacet.graphdb.world import Response, World, WorldConfig
from multifacet.graphdb.world.config import InteractionName
from multifacet.graphdb.world.population import Population

Read = Callable[[World, InteractionName], pa.Table]


def _fitted_exponent(degrees: NDArray[np.int64], smallest: int) -> float:
    """Maximum-likelihood exponent of the tail from `smallest` up (Clauset, Shalizi and Newman 2009, equation 3.7)."""
    tail = degrees[degrees >= smallest]
    assert len(tail) > 800
    return float(1 + len(tail) / np.log(tail / (smallest - 0.5)).sum())


def test_degrees_follow_the_configured_power_laws(steady: World, read_edges: Read) -> None:
    clicks = read_edges(steady, "clicks")
    users = np.bincount(clicks["src"].to_numpy(), minlength=steady.num_users)
    pins = np.bincount(clicks["dst"].to_numpy(), minlength=steady.num_pins)
    assert _fitted_exponent(users, 25) == pytest.approx(steady.config.activity_exponent, abs=0.15)
    assert _fitted_exponent(pins, 40) == pytest.approx(steady.config.popularity_exponent, abs=0.15)


def test_interests_drift_at_the_configured_speed(steady: World) -> None:
    first = steady.interests(0).astype(np.float64)
    for month in range(1, steady.config.num_months):
        now = steady.interests(month).astype(np.float64)
        np.testing.assert_allclose(np.linalg.norm(now, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose((steady.interests(month - 1) * now).sum(axis=1), 0.9, atol=1e-5)
        assert (first * now).sum(axis=1).mean() == pytest.approx(0.9**month, abs=0.006)


def test_affinities_of_the_surfaces_are_correlated_as_configured(steady: World) -> None:
    rng = np.random.default_rng(0)
    users, pins = rng.integers(steady.num_users, size=100_000), rng.integers(steady.num_pins, size=100_000)
    interests = steady.interests(4)[users]
    onsite, offsite = ((interests * steady.appeals(surface)[pins]).sum(axis=1) for surface in ("onsite", "offsite"))
    assert np.corrcoef(onsite, offsite)[0, 1] == pytest.approx(steady.config.surface_correlation, abs=0.02)
    assert np.sqrt(steady.config.dim) * onsite.std() == pytest.approx(1, abs=0.02)
    assert onsite.mean() == pytest.approx(0, abs=0.01)


def test_mean_probability_of_a_response_is_the_configured_rate(steady: World) -> None:
    rng = np.random.default_rng(0)
    users, pins = rng.integers(steady.num_users, size=100_000), rng.integers(steady.num_pins, size=100_000)
    for surface, rate in (("onsite", 0.1), ("offsite", 0.1)):
        assert steady.affinity(users, pins, steady.config.start, surface).mean() == pytest.approx(rate, abs=0.004)


@pytest.mark.parametrize("dim", [2, 3, 64])
@pytest.mark.parametrize("strength", [0.0, 1.0, 20.0])
def test_bias_gives_the_rate_in_every_dimension(dim: int, strength: float) -> None:
    config = WorldConfig(dim=dim, interest_strength=strength, click_rate=0.3, noise_share=0.0)
    law = Response.of(config, "onsite")
    directions = np.random.default_rng(1).standard_normal((40_000, dim))
    cosines = directions[:, 0] / np.linalg.norm(directions, axis=1)
    assert law.probability(cosines).mean() == pytest.approx(0.3, abs=0.01)


def test_share_of_noise_is_as_configured(small: World, read_edges: Read) -> None:
    is_noise = np.concatenate([read_edges(small, name)["is_noise"].to_numpy() for name in ("clicks", "converts")])
    assert len(is_noise) == small.config.num_edges
    assert stats.binomtest(int(is_noise.sum()), len(is_noise), small.config.noise_share).pvalue > 1e-4


@pytest.mark.parametrize("relation", ["clicks", "converts"])
def test_times_ascend_within_the_month_and_both_ends_live(small: World, read_edges: Read, relation: InteractionName) -> None:
    edges = read_edges(small, relation)
    src, dst = edges["src"].to_numpy(), edges["dst"].to_numpy()
    time_us = edges["time"].cast(pa.int64()).to_numpy()
    assert edges.num_rows == small.config.num_interactions(relation)
    assert time_us[0] >= small.config.start_us
    assert time_us[-1] < small.config.end_us
    assert (np.diff(time_us) >= 0).all()
    np.testing.assert_array_equal(small.months(time_us), edges["month"].to_numpy())
    assert small.is_alive("user", src, time_us).all()
    assert small.is_alive("pin", dst, time_us).all()
    assert not small.is_alive("pin", dst, small.config.start).all(), "pins that are born later have edges too"
    days = (time_us - small.config.start_us) / 86_400e6
    assert stats.kstest(days / small.config.days, "uniform").pvalue > 1e-4


def test_as_many_die_as_are_born() -> None:
    people = Population.draw("user", num_alive=1000, churn_per_month=0.03, num_months=6, exponent=2.5, seed=1)
    assert len(people) == 1000 + 5 * 30
    for month in range(6):
        assert len(people.alive(month)) == 1000
        assert (people.born == month).sum() == (1000 if month == 0 else 30)
        assert (people.died == month).sum() == (0 if month == 0 else 30)
    assert (people.died > people.born).all()
    assert (np.diff(people.born) >= 0).all(), "ids are in the order of birth"
    replaced = Population.draw("user", num_alive=10, churn_per_month=1.0, num_months=3, exponent=2.5, seed=1)
    assert replaced.alive(2).tolist() == list(range(20, 30))


def test_the_pin_of_an_edge_follows_the_documented_law(tmp_path: Path) -> None:
    config = WorldConfig(
        num_users=1,
        num_pins=8,
        num_edges=60_000,
        conversion_share=0.5,
        days=28,
        num_visits=0,
        noise_share=0.3,
        interest_strength=1.5,
    )
    world = World.generate(config, tmp_path / "world", num_threads=1)
    popularity = world.truth["pin_popularity"] / world.truth["pin_popularity"].sum()
    cosines = {surface: world.appeals(surface) @ world.interests(0)[0] for surface in ("onsite", "offsite")}
    for relation, surface in (("clicks", "onsite"), ("converts", "offsite")):
        law = Response.of(config, surface)
        liked = popularity / (1 + np.exp(-(law.bias + law.slope * cosines[surface].astype(np.float64))))
        expected = 0.3 * popularity + 0.7 * liked / liked.sum()
        observed = np.bincount(pq.read_table(world.edge_files(relation))["dst"].to_numpy(), minlength=8)
        assert stats.chisquare(observed, expected * observed.sum()).pvalue > 1e-4
        assert stats.chisquare(observed, popularity * observed.sum()).pvalue < 1e-9, "popularity alone does not explain it"


def test_advertisers_and_categories_share_interests(steady: World) -> None:
    onsite = steady.appeals("onsite")
    for relation in ("made_by", "in"):
        owner = pq.read_table(steady.edge_files(relation))["dst"].to_numpy()
        order = np.argsort(owner, kind="stable")
        same = owner[order][1:] == owner[order][:-1]
        cosines = (onsite[order][1:] * onsite[order][:-1]).sum(axis=1)[same]
        assert cosines.mean() > 0.2, relation
    assert abs((onsite[1:] * onsite[:-1]).sum(axis=1).mean()) < 0.02


@pytest.mark.parametrize(("noise_share", "beats"), [(0.05, True), (1.0, False)])
def test_truth_beats_popularity_at_predicting_clicks_unless_all_is_noise(
    tmp_path: Path, noise_share: float, beats: bool
) -> None:
    config = WorldConfig(num_users=2000, num_pins=1000, num_edges=60_000, days=84, num_visits=0, noise_share=noise_share)
    world = World.generate(config, tmp_path / "world")
    held_out = pq.read_table(world.edge_files("clicks")[-1])
    users, clicked, time = (held_out[name].to_numpy() for name in ("src", "dst", "time"))
    alive = np.flatnonzero(world.is_alive("pin", np.arange(world.num_pins), time[0]))
    other = np.random.default_rng(0).choice(alive, size=len(users))
    labels = np.repeat([1, 0], len(users))
    pins = np.concatenate([clicked, other])
    popularity = np.log(world.truth["pin_popularity"][pins])
    affinity = world.affinity(np.tile(users, 2), pins, np.tile(time, 2))
    by_popularity = roc_auc_score(labels, popularity)
    by_truth = roc_auc_score(labels, popularity + np.log(affinity))
    if beats:
        assert by_truth > by_popularity + 0.1
    else:
        assert by_truth == by_popularity
        assert len(set(affinity.tolist())) == 1
