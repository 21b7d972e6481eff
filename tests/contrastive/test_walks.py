"""Walks end where the graph leads, as often as its weights say, and weigh what they are said to."""

from __future__ import annotations

import numpy as np
import pytest

from multifacet.contrastive import Positives, PositiveWalks
from multifacet.contrastive.walks import add_walks


def test_walks_reach_the_items_of_queries_that_share_one() -> None:
    # Query 0 has item 0, which query 1 has too, beside items 1 and 2; query 2 and item 3 are apart.
    found = Positives.from_pairs(
        np.array([0, 1, 1, 1, 1, 2]), np.array([0, 0, 1, 2, 2, 3]), num_queries=4, num_items=5
    )  # (1, 2) weighs twice

    walked = add_walks(found, PositiveWalks(num_walks=4000, weight=0.5), seed=0)

    weights = {(int(q), int(i)): float(w) for q, i, w in zip(walked.queries, walked.items, walked.weights, strict=True)}
    assert set(weights) == {(q, i) for q in (0, 1) for i in (0, 1, 2)} | {(2, 3)}
    # From query 0: back to query 0 or on to query 1 by half each; from there 1/4, 1/4 and 2/4.
    assert weights[0, 0] == pytest.approx(1 + 0.5 * (1 / 2 + 1 / 8), abs=0.02)
    assert weights[0, 1] == pytest.approx(0.5 / 8, abs=0.01)
    assert weights[0, 2] == pytest.approx(0.5 / 4, abs=0.01)
    assert weights[2, 3] == pytest.approx(1.5)
    assert walked.weights.sum() == pytest.approx(1.5 * found.weights.sum())
