"""Random numbers, alias tables and threads."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from multifacet.graphdb.counter import alias_at, below_at, derive_key, fill_normal, fill_units
from multifacet.graphdb.threads import Workers
from multifacet.graphdb.world.alias import build_alias


@numba.njit
def _draw(key: np.uint64, entries: NDArray[np.uint32], out: NDArray[np.int64]) -> None:
    for position in range(len(out)):
        out[position] = alias_at(key, position, entries)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [1e-6, 1.0, 5.0, 100.0], list(1 / np.arange(1, 300))])
def test_alias_draws_ids_in_proportion_to_their_weights(weights: list[float]) -> None:
    ids = np.arange(len(weights)) * 7 + 3
    drawn = np.empty(200_000, dtype=np.int64)
    _draw(derive_key(1, "test"), build_alias(np.array(weights), ids), drawn)
    found, counts = np.unique(drawn, return_counts=True)
    assert set(found) <= set(ids)
    expected = np.array(weights) / sum(weights) * len(drawn)
    often = expected >= 5
    observed = np.zeros(len(weights))
    observed[np.searchsorted(ids, found)] = counts
    if often.sum() > 1:
        scaled = expected[often] * observed[often].sum() / expected[often].sum()
        assert stats.chisquare(observed[often], scaled).pvalue > 1e-4
    assert observed[~often].sum() < 20


@pytest.mark.parametrize(("weights", "ids"), [([], []), ([1.0], [1, 2]), ([1.0, 0.0], [1, 2]), ([np.inf], [1])])
def test_alias_refuses_what_cannot_be_drawn(weights: list[float], ids: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        build_alias(np.array(weights), np.array(ids))


def test_uniforms_and_normals_have_their_distributions() -> None:
    draws = np.empty(50_001)
    fill_units(derive_key(0, "unit"), draws)
    assert stats.kstest(draws, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.02
    fill_normal(derive_key(0, "normal"), draws)
    assert stats.kstest(draws, "norm").pvalue > 1e-4


def test_bounded_draws_reach_every_number_below_the_bound() -> None:
    key = derive_key(0, "bounded")
    assert {int(below_at(key, counter, 3)) for counter in range(100)} == {0, 1, 2}


def test_keys_differ_by_seed_and_purpose() -> None:
    keys = {int(derive_key(seed, name, month)) for seed in range(3) for name in ("clicks", "converts") for month in range(3)}
    assert len(keys) == 18


def test_workers_hand_back_results_in_order_and_pass_errors_on() -> None:
    workers = Workers(3)
    assert list(workers.map(lambda item: item * item, range(50))) == [item * item for item in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(workers.map(lambda item: 1 // (item - 5), range(50)))
    with pytest.raises(ValueError, match="num_threads is 0"):
        Workers(0)
