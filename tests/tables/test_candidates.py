"""Candidates stand once each, positives are found, known answers are masked, and chances are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from tables.candidates import CandidateSampler
from tables.pairs import PairIndex

NUM_ROWS = 300


def sampler(**options: int) -> CandidateSampler:
    weights = 1.0 / np.arange(1.0, NUM_ROWS + 1)
    return CandidateSampler(weights, **options)  # type: ignore[arg-type]


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
        candidates = tested.draw(batch, generator)
        assert len(set(candidates.rows)) == len(candidates.rows)
        assert np.array_equal(candidates.rows[candidates.targets], batch)
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
        candidates = tested.draw(batch, generator, queries=queries, known=known)
        assert candidates.hits is not None
        for example, query in enumerate(queries):
            group = candidates.hits.groups[example]
            begin, end = candidates.hits.indptr[group : group + 2]
            masked = candidates.rows[candidates.hits.slots[begin:end]]
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
            tested.draw(positives(generator, 2 * batch_size), generator)
        # The first example's own positive is the last row: all others come from the sources that it sees.
        batch = np.concatenate([np.int32([last]), positives(generator, batch_size - 1)])
        counts[tested.draw(batch, generator).rows] += 1

    tested.draw(positives(generator, 2 * batch_size), generator)
    expected = np.exp(tested.log_inclusion(np.arange(NUM_ROWS, dtype=np.int32), batch_size))
    deviation = np.sqrt(expected * (1 - expected) / repeats)
    z_scores = ((counts / repeats - expected) / deviation)[:last]
    assert np.abs(z_scores).max() < 4.5
    assert z_scores.std() < 1.2


def test_the_batch_alone_has_the_published_formula() -> None:
    weights = np.array([5.0, 3.0, 2.0])
    tested = CandidateSampler(np.concatenate([weights, np.zeros(97)]))

    log_inclusion = tested.log_inclusion(np.arange(3, dtype=np.int32), batch_size=9)

    np.testing.assert_allclose(log_inclusion, np.log(1 - (1 - weights / 10) ** 8), rtol=1e-5)


def test_a_small_table_is_a_candidate_whole() -> None:
    tested = CandidateSampler(np.ones(10), num_uniform=10)
    batch = np.int32([3, 3, 8])

    candidates = tested.draw(batch, np.random.default_rng(0))

    assert candidates.rows.tolist() == list(range(10))
    assert candidates.targets.tolist() == [3, 3, 8]
    assert not candidates.log_inclusion.any()


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_uniform counts draws"):
        sampler(num_uniform=-1)
    known = PairIndex(np.zeros(1, int), np.zeros(1, int), num_left=1, num_right=NUM_ROWS)
    with pytest.raises(ValueError, match="pass `queries`"):
        sampler().draw(np.int32([1, 2]), np.random.default_rng(0), known=known)
