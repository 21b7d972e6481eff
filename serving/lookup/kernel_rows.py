"""The lookup kernel's part that knows id maps and tables: ids to rows, and rows to where they are sent from."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]  # it is in the manual
from numba.core import types
from numba.extending import intrinsic

from multifacet.kernels.hashing import hash_rows
from multifacet.serving.lookup.changed_ids import amend
from multifacet.serving.lookup.changed_rows import locate
from multifacet.serving.lookup.placed_rows import copy_placed
from multifacet.serving.lookup.plan_fields import (
    FEATURE_FIELDS,
    HASHED,
    HASHED_SHARD,
    MAP_FIELDS,
    NUM_FEATURES,
    NUM_MAPS,
    NUM_TABLES,
    PLACED,
    PLAN_HEAD,
    TABLE_FIELDS,
)
from multifacet.serving.lookup.rows import gather_rows
from multifacet.serving.release.placing.perfect_hash import find_placed
from multifacet.serving.release.sharding.hashed_shard import find_hashed
from multifacet.serving.wire.frames import ROW_ALIGNMENT
from multifacet.tables.ids import find_ids


def _array_at(typing_context: Any, address: Any, dtype: Any) -> Any:  # noqa: ARG001
    pointer = types.CPointer(dtype.dtype)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return pointer(types.int64, dtype), generate


_pointer: Any = intrinsic(_array_at)
"""``_pointer(address, dtype)``: a number as a pointer that `numba.carray` takes."""


@numba.njit(nogil=True, cache=True)
def find_rows(plan: Any, at: Any, ids: Any, rows: Any) -> Any:
    """Rows of ids by the map whose fields begin at a place in the plan; how many are unknown."""
    last = plan[at + 10]
    if plan[at + 1] == HASHED or plan[at + 1] == HASHED_SHARD:
        seeds = carray(_pointer(plan[at + 7], np.uint64), (1,))
        if plan[at + 1] == HASHED_SHARD:
            return np.int64(find_hashed(ids, seeds[0], plan[at + 5], plan[at + 2], plan[at + 3], plan[at + 4], last, rows))
        hash_rows(ids, seeds, last, rows.reshape((len(rows), 1)), 0, len(ids))
        return np.int64(0)
    if plan[at + 1] == PLACED:
        pilots = carray(_pointer(plan[at + 2], np.uint16), (plan[at + 3],))
        moved = carray(_pointer(plan[at + 5], np.int32), (plan[at + 9],))
        keys_at, stride = np.uintp(plan[at + 4]), np.uintp(plan[at + 8])
        unknown = np.int64(find_placed(pilots, moved, plan[at + 6], np.uint64(plan[at + 7]), keys_at, stride, last, ids, rows))
    else:
        starts, keys, places = _index(plan, at + 2)
        unknown = np.int64(find_ids(starts, keys, places, np.uint64(plan[at + 7]), last, ids, rows))
    if plan[at + 15] or plan[at + 21]:
        added, added_keys, added_rows = _index(plan, at + 11)
        dropped, dropped_keys, dropped_rows = _index(plan, at + 17)
        shifts = np.uint64(plan[at + 16]), np.uint64(plan[at + 22])
        unknown = np.int64(
            amend(
                added,
                added_keys,
                added_rows,
                shifts[0],
                dropped,
                dropped_keys,
                dropped_rows,
                shifts[1],
                unknown,
                last,
                ids,
                rows,
            )
        )
    return unknown


@numba.njit(nogil=True, cache=True)
def _index(plan: Any, at: Any) -> Any:
    starts = carray(_pointer(plan[at], np.int32), (plan[at + 1],))
    keys = carray(_pointer(plan[at + 2], np.int64), (plan[at + 4],))
    return starts, keys, carray(_pointer(plan[at + 3], np.int32), (plan[at + 4],))


@numba.njit(nogil=True, cache=True)
def copy_rows(plan: Any, at: Any, rows: Any, places: Any, out: Any) -> None:
    """Copy a table's rows to an address; `places` is room for as many as there are rows, if some of them may be changed."""
    address, stride, row_bytes = np.uintp(plan[at + 1]), np.uintp(plan[at + 6]), np.uintp(plan[at + 3])
    if plan[at + 8]:
        marks = carray(_pointer(plan[at + 8], np.uint64), (plan[at + 9],))
        locate(marks, np.uint64(plan[at + 10]), rows, places)
        gather_rows(address, stride, row_bytes, places[: len(rows)], out)
    else:
        gather_rows(address, stride, row_bytes, rows, out)


@numba.njit(nogil=True, cache=True)
def size_of(plan: Any, spans: Any, table: Any) -> Any:
    """How many rows of a table are asked for, and where its fields begin in the plan."""
    maps = PLAN_HEAD + FEATURE_FIELDS * plan[NUM_FEATURES]
    at = maps + MAP_FIELDS * plan[NUM_MAPS] + TABLE_FIELDS * table
    return spans[plan[maps + MAP_FIELDS * plan[at]], 1], at


@numba.njit(nogil=True, cache=True)
def keyed_table(plan: Any, spans: Any, position: Any, rows_start: Any) -> Any:
    """Of the table in which a map's ids stand, if no row of it is changed: its fields, and where its rows begin in the answer.

    Zeros if there is none.
    """
    begin = rows_start
    for table in range(plan[NUM_TABLES]):
        size, at = size_of(plan, spans, table)
        if plan[at] == position and plan[at + 7]:
            return at, begin
        begin += (size * plan[at + 3] + ROW_ALIGNMENT - 1) & ~(ROW_ALIGNMENT - 1)
    return np.int64(0), np.int64(0)


@numba.njit(nogil=True, cache=True)
def copy_keyed(plan: Any, at: Any, table: Any, ids: Any, rows: Any, memory: Any, begin: Any) -> Any:
    """Find and copy rows that stand with their ids, of the map and the table whose fields begin there; how many are unknown."""
    pilots = carray(_pointer(plan[at + 2], np.uint16), (plan[at + 3],))
    moved = carray(_pointer(plan[at + 5], np.int32), (plan[at + 9],))
    address, stride, row_bytes = np.uintp(plan[table + 1]), np.uintp(plan[table + 6]), np.uintp(plan[table + 3])
    offset = np.uint64(plan[at + 7])
    return copy_placed(pilots, moved, plan[at + 6], offset, address, stride, row_bytes, ids, rows, memory, begin)
