"""Columns of more text than 32-bit offsets reach are put together all the same."""

from __future__ import annotations

import pyarrow as pa
import pytest

from multifacet.inputs import as_one_array


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.int64()])
def test_chunks_become_one_array_of_their_type(kind: pa.DataType) -> None:
    values = [1, None, 3] if kind == pa.int64() else ["é", None, ""]
    column = pa.chunked_array([values, [], values], kind)
    assert as_one_array(column) == pa.array([*values, *values], kind)
    assert as_one_array(pa.chunked_array([], kind)) == pa.array([], kind)
    assert as_one_array(column.chunk(0)) == column.chunk(0)


def test_more_text_than_its_offsets_reach_becomes_large() -> None:
    column = pa.chunked_array([["ab" * 20], ["cd" * 20]])
    whole = as_one_array(column, max_text=60)
    assert whole.type == pa.large_string()
    assert whole.to_pylist() == column.to_pylist()
