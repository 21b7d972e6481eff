"""Candidates stand once each, positives are found, known answers are masked, and chances are what they are said to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from multifacet.contrastive.candidates import Candidates, CandidateSampler
from multifacet.contrastive.draws import PositiveDraws
from multifacet.contrastive.hard import HardNegatives
from multifacet.contrastive.positives import Positives
from multifacet.tables.pairs import PairIndex

NUM_ROWS = 300


def sampler(**options: int) -> CandidateSampler:
    weights = 1.0 / np.arange(1.0, NUM_ROWS + 1)
    return CandidateSampler(weights, **options)  # type: ignore[arg-type]


def draw(tested: CandidateSampler, batch: np.ndarray, generator: np.random.Generator, **options: Any) -> Candidates:
    """Draw for a batch of one positive a query."""
    return tested.draw(batch, np.arange(len(batch) + 1), generator, num_draws=len(batch), **options)


def positives(generator: np.random.Generator, size: int) -> np.ndarray:
    weights = 1.0 / np.arange(1.0, NUM_ROWS + 1)
    return generator.choice(NUM_ROWS, size=size, p=weights / weights.sum()).astype(np.int32)


@pytest.mark.parametrize("queue_size", [0, 7, 100])
def test_each_row_stands_once_and_targets_point_at_the_positives(queue_size: int) -> None:
    generator = np.random.default_rng(0)
    tested = sampler(num_uniform=20, num_degree=20, queue_size=queue_size)
    past = np.empty(0, dtype=np.int32)
    for _ in range(5):
        batch = positives(generator, 40)
        candidates = draw(tested, batch, generator)
        assert len(set(candidates.rows)) == len(candidates.rows)
        assert np.array_equal(candidates.rows[candidates.targets.slots], batch)
        assert set(past) <= set(candidates.rows)
        past = np.concatenate([past, batch])[max(0, len(past) + len(batch) - queue_size) :]
        assert np.array_equal(tested.queue, past)


def test_known_answers_are_found_among_the_candidates() -> None:
    generator = np.random.default_rng(1)
    left, right = generator.integers(0, 30, 4000), generator.integers(0, NUM_ROWS, 4000)
    left = np.concatenate([left, np.zeros(NUM_ROWS, dtype=np.int64)])  # query 0 knows everything: a hub
    right = np.concatenate([right, np.arange(NUM_ROWS)])
    known = PairIndex(left, right, num_left=30, num_right=NUM_ROWS)
    for num_uniform in (20, NUM_ROWS):  # a sample, and all rows
        tested = sampler(num_uniform=num_uniform)
        edges = generator.integers(0, len(left), 40)
        queries, batch = left[edges].astype(np.int32), right[edges].astype(np.int32)
        candidates = draw(tested, batch, generator, queries=queries, known=known)
        assert candidates.masked is not None
        for number, query in enumerate(queries):
            begin, end = candidates.masked.indptr[number : number + 2]
            masked = candidates.rows[candidates.masked.slots[begin:end]]
            assert len(set(masked)) == len(masked)
            assert set(masked) == set(known.row(query)) & set(candidates.rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_uniform": 25},
        {"num_degree": 25},
        {"queue_size": 20},
        {"num_uniform": 10, "num_degree": 10, "queue_size": 20},
    ],
)
def test_log_inclusion_is_how_often_a_row_is_drawn(options: dict[str, int]) -> None:
    generator = np.random.default_rng(2)
    tested, batch_size, repeats = sampler(**options), 16, 2000
    last = NUM_ROWS - 1
    counts = np.zeros(NUM_ROWS)
    for _ in range(repeats):
        if options.get("queue_size"):
            draw(tested, positives(generator, 2 * batch_size), generator)
        # The first example's own positive is the last row: all others come from the sources that it sees.
        batch = np.concatenate([np.int32([last]), positives(generator, batch_size - 1)])
        counts[draw(tested, batch, generator).rows] += 1

    draw(tested, positives(generator, 2 * batch_size), generator)
    expected = np.exp(tested.log_inclusion(np.arange(NUM_ROWS, dtype=np.int32), batch_size, 1))
    deviation = np.sqrt(expected * (1 - expected) / repeats)
    z_scores = ((counts / repeats - expected) / deviation)[:last]
    assert np.abs(z_scores).max() < 4.5
    assert z_scores.std() < 1.2


def test_the_batch_alone_has_the_published_formula() -> None:
    weights = np.array([5.0, 3.0, 2.0])
    tested = CandidateSampler(np.concatenate([weights, np.zeros(97)]))

    log_inclusion = tested.log_inclusion(np.arange(3, dtype=np.int32), 9, 1)

    np.testing.assert_allclose(log_inclusion, np.log(1 - (1 - weights / 10) ** 8), rtol=1e-5)


def test_a_small_table_is_a_candidate_whole() -> None:
    tested = CandidateSampler(np.ones(10), num_uniform=10)
    batch = np.int32([3, 3, 8])

    candidates = draw(tested, batch, np.random.default_rng(0))

    assert candidates.rows.tolist() == list(range(10))
    assert candidates.targets.slots.tolist() == [3, 3, 8]
    assert not candidates.log_inclusion.any()


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_uniform counts draws"):
        sampler(num_uniform=-1)
    known = PairIndex(np.zeros(1, int), np.zeros(1, int), num_left=1, num_right=NUM_ROWS)
    with pytest.raises(ValueError, match="pass `queries`"):
        draw(sampler(), np.int32([1, 2]), np.random.default_rng(0), known=known)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per_query", [1, 4])
def test_draws_by_query_keep_each_positives_chance_and_tell_each_items(per_query: int, weighted: bool) -> None:
    generator = np.random.default_rng(3)
    queries, items = np.divmod(np.flatnonzero(generator.random(12 * 30) < 0.3), 30)
    found = Positives.from_pairs(queries, items, num_queries=12, num_items=30)
    if weighted:
        weights = generator.integers(1, 5, len(found))
        found = Positives.from_pairs(np.repeat(queries, weights), np.repeat(items, weights), num_queries=12, num_items=30)
    draws, repeats = PositiveDraws(found, per_query), 40_000

    drawn = draws.draw(repeats, generator)

    share = found.weights / found.weights.sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=len(found)) / len(drawn), share, atol=0.004)
    held = np.zeros(30)
    for _ in range(4000):
        held[np.unique(found.items[draws.draw(1, generator)])] += 1
    np.testing.assert_allclose(held / 4000, draws.item_chance(), atol=0.035)
    assert draws.query_chance().sum() == pytest.approx(1.0)


def test_hard_negatives_are_drawn_as_often_as_they_say() -> None:
    generator = np.random.default_rng(4)
    best = np.stack([generator.permutation(20)[:5] for _ in range(6)]).astype(np.int32)
    hard, chance = HardNegatives(best, 3, num_items=20), np.full(6, 1 / 6)
    held = np.zeros(20)
    for query in generator.integers(0, 6, 6000):
        held[np.unique(hard.draw(np.int32([query]), generator))] += 1

    np.testing.assert_allclose(held / 6000, hard.item_chance(chance), atol=0.03)
