"""Distinct pairs against Python's sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.tables.pairs import PairIndex


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=60))
def test_rows_and_membership_are_those_of_the_set(pairs: list[tuple[int, int]]) -> None:
    columns = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    index = PairIndex(columns[:, 0], columns[:, 1], num_left=6, num_right=9)

    assert index.num_pairs == len(set(pairs))
    for left in range(6):
        assert index.row(left).tolist() == sorted({right for other, right in pairs if other == left})
    left, right = np.divmod(np.arange(54), 9)
    expected = [(a, b) in set(pairs) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    assert index.contains(left, right).tolist() == expected
    assert list(zip(index.left().tolist(), index.indices.tolist(), strict=True)) == sorted(set(pairs))


def test_rows_outside_the_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"right rows lie in 0\.\.2, got 0\.\.3"):
        PairIndex(np.int32([0, 0]), np.int32([0, 3]), num_left=1, num_right=3)
    with pytest.raises(ValueError, match="two columns of one length"):
        PairIndex(np.int32([0]), np.int32([0, 1]), num_left=1, num_right=3)
