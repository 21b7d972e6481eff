"""Recall and NDCG against lists sorted in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contrastive import evaluate
from tables.pairs import PairIndex

NUM_QUERIES, NUM_ITEMS = 23, 57


def pairs(num_pairs: int, seed: int) -> PairIndex:
    chosen = np.random.default_rng(seed).permutation(NUM_QUERIES * NUM_ITEMS)[:num_pairs]
    return PairIndex(chosen // NUM_ITEMS, chosen % NUM_ITEMS, num_left=NUM_QUERIES, num_right=NUM_ITEMS)


@pytest.mark.parametrize("k", [1, 5, 20, 100])
@pytest.mark.parametrize("with_seen", [True, False])
def test_metrics_equal_sorted_lists(k: int, with_seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrastive.evaluation._BLOCK_ELEMENTS", 4 * NUM_ITEMS)  # several blocks
    generator = torch.Generator().manual_seed(0)
    queries, items = (
        torch.randn(NUM_QUERIES, 6, generator=generator),
        torch.randn(NUM_ITEMS, 6, generator=generator),
    )
    relevant, seen = pairs(90, 1), pairs(400, 2)  # some relevant ones are seen: those stay in

    metrics = evaluate(queries, items, relevant=relevant, seen=seen if with_seen else None, k=k)

    recalls, ndcgs = [], []
    length = min(k, NUM_ITEMS)
    for query in range(NUM_QUERIES):
        right = set(relevant.row(query).tolist())
        if not right:
            continue
        hidden = set(seen.row(query).tolist()) - right if with_seen else set()
        scores = (items @ queries[query]).numpy()
        order = [item for item in np.argsort(-scores) if item not in hidden][:length]
        recalls.append(sum(item in right for item in order) / len(right))
        gain = sum(1 / np.log2(place + 2) for place, item in enumerate(order) if item in right)
        ndcgs.append(gain / sum(1 / np.log2(place + 2) for place in range(min(len(right), length))))
    assert metrics == {
        f"recall@{length}": pytest.approx(np.mean(recalls)),
        f"ndcg@{length}": pytest.approx(np.mean(ndcgs)),
    }


def test_nothing_relevant_gives_no_metrics() -> None:
    assert evaluate(torch.ones(NUM_QUERIES, 2), torch.ones(NUM_ITEMS, 2), relevant=pairs(0, 0)) == {}


def test_tables_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="`relevant` is of 23 queries and 57 items, the tables have 23 and 56 rows"):
        evaluate(torch.ones(NUM_QUERIES, 2), torch.ones(NUM_ITEMS - 1, 2), relevant=pairs(9, 0))


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    items = torch.ones(NUM_ITEMS, 2)
    items[4] = float("nan")
    with pytest.raises(ValueError, match="is not a number"):
        evaluate(torch.ones(NUM_QUERIES, 2), items, relevant=pairs(9, 0))
