"""The load generator counts what it should: quantiles, the wait for a stalled server, and ids by their law."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifacet.serving.errors import OverloadedError
from multifacet.serving.load.histogram import LatencyHistogram
from multifacet.serving.load.open_loop import run_open_loop
from multifacet.serving.load.workload import SkewedIds, lookup_request
from multifacet.tables import IdMap


@given(st.lists(st.integers(0, 2**36), min_size=1, max_size=300), st.floats(0, 1))
def test_a_quantile_is_within_a_thousandth_of_the_true_one(latencies_us, quantile):
    histogram = LatencyHistogram()
    for latency_us in latencies_us:
        histogram.record(latency_us)
    true_us = int(np.quantile(latencies_us, quantile, method="inverted_cdf"))
    assert true_us <= histogram.quantile_us(quantile) <= true_us * 1.001 + 1
    assert histogram.count == len(latencies_us)


def test_histograms_add_up():
    one, two, both = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    for latency_us in (1, 2047, 2048, 5_000_000):
        one.record(latency_us)
        both.record(latency_us)
    two.record(99_999)
    both.record(99_999)
    one.add(two)
    assert list(one.curve()) == list(both.curve())
    assert one.summary_ms() == both.summary_ms()


def test_a_stall_counts_for_every_request_that_was_due_in_it():
    # One client, 200 requests a second, and a server that stands still for 0.3 s once: about 60 requests were due then.
    # A closed loop would see one slow request.
    calls = 0

    def ask() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            time.sleep(0.3)

    result = run_open_loop([lambda: ask], rate_per_s=200, seconds=1.0)
    assert result.latency.count == 200
    assert result.service.quantile_us(0.97) < 100_000  # as a closed loop tells it
    assert result.latency.quantile_us(0.90) > 100_000
    assert result.latency.max_us >= 300_000


def test_failures_are_counted_by_their_status_and_not_as_latencies():
    def refuse() -> None:
        raise OverloadedError("full")

    result = run_open_loop([lambda: refuse, lambda: refuse], rate_per_s=500, seconds=0.1)
    assert result.errors == {"RESOURCE_EXHAUSTED": 50}
    assert result.latency.count == 0


def test_clients_have_as_many_requests_under_way_as_they_are():
    barrier = threading.Barrier(3, timeout=10)
    result = run_open_loop([lambda: barrier.wait] * 3, rate_per_s=300, seconds=0.1)
    assert result.latency.count == 30


@pytest.mark.parametrize(("rate_per_s", "seconds", "num"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_load_of_nothing_is_refused(rate_per_s, seconds, num):
    with pytest.raises(ValueError, match="more than 0 of each"):
        run_open_loop([lambda: lambda: None] * num, rate_per_s=rate_per_s, seconds=seconds)


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0, 1.3])
def test_ids_come_by_the_law(exponent):
    known = [7 * number - 20 for number in range(1000)]
    ids = SkewedIds(IdMap.exact(known), exponent=exponent).draw(np.random.default_rng(0), 200_000)
    found, counts = np.unique(ids, return_counts=True)
    assert set(found) <= set(known)
    weights = np.arange(1, 1001) ** -exponent
    expected = np.cumsum(weights / weights.sum())
    measured = np.cumsum(np.sort(counts)[::-1] / len(ids))
    # The law is drawn by its integral, which gives the first few ranks a little less or more than their share.
    assert abs(measured[99] - expected[99]) < 0.06


def test_strings_are_drawn_from_an_exact_map_and_refused_from_a_hashed_one():
    names = [f"brand-{number}é" for number in range(50)]
    drawn = SkewedIds(IdMap.exact(names), exponent=0.5).draw(np.random.default_rng(0), 2000)
    assert set(drawn) == set(names)
    with pytest.raises(ValueError, match="does not say which strings"):
        SkewedIds(IdMap.hashed(9, id_type="string"), exponent=1)


def test_a_drawn_lookup_knows_all_of_its_ids(release, served, lookup_client):
    draw = lookup_request(release, lookup_client, num_ids=60, exponent=1.0, seed=3)
    answer = draw()()
    assert set(answer.tables) == {table.name for table in release.tables}
    assert {table.num_unknown_ids for table in answer.tables.values()} == {0}


def test_ids_of_all_shards_are_drawn():
    shards = [IdMap.exact(part) for part in ([5, 6, 7], [1], [8, 9])]
    drawn = SkewedIds(*shards, exponent=0.3).draw(np.random.default_rng(0), 2000)
    assert set(drawn.tolist()) == {1, 5, 6, 7, 8, 9}
    names = [IdMap.exact(["a", "b"]), IdMap.exact(["c"])]
    assert set(SkewedIds(*names, exponent=0.0).draw(np.random.default_rng(0), 100)) == {"a", "b", "c"}
