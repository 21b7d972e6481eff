"""Exact neighbours against NumPy's sort, for both backends and blocks of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multifacet.tables import Similarity, find_neighbors
from multifacet.tables.searching import neighbors


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("block_elements", [1, 40, 1 << 24])
def test_they_are_those_of_a_full_sort(
    backend: neighbors.Backend, similarity: Similarity, block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "_BLOCK_ELEMENTS", block_elements)
    generator = np.random.default_rng(0)
    queries, vectors = (generator.standard_normal((count, 8)).astype(np.float32) for count in (5, 101))
    vectors[3] = 0.0
    scores, rows = find_neighbors(
        torch.from_numpy(queries), torch.from_numpy(vectors), 7, similarity=similarity, backend=backend
    )
    expected = queries @ vectors.T
    if similarity == "cosine":
        expected /= np.linalg.norm(queries, axis=1)[:, None] * np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    assert np.array_equal(rows.numpy(), np.argsort(-expected, axis=1)[:, :7])
    np.testing.assert_allclose(scores.numpy(), -np.sort(-expected, axis=1)[:, :7], rtol=1e-5, atol=1e-6)


@given(num_rows=st.integers(1, 30), k=st.integers(1, 40), half=st.booleans())
def test_any_k_gives_each_row_once(num_rows: int, k: int, half: bool) -> None:
    vectors = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(num_rows))
    scores, rows = find_neighbors(vectors[:1], vectors.half() if half else vectors, k)
    assert len(set(rows[0].tolist())) == rows.shape[1] == min(k, num_rows)
    assert (scores.diff() <= 0).all()


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        find_neighbors(torch.eye(2), torch.eye(2), 0)
    with pytest.raises(ValueError, match=r"one width, got \[2, 2\] and \[3, 3\]"):
        find_neighbors(torch.eye(2), torch.eye(3), 1)
