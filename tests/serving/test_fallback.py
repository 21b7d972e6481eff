"""A ranker whose rows do not come in time fails, or says that it scored without them: never a mixture."""

from __future__ import annotations

import threading
import time
import urllib.request

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from multifacet.serving import (
    DeadlineExceededError,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    UnavailableError,
    VersionNotLoadedError,
)


@pytest.fixture
def lookup(release):
    with LookupServer(LookupConfig(releases=(release.path,))) as server:
        yield server


@pytest.fixture
def rank(release, lookup, request_of):
    """Starts a ranker, and gives a function that asks it."""
    running = []

    def start(**fields):
        config = {"lookup_timeout_s": 10, "lookup_fallback": "without_tables", "startup_timeout_s": 10, **fields}
        ranker = RankerServer(
            RankerConfig(releases=(release.path,), lookup=lookup.address, metrics_listen="127.0.0.1:0", **config)
        )
        ranker.__enter__()
        client = RankerClient(ranker.address, timeout_s=10)
        running.extend((client, ranker))
        request_ids, candidate_ids, dense = request_of(20)

        def ask(**options):
            return client.rank(request_ids, candidate_ids, dense=dense, **options)

        return ranker, ask

    yield start
    for opened in running:
        opened.__exit__(None, None, None)


def without_tables(model, request_of):
    _, _, dense = request_of(20)
    with torch.inference_mode():
        return model.upper(torch.from_numpy(dense), torch.zeros(20, 5, 16)).sigmoid().numpy()


def hold(server, monkeypatch):
    fetch, held = server._fetch, threading.Event()

    def wait(request, send):
        assert held.wait(20)
        return fetch(request, send)

    monkeypatch.setattr(server, "_fetch", wait)
    return held


def test_late_rows_are_replaced_by_zeros_for_all_candidates_and_the_answer_says_so(
    model, release, lookup, rank, request_of, monkeypatch
):
    ranker, ask = rank(lookup_timeout_s=0.1)
    found = ask()
    assert not found.without_tables
    held = hold(lookup, monkeypatch)
    answer = ask()
    assert answer.without_tables
    assert answer.version == release.version
    expected = without_tables(model, request_of)
    np.testing.assert_allclose(np.stack([answer.ctr, answer.cvr], axis=1), expected, rtol=2e-6, atol=2e-7)
    assert np.abs(answer.ctr - found.ctr).max() > 0.01  # the rows matter, or the comparison says nothing
    held.set()
    again = ask()
    assert not again.without_tables
    np.testing.assert_array_equal(again.ctr, found.ctr)
    with urllib.request.urlopen(f"http://{ranker.metrics_address}/metrics", timeout=5) as response:
        assert 'multifacet_ranker_events_total{event="without_tables"} 1.0' in response.read().decode().splitlines()
    (version,) = ranker.status().versions
    assert (version.answered, version.failed) == (2, 1)  # a rollout must see it


def test_a_lookup_server_that_is_away_is_answered_without_tables_at_once(lookup, rank):
    _, ask = rank()
    lookup.stop(0)
    started = time.monotonic()
    assert ask().without_tables
    assert time.monotonic() - started < 2


def test_rows_are_waited_for_no_longer_than_the_caller_leaves_time_to_score(lookup, rank, monkeypatch):
    _, ask = rank(fallback_reserve_s=0.2)
    held = hold(lookup, monkeypatch)
    assert ask(timeout_s=0.4).without_tables
    held.set()


def test_without_a_fallback_late_rows_are_an_error(lookup, rank, monkeypatch):
    _, ask = rank(lookup_fallback="fail", lookup_timeout_s=0.05)
    held = hold(lookup, monkeypatch)
    with pytest.raises(DeadlineExceededError):
        ask()
    held.set()
    lookup.stop(0)
    with pytest.raises(UnavailableError):
        ask()


def test_a_version_that_the_lookup_server_lacks_is_refused_all_the_same(lookup, other_release, rank):
    ranker, ask = rank()
    ranker.load(other_release.path)
    with pytest.raises(VersionNotLoadedError):
        ask(version=other_release.version)


def test_what_belongs_to_an_option_that_is_off_is_refused():
    with pytest.raises(ValidationError, match="fallback_reserve_s does nothing without lookup_fallback"):
        RankerConfig(releases=("x",), lookup="a:1", fallback_reserve_s=0.1)
    with pytest.raises(ValidationError, match="batch_wait_us does nothing without batch_max_candidates"):
        RankerConfig(releases=("x",), lookup="a:1", batch_wait_us=100)
