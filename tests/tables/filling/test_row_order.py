"""Sorts and inversions by parts give what plain loops give."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from multifacet.tables import IdMap
from multifacet.tables.filling import RowPlacement, row_order
from multifacet.tables.filling.row_order import sort_by_row
from multifacet.tables.ids import IdColumn
from multifacet.tables.ids import index as idindex


@given(
    rows=arrays(np.int32, st.tuples(st.integers(0, 60), st.integers(1, 3)), elements=st.integers(-2, 40)),
    first=st.integers(0, 12),
    num_rows=st.integers(0, 40),
    bits=st.integers(1, 6),
)
@settings(max_examples=80, deadline=None)
def test_positions_are_sorted_by_row_whatever_the_parts(rows: Any, first: int, num_rows: int, bits: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_order, "_PART_ROWS_BITS", bits)
        patch.setattr(row_order, "_MIN_POSITIONS_PER_THREAD", 5)
        starts, positions, num_unused = sort_by_row(rows, first=first, num_rows=num_rows)
    expected = [sorted({place for place, own in enumerate(rows.tolist()) if first + row in own}) for row in range(num_rows)]
    assert [positions[begin:end].tolist() for begin, end in itertools.pairwise(starts)] == expected
    assert num_unused == (rows == -1).sum()


@given(
    known=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=80),
    asked=st.lists(st.integers(-50, 50), unique=True, max_size=60),
    per_part=st.integers(1, 20),
    at_once=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("text", [False, True])
def test_an_inversion_is_the_lookup_the_other_way_round(
    known: list[int], asked: list[int], per_part: int, at_once: int, text: bool
) -> None:
    names: list[Any] = [str(number) for number in known] if text else known
    wanted: list[Any] = [str(number) for number in asked] if text else asked
    names = list(dict.fromkeys([*names, *wanted[::2]]))
    index = IdMap.exact(np.array(names, dtype=object if text else np.int64)).index if names else None
    if index is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idindex, "_IDS_PER_PART", per_part)
        patch.setattr(idindex, "_IDS_AT_ONCE", at_once)
        patch.setattr(idindex, "_MIN_IDS_PER_THREAD", 4)
        kind = "string" if text else "int64"
        positions, num_missing = index.invert(
            IdColumn.of(np.array(wanted, dtype=object if text else np.int64), kind) if wanted else IdColumn.of([], kind),
            len(names) + 1,
        )
    row_of = {name: row for row, name in enumerate(names)}
    expected = np.full(len(names) + 1, -1)
    for place, name in enumerate(wanted):
        if name in row_of:
            expected[row_of[name]] = place
    assert positions.tolist() == expected.tolist()
    assert num_missing == sum(name not in row_of for name in wanted)


@given(filled=st.lists(st.booleans(), min_size=1, max_size=60), number=st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_filled_rows_are_some_of_them_spread_over_the_range(filled: list[bool], number: int) -> None:
    positions = np.where(filled, 0, -1).astype(np.int32)
    placement = RowPlacement.one_each(positions, first=3, num_positions=len(filled), num_unused=0)
    held, rows = np.flatnonzero(filled), placement.filled_rows(number)
    assert len(rows) == min(number, len(held))
    assert set(rows.tolist()) <= set(held.tolist())
    places = np.searchsorted(held, rows)
    assert (np.diff(places) >= len(held) // number).all()
