"""The best columns against a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifacet.tables.topk import top_k


@given(st.integers(1, 5), st.integers(1, 300), st.data())
def test_it_is_the_head_of_a_stable_sort(num_rows: int, num_columns: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, num_columns))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    scores = generator.integers(-3, 4, (num_rows, num_columns)).astype(np.float32)  # many are equal
    scores[generator.random(scores.shape) < 0.2] = -np.inf

    np.testing.assert_array_equal(top_k(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_a_list_longer_than_the_row_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 4, but a row has 3 scores"):
        top_k(np.zeros((2, 3), dtype=np.float32), 4)
