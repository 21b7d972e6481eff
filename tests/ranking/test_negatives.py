from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from multifacet.ranking.negatives import draw_negatives


@given(
    weights=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    first=st.integers(0, 11),
    bought=st.sets(st.integers(-2, 14)),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), max_size=8),
)
def test_a_draw_is_the_unit_of_weight_that_its_number_points_at(
    weights: list[int], first: int, bought: set[int], uniforms: list[float]
) -> None:
    start = min(first, len(weights) - 1)
    pins = np.arange(len(weights))
    # The oracle writes each placement as many times as it weighs, and picks by position.
    units = [pin for pin in range(start, len(weights)) if pin not in bought for _ in range(weights[pin])]
    positions, available = draw_negatives(
        pins,
        np.concatenate([[0], np.cumsum(weights)]),
        np.array([[start, len(weights)]]),
        np.array(sorted(bought), dtype=np.int64),
        np.array([0, len(bought)]),
        np.array([0, len(uniforms)]),
        np.array(uniforms, dtype=np.float64),
    )
    assert available.tolist() == [len(units)]
    assert positions.tolist() == [units[int(u * len(units))] if units else -1 for u in uniforms]


def test_an_empty_context_has_nothing_to_draw() -> None:
    positions, available = draw_negatives(
        np.array([5], dtype=np.int64),
        np.array([0, 3]),
        np.array([[1, 1]]),
        np.array([], dtype=np.int64),
        np.array([0, 0]),
        np.array([0, 2]),
        np.array([0.1, 0.9]),
    )
    assert available.tolist() == [0]
    assert positions.tolist() == [-1, -1]
