"""The numbers that tell the lookup kernel of a release: their places in a plan, which `serving.lookup.kernel_plan` makes."""

from __future__ import annotations

from typing import Final

NUM_FEATURES, NUM_MAPS, NUM_TABLES, MAX_IDS, HEAD_BYTES = range(5)
PLAN_HEAD: Final = 5
FEATURE_FIELDS: Final = 2  # where the name begins in the text, its length
AMEND_FIELDS: Final = 12
MAP_FIELDS: Final = 11 + AMEND_FIELDS
"""Of a map: feature, kind, eight fields of that kind, and the row of an unknown id or, if it is hashed, the table's size; then
starts, buckets, keys, rows, ids and shift of the ids that deltas added, and of those that they dropped.

exact           starts, buckets, keys, rows, ids, shift, 0, 0
hashed          0, 0, 0, 0, 0, seed, 0, 0
hashed shard    shard, shards, first row, rows of the whole table, 0, seed, 0, 0
placed          pilots, buckets, keys, moved, ids, seed, bytes from one key to the next, spare places
"""
EXACT, HASHED, HASHED_SHARD, PLACED = range(4)
CHANGE_FIELDS: Final = 3
TABLE_FIELDS: Final = 8 + CHANGE_FIELDS
"""Of a table: map, address, rows, bytes of a row, where its message begins in the text, its length, bytes from one row to the
next, whether the ids of a placed map stand there and no row is changed; then of changed rows the address of the words, their
number, and the first row (see `serving.lookup.changed_rows`), zeros if there are none.
"""
