"""Metrics of full ranking against lists sorted in NumPy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from multifacet.contrastive import evaluate
from multifacet.contrastive.evaluation import STRATA, popularity_strata
from multifacet.tables.pairs import PairIndex

NUM_QUERIES, NUM_ITEMS = 23, 57


def pairs(num_pairs: int, seed: int) -> PairIndex:
    chosen = np.random.default_rng(seed).permutation(NUM_QUERIES * NUM_ITEMS)[:num_pairs]
    return PairIndex(chosen // NUM_ITEMS, chosen % NUM_ITEMS, num_left=NUM_QUERIES, num_right=NUM_ITEMS)


def vectors(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 5, 20, 100])
@pytest.mark.parametrize("with_seen", [True, False])
def test_metrics_equal_sorted_lists(k: int, with_seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multifacet.contrastive.evaluation._BLOCK_ELEMENTS", 4 * NUM_ITEMS)  # several blocks
    queries, items = vectors(NUM_QUERIES, 0), vectors(NUM_ITEMS, 1)
    relevant, seen = pairs(90, 1), pairs(400, 2)  # some relevant ones are seen: those stay in
    popularity = np.random.default_rng(3).integers(1, 50, NUM_ITEMS)
    strata = popularity_strata(popularity)

    metrics = evaluate(queries, items, relevant=relevant, seen=seen if with_seen else None, k=k, popularity=popularity)

    recalls, ndcgs, hits, reciprocal_ranks = [], [], [], []
    by_stratum: dict[str, list[float]] = {name: [] for name in STRATA}
    listed: set[int] = set()
    length = min(k, NUM_ITEMS)
    for query in range(NUM_QUERIES):
        right = set(relevant.row(query).tolist())
        if not right:
            continue
        hidden = set(seen.row(query).tolist()) - right if with_seen else set()
        scores = (items @ queries[query]).numpy()
        ranking = [item for item in np.argsort(-scores).tolist() if item not in hidden]
        order = ranking[:length]
        listed.update(order)
        recalls.append(sum(item in right for item in order) / len(right))
        hits.append(any(item in right for item in order))
        reciprocal_ranks.append(1 / (1 + min(ranking.index(item) for item in right)))
        gain = sum(1 / np.log2(place + 2) for place, item in enumerate(order) if item in right)
        ndcgs.append(gain / sum(1 / np.log2(place + 2) for place in range(min(len(right), length))))
        for number, name in enumerate(STRATA):
            of_stratum = {item for item in right if strata[item] == number}
            if of_stratum:
                by_stratum[name].append(len(of_stratum & set(order)) / len(of_stratum))
    expected = {
        f"recall@{length}": np.mean(recalls),
        f"ndcg@{length}": np.mean(ndcgs),
        f"hr@{length}": np.mean(hits),
        "mrr": np.mean(reciprocal_ranks),
        f"coverage@{length}": len(listed) / NUM_ITEMS,
    } | {f"recall@{length}/{name}": np.mean(values) for name, values in by_stratum.items()}
    assert metrics == {name: pytest.approx(value) for name, value in expected.items()}


def test_strata_hold_a_third_of_the_interactions_each() -> None:
    popularity = np.random.default_rng(0).zipf(1.8, 5000).clip(max=2000)

    strata = popularity_strata(popularity)

    shares = np.bincount(strata, weights=popularity) / popularity.sum()
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    assert popularity[strata == 0].min() >= popularity[strata == 1].max()
    assert popularity[strata == 1].min() >= popularity[strata == 2].max()


def test_popularity_is_that_of_the_seen_pairs_unless_told() -> None:
    queries, items, relevant, seen = vectors(NUM_QUERIES, 0), vectors(NUM_ITEMS, 1), pairs(90, 1), pairs(400, 2)
    counts = np.bincount(seen.indices, minlength=NUM_ITEMS)

    told = evaluate(queries, items, relevant=relevant, seen=seen, popularity=counts)

    assert evaluate(queries, items, relevant=relevant, seen=seen) == told
    assert "recall@20/head" not in evaluate(queries, items, relevant=relevant)


def test_equal_scores_count_half_in_the_reciprocal_rank() -> None:
    relevant = PairIndex(np.array([0]), np.array([2]), num_left=1, num_right=5)

    metrics = evaluate(torch.ones(1, 2), torch.ones(5, 2), relevant=relevant, k=1)

    assert metrics["mrr"] == pytest.approx(1 / 3)


def test_memory_does_not_grow_with_the_queries() -> None:
    num_queries, num_items = 20_000, 1_000
    queries, items = vectors(num_queries, 0), vectors(num_items, 1)
    rows = np.arange(num_queries)
    relevant = PairIndex(rows, rows % num_items, num_left=num_queries, num_right=num_items)
    evaluate(queries[:8], items, relevant=PairIndex(rows[:8], rows[:8], num_left=8, num_right=num_items))  # compiles
    tracemalloc.start()
    try:
        evaluate(queries, items, relevant=relevant)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # NumPy's share; torch's is one block of scores. All scores at once would be 80 MB.
    assert peak < 8e6


def test_nothing_relevant_gives_no_metrics() -> None:
    assert evaluate(torch.ones(NUM_QUERIES, 2), torch.ones(NUM_ITEMS, 2), relevant=pairs(0, 0)) == {}


def test_tables_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="`relevant` is of 23 queries and 57 items, the tables have 23 and 56 rows"):
        evaluate(torch.ones(NUM_QUERIES, 2), torch.ones(NUM_ITEMS - 1, 2), relevant=pairs(9, 0))
    with pytest.raises(ValueError, match=r"popularity needs one number for each of 57 items, got shape \(56,\)"):
        evaluate(torch.ones(NUM_QUERIES, 2), torch.ones(NUM_ITEMS, 2), relevant=pairs(9, 0), popularity=np.ones(56))


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    items = torch.ones(NUM_ITEMS, 2)
    items[4] = float("nan")
    with pytest.raises(ValueError, match="is not a number"):
        evaluate(torch.ones(NUM_QUERIES, 2), items, relevant=pairs(9, 0))
