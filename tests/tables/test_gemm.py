"""The product kernel against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from multifacet.tables.gemm import gemm

sizes = st.integers(1, 40)


@pytest.mark.parametrize(("turns_left", "turns_right"), [(False, False), (False, True), (True, False), (True, True)])
@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 2**31))
@example(100, 200, 100, 0)
@example(6, 8, 16, 0)  # exact tiles
@example(12, 7, 8, 0)  # a depth too small for the turned blocks
@example(13, 9, 17, 0)  # one row and one column more than tiles
@example(5, 3, 7, 0)  # smaller than any tile
@example(1, 1, 1, 0)
def test_a_product_is_that_of_numpy_and_nothing_beyond_it_is_written(
    turns_left: bool, turns_right: bool, num_rows: int, depth: int, num_columns: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((depth, num_rows) if turns_left else (num_rows, depth), dtype=np.float32)
    right = generator.standard_normal((num_columns, depth) if turns_right else (depth, num_columns), dtype=np.float32)
    guarded = np.full(num_rows * num_columns + 64, np.nan, dtype=np.float32)
    out = guarded[32:-32].reshape(num_rows, num_columns)

    gemm(left, turns_left, right, turns_right, out)

    exact = (left.T if turns_left else left).astype(np.float64) @ (right.T if turns_right else right)
    np.testing.assert_allclose(out, exact, rtol=1e-4, atol=2e-6 * depth)
    assert np.isnan(guarded[:32]).all()
    assert np.isnan(guarded[-32:]).all()
