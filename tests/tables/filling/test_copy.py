from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.tables import IdMap
from multifacet.tables.filling import RowPlacement, copy_rows

DIM = 5


def place(ids: Any, id_map: IdMap, *, first: int, num_rows: int) -> RowPlacement:
    rows = id_map.rows(ids).reshape(len(ids), id_map.num_hashes).copy()
    if id_map.oov_row is not None:
        rows[rows == id_map.oov_row] = -1
    return RowPlacement.by_rows(rows, first=first, num_rows=num_rows)


def random_vectors(num_rows: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("source", [torch.float32, torch.float16])
@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
def test_casts_are_those_of_torch(source: torch.dtype, target: torch.dtype) -> None:
    edges = torch.tensor([0.0, -0.0, 1.0, 65504.0, 6e-8, -6e-5, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8])
    vectors = torch.cat([edges.repeat(5, 1).T.contiguous(), random_vectors(500) * 100]).to(source)
    table = torch.full((len(vectors), DIM), 7.0, dtype=target)
    copy_rows(vectors, table, RowPlacement.in_order(len(vectors), first=0, num_rows=len(table)))
    expected = vectors.float().to(target)
    assert torch.equal(table.view(torch.int16), expected.view(torch.int16))


@settings(max_examples=40, deadline=None)
@given(
    num_ids=st.integers(0, 60),
    num_rows=st.integers(1, 40),
    num_hashes=st.integers(1, 3),
    rule=st.sampled_from(["mean", "weighted", "first"]),
    data=st.data(),
)
def test_any_shard_holds_each_rows_vectors_combined(
    num_ids: int, num_rows: int, num_hashes: int, rule: str, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, num_rows - 1))
    size = data.draw(st.integers(1, num_rows - first))
    id_map = IdMap.hashed(num_rows, id_type="int64", num_hashes=num_hashes, seed=3)
    ids = np.arange(num_ids) * 17
    vectors = random_vectors(num_ids)
    weights = torch.tensor([float(id_ % 3) for id_ in ids], dtype=torch.float32) if rule == "weighted" else None
    table = torch.full((size, DIM), 7.0)
    placement = place(ids, id_map, first=first, num_rows=size)
    sums = copy_rows(vectors, table, placement, collisions=rule, weights=weights, scale=2.0)  # type: ignore[arg-type]

    rows = id_map.rows(ids).reshape(num_ids, num_hashes)
    filled, collided, used = 0, 0, 0
    for row in range(first, first + size):
        chosen = [position for position in range(num_ids) if row in rows[position]]
        filled += bool(chosen)
        collided += len(chosen) > 1
        if not chosen:
            assert (table[row - first] == 7.0).all()
            continue
        if rule == "first":
            chosen = chosen[:1]
        used += len(chosen)
        share = torch.ones(len(chosen)) if weights is None or weights[chosen].sum() == 0 else weights[chosen]
        expected = 2.0 * (vectors[chosen] * share[:, None]).sum(0) / share.sum()
        torch.testing.assert_close(table[row - first], expected, rtol=1e-5, atol=1e-6)
    assert (sums.num_filled, sums.num_collided, sums.num_vectors) == (filled, collided, used)
    written = np.array([row for row in range(size) if row not in set(placement.empty_rows)], dtype=np.int64)
    assert sums.squares_after == pytest.approx(float(table[written].double().square().sum()), rel=1e-5)
    np.testing.assert_allclose(sums.columns, table[written].double().sum(0), rtol=1e-4, atol=1e-4)


def test_a_copy_does_not_depend_on_the_number_of_threads() -> None:
    vectors = random_vectors(300_000, torch.float16)
    id_map = IdMap.hashed(200_000, id_type="int64")
    placement = place(np.arange(300_000), id_map, first=0, num_rows=200_000)
    tables = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            tables.append(torch.zeros(200_000, DIM, dtype=torch.float16))
            copy_rows(vectors, tables[-1], placement)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*tables)


def test_columns_and_rows_of_a_shard_are_a_part_of_the_whole() -> None:
    vectors = random_vectors(50)
    placement = RowPlacement.in_order(50, first=10, num_rows=30)
    table = torch.zeros(8, 2)
    copy_rows(vectors, table, placement, column=3, num_columns=2, rows=(4, 12))
    assert torch.equal(table, vectors[14:22, 3:])


def test_an_out_of_vocabulary_row_gets_no_vector_and_its_ids_are_counted() -> None:
    placement = place([5, 6, 7], IdMap.exact([7, 9]), first=0, num_rows=3)
    assert placement.num_unused == 2
    assert placement.empty_rows.tolist() == [1, 2]


def test_a_value_beyond_the_targets_type_is_refused_and_its_row_named() -> None:
    vectors = torch.zeros(4, DIM)
    vectors[2, 3] = 70000.0
    placement = RowPlacement.in_order(4, first=0, num_rows=4)
    copy_rows(vectors, torch.zeros(4, DIM, dtype=torch.bfloat16), placement)
    copy_rows(vectors * 0.9, torch.zeros(4, DIM, dtype=torch.float16), placement)
    with pytest.raises(ValueError, match=r"row 2 gets a value beyond torch.float16's 65504"):
        copy_rows(vectors, torch.zeros(4, DIM, dtype=torch.float16), placement)
    # A row of many large values is longer than the largest one, and fits all the same.
    copy_rows(torch.full((4, DIM), 65504.0), torch.zeros(4, DIM, dtype=torch.float16), placement)


def test_misfits_are_refused() -> None:
    placement = RowPlacement.in_order(4, first=0, num_rows=4)
    with pytest.raises(ValueError, match=r"target is \[3, 5\]; expected contiguous \[4, 5\]"):
        copy_rows(random_vectors(4), torch.zeros(3, DIM), placement)
    with pytest.raises(ValueError, match="5 vectors; they were placed as 4"):
        copy_rows(random_vectors(5), torch.zeros(4, DIM), placement)
    with pytest.raises(ValueError, match="none negative or NaN"):
        copy_rows(
            random_vectors(4), torch.zeros(4, DIM), placement, collisions="weighted", weights=torch.tensor([1.0, -1, 0, 0])
        )
    with pytest.raises(ValueError, match="weights are missing"):
        copy_rows(random_vectors(4), torch.zeros(4, DIM), placement, collisions="weighted")
    with pytest.raises(ValueError, match="float64"):
        copy_rows(random_vectors(4).double(), torch.zeros(4, DIM), placement)
