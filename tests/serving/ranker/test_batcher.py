"""Requests that are scored together get the scores that they get alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from multifacet.serving import BrokenAnswerError, RankerClient, RankerConfig, RankerServer
from multifacet.serving.ranker.batcher import Batcher
from multifacet.serving.ranker.scorer import Scorer

SIZES = (1, 7, 50, 3)


@pytest.fixture(scope="module")
def scorer(release):
    return Scorer(release)


def inputs(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, generator=generator), torch.randn(size, 5, 16, generator=generator)


def score_together(batcher, given):
    """Scores all at once, each expected before any comes."""
    ready = threading.Barrier(len(given))

    def score(arguments):
        with batcher.expect() as arrival:
            ready.wait(10)
            return arrival.score(*arguments)[0]

    with ThreadPoolExecutor(len(given)) as pool:
        return [future.result(20) for future in [pool.submit(score, arguments) for arguments in given]]


def test_a_batch_has_the_scores_of_its_requests_alone(scorer):
    given = [inputs(size, seed) for seed, size in enumerate(SIZES)]
    batcher = Batcher(scorer, max_candidates=1000, wait_us=5_000_000)
    for scores, arguments in zip(score_together(batcher, given), given, strict=True):
        np.testing.assert_allclose(scores, scorer.score(*arguments)[0], rtol=0, atol=1e-6)
    assert batcher.num_batches == 1


def test_a_batch_is_never_larger_than_allowed(scorer):
    given = [inputs(size, seed) for seed, size in enumerate((40, 40, 40, 90))]
    batcher = Batcher(scorer, max_candidates=100, wait_us=50_000)
    ran = []
    probabilities = scorer.probabilities

    class Watched:
        checked = staticmethod(scorer.checked)

        @staticmethod
        def probabilities(dense, embeddings):
            ran.append(len(dense))
            return probabilities(dense, embeddings)

    batcher._scorer = Watched
    for scores, arguments in zip(score_together(batcher, given), given, strict=True):
        np.testing.assert_allclose(scores, scorer.score(*arguments)[0], rtol=0, atol=1e-6)
    assert sum(ran) == 210
    assert max(ran) <= 100


def test_nobody_waits_for_requests_that_have_not_come(scorer):
    batcher = Batcher(scorer, max_candidates=1000, wait_us=20_000_000)
    for _ in range(3):
        with batcher.expect() as arrival:
            arrival.score(*inputs(5))
    with batcher.expect(), batcher.expect() as arrival:  # the other one gives up
        thread = threading.Timer(0.05, lambda: batcher.note_expected(-1))
        thread.start()
        arrival.score(*inputs(5))
        thread.join()
        batcher.note_expected(1)
    assert batcher.num_batches == 4


def test_the_wait_ends_with_the_budget(scorer):
    batcher = Batcher(scorer, max_candidates=1000, wait_us=10_000)
    with batcher.expect(), batcher.expect() as arrival:  # the other one takes its time
        scores, _ = arrival.score(*inputs(5))
    assert len(scores) == 5


def test_one_request_that_cannot_be_scored_does_not_fail_the_others(scorer):
    broken = inputs(4)
    broken[0][2] = float("inf")
    given = [inputs(6, 1), broken, inputs(5, 2)]
    batcher = Batcher(scorer, max_candidates=1000, wait_us=5_000_000)
    ready = threading.Barrier(3)

    def score(arguments):
        with batcher.expect() as arrival:
            ready.wait(10)
            return arrival.score(*arguments)[0]

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(score, arguments) for arguments in given]
        with pytest.raises(BrokenAnswerError, match="scores candidate 2"):
            futures[1].result(20)
        for place in (0, 2):
            np.testing.assert_allclose(futures[place].result(20), scorer.score(*given[place])[0], rtol=0, atol=1e-6)
    assert batcher.num_batches == 1


def test_an_upper_model_that_fails_fails_the_whole_batch(scorer):
    batcher = Batcher(scorer, max_candidates=1000, wait_us=5_000_000)
    given = [inputs(4), (torch.zeros(4, 2), torch.zeros(4, 5, 16))]
    ready = threading.Barrier(2)

    def score(arguments):
        with batcher.expect() as arrival:
            ready.wait(10)
            return arrival.score(*arguments)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(score, arguments) for arguments in given]:
            with pytest.raises(RuntimeError):
                future.result(20)
    with batcher.expect() as arrival:
        arrival.score(*inputs(3))  # the next one is as ever


def test_a_ranker_with_batches_answers_as_one_without_and_keeps_versions_apart(
    model, release, other_release, lookup_server, request_of, all_ids
):
    lookup_server.load(other_release.path)
    config = RankerConfig(
        releases=(release.path, other_release.path),
        lookup=lookup_server.framed_address,
        lookup_timeout_s=10,
        startup_timeout_s=10,
        workers=8,
        batch_max_candidates=2000,
        batch_wait_us=20_000,
    )
    with RankerServer(config) as ranker, RankerClient(ranker.address, timeout_s=20) as client:

        def ask(number):
            precision, version = (("int4", release.version), ("int8", other_release.version))[number % 2]
            request_ids, candidate_ids, dense = request_of(20 + number, seed=number)
            answer = client.rank(request_ids, candidate_ids, dense=dense, version=version)
            offline = model.score(all_ids(request_ids, candidate_ids, 20 + number), dense, precision)
            np.testing.assert_allclose(np.stack([answer.ctr, answer.cvr], axis=1), offline, rtol=2e-6, atol=1e-6)
            assert answer.version == version

        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(ask, number) for number in range(48)]:
                future.result(30)
        batches = [scorer.batcher.num_batches for _, scorer in ranker._loaded.items()]
        assert sum(batches) < 48  # some did go together
        assert all(not scorer.batcher._num_expected for _, scorer in ranker._loaded.items())
