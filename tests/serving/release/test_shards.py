"""The rule that says which shard holds an id: fixed for ever, even, and that of a hashed table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifacet.serving.release.sharding.shards import MAX_SHARDS, partition, shard_of, shard_of_keys
from multifacet.tables import IdMap
from multifacet.tables.ids import IdColumn

MASK = (1 << 64) - 1
INT64 = st.integers(-(2**63), 2**63 - 1)


def mix(value: int) -> int:
    """SplitMix64's finaliser in Python's own integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@given(ids=st.lists(INT64, max_size=20), num_shards=st.integers(1, MAX_SHARDS))
def test_the_rule_is_the_one_that_releases_were_split_by(ids, num_shards):
    step = mix(0x9E3779B97F4A7C15)  # the first of SplitMix64's numbers for the seed 0
    expected = [(mix((mix(value & MASK) + step) & MASK) * num_shards) >> 64 for value in ids]
    assert shard_of(np.array(ids, np.int64), num_shards).tolist() == expected
    assert shard_of(ids, num_shards).tolist() == expected


@given(ids=st.lists(st.text(), max_size=20), num_shards=st.integers(1, 9))
def test_strings_go_by_the_key_that_id_maps_give_them(ids, num_shards):
    keys = IdColumn.of(pa.array(ids, pa.string())).keys
    np.testing.assert_array_equal(shard_of(ids, num_shards), shard_of_keys(keys, num_shards))
    np.testing.assert_array_equal(shard_of(np.array(ids, np.object_), num_shards), shard_of_keys(keys, num_shards))


@given(ids=st.lists(INT64, max_size=50), num_shards=st.integers(1, 7))
def test_a_partition_has_every_position_once_in_its_shard_and_in_order(ids, num_shards):
    array = np.array(ids, np.int64)
    order, starts = partition(array, num_shards)
    shards = shard_of(array, num_shards)
    assert sorted(order.tolist()) == list(range(len(ids)))
    assert (starts[0], starts[-1], len(starts)) == (0, len(ids), num_shards + 1)
    for shard in range(num_shards):
        np.testing.assert_array_equal(order[starts[shard] : starts[shard + 1]], np.flatnonzero(shards == shard))


@given(ids=st.lists(INT64, max_size=20), num_shards=st.integers(1, MAX_SHARDS))
def test_an_id_is_in_the_shard_that_is_its_row_in_a_hashed_table_of_as_many_rows(ids, num_shards):
    rows = IdMap.hashed(num_shards, id_type="int64").rows(np.array(ids, np.int64))
    np.testing.assert_array_equal(shard_of(ids, num_shards), rows)


@pytest.mark.parametrize("seed", [1, 0x7368617264734F66])
def test_shards_are_even_in_number_and_within_every_part_of_a_table_hashed_by_another_seed(seed):
    ids = np.arange(80_000, dtype=np.int64)
    shards = shard_of(ids, 4)
    tenth = IdMap.hashed(10, id_type="int64", seed=seed).rows(ids)
    counts = np.bincount(shards * 10 + tenth, minlength=40)
    assert len(counts) == 40
    # 2,000 expected in each of 40 cells, with a standard deviation of 44: six of them
    assert np.abs(counts - 2000).max() < 6 * 44


def test_a_number_of_shards_and_ids_that_cannot_be_meant_are_refused():
    for num_shards in (0, MAX_SHARDS + 1):
        with pytest.raises(ValueError, match="expected 1 to 32768"):
            shard_of([1], num_shards)
    with pytest.raises(TypeError, match="expected int64 or strings"):
        shard_of([1.5], 2)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        shard_of(np.zeros((2, 2), np.int64), 2)
    assert len(shard_of([], 3)) == 0
