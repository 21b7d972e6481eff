"""Which row of a model's table each id of a snapshot has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import torch

from multifacet.tables import IdMap
from multifacet.tables.drift import match_ids
from multifacet.tables.ids import IdColumn, to_arrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.ranking.initialize.sources import TableSource

#: Row of an id that the table has no row for.
NO_ROW: Final = -1
#: Row of a position that is left out, as if the snapshot did not have it.
LEFT_OUT: Final = -2
_IDS_AT_ONCE: Final = 1 << 22


def row_numbers(source: TableSource, num_rows: int, *, table: str) -> NDArray[np.int32] | None:
    """Give the row of each position of a source's snapshot.

    Args:
        source: The source.
        num_rows: Rows of the table.
        table: The table's name, for errors.

    Returns:
        int32 [n, rows an id]: `NO_ROW` for an id without a row, `LEFT_OUT` for a position that is left out; None where
        position i has row i, and none is left out.

    Raises:
        ValueError: If a row lies outside the table, is the padding row, or the rows are not as many as the ids.
        TypeError: If the rows are no integers, or the ids of another type than the mapping's.
    """
    rows = _numbers(source, num_rows, table)
    dropped = left_out(source, table)
    if rows is None:
        if dropped is None or not dropped.any():
            return None
        rows = np.arange(source.snapshot.num_rows(source.node_type), dtype=np.int32)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if source.padding_row is not None and (rows == source.padding_row).any():
        _refuse_padding(source, int(np.flatnonzero((rows == source.padding_row).any(1))[0]), table)
    if dropped is not None and dropped.any():
        rows = rows.copy()
        rows[dropped] = LEFT_OUT
    return rows


def positions_by_row(source: TableSource, num_rows: int, *, table: str) -> tuple[NDArray[np.int32], int] | None:
    """Give the position that each row has, where an exact id map gives each id one of its own: as `row_numbers`, at once.

    Args:
        source: The source.
        num_rows: Rows of the table.
        table: The table's name, for errors.

    Returns:
        int32 [num_rows], -1 for a row without a position, and the number of ids without a row; None for other sources.

    Raises:
        ValueError: If the padding row belongs to an id.
    """
    if source.id_map is None or source.id_map.index is None:
        return None
    column = IdColumn.of(source.snapshot.ids(source.node_type), source.id_map.id_type)
    positions, num_unused = source.id_map.index.invert(column, num_rows)
    if source.padding_row is not None and positions[source.padding_row] >= 0:
        _refuse_padding(source, int(positions[source.padding_row]), table)
    dropped = left_out(source, table)
    if dropped is not None and dropped.any():
        positions[(positions >= 0) & dropped[positions]] = NO_ROW
        # A position that is left out is not counted either.
        num_unused = int((~dropped).sum()) - int((positions >= 0).sum())
    return positions, num_unused


def left_out(source: TableSource, table: str) -> NDArray[np.bool_] | None:
    """Say which positions do not count: those without a gradient, and an older snapshot's; None for none."""
    trained = source.snapshot.trained(source.node_type)
    dropped = None if trained is None else ~trained.numpy()
    if source.except_ids_of is not None:
        known = _known(source, table)
        dropped = known if dropped is None else dropped | known
    return dropped


def _refuse_padding(source: TableSource, place: int, table: str) -> None:
    raise ValueError(
        f"table {table}: id {_id_at(source, place)!r} has row {source.padding_row}, which is the padding row and stands for "
        "no id; give it another row, or another padding row"
    )


def _numbers(source: TableSource, num_rows: int, table: str) -> NDArray[np.int32] | None:
    num_ids = source.snapshot.num_rows(source.node_type)
    if source.id_map is not None:
        return _look_up(source.id_map, source.snapshot.ids(source.node_type))
    rows = source.rows
    if isinstance(rows, str):
        if rows == "id":
            return _own_numbers(source, num_rows, table)
        if num_ids > num_rows:
            raise ValueError(
                f"table {table} has {num_rows} rows, the snapshot {num_ids} vectors of {source.node_type!r}: its rows are not "
                "the "
                "snapshot's positions; give the id map that the model looks its ids up with"
            )
        return None
    if isinstance(rows, Mapping):
        return _check(_by_mapping(source, rows, table), num_ids, num_rows, table)
    if callable(rows):
        rows = rows(source.snapshot.ids(source.node_type))
    return _check(rows, num_ids, num_rows, table)


def _look_up(id_map: IdMap, ids: pa.Array) -> NDArray[np.int32]:
    rows = np.empty((len(ids), id_map.num_hashes), np.int32)
    for start in range(0, len(ids), _IDS_AT_ONCE):
        column = IdColumn.of(ids[start : start + _IDS_AT_ONCE], id_map.id_type)
        rows[start : start + len(column)] = id_map.rows_of(column).reshape(len(column), -1)
    return rows


def _own_numbers(source: TableSource, num_rows: int, table: str) -> NDArray[np.int32]:
    ids = source.snapshot.ids(source.node_type)
    if not pa.types.is_integer(ids.type):
        raise TypeError(f'table {table}: rows="id" takes integer ids for rows, and those of {source.node_type!r} are strings')
    numbers = ids.to_numpy()
    return np.where((numbers >= 0) & (numbers < num_rows), numbers, NO_ROW).astype(np.int32)


def _by_mapping(source: TableSource, rows: Mapping[Any, Any], table: str) -> Any:
    ids = source.snapshot.ids(source.node_type)
    if not rows:
        raise ValueError(f"table {table}: the mapping from ids to rows is empty")
    numbers = np.asarray(list(rows.values()))
    try:
        known = IdMap.exact(list(rows))
        places = known.rows(ids)
    except TypeError as error:
        raise TypeError(
            f"table {table}: the mapping's ids and the snapshot's ({ids.type}) of {source.node_type!r} are of two types: "
            f"{error}"
        ) from error
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise TypeError(f"table {table}: the mapping's rows are {numbers.dtype}; expected an integer for each id")
    return np.append(numbers.astype(np.int64), NO_ROW)[places]


def _check(rows: Any, num_ids: int, num_rows: int, table: str) -> NDArray[np.int32]:
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu()
    numbers = np.asarray(rows)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"table {table}: rows are {numbers.dtype}; expected integers, -1 for an id without a row")
    if numbers.ndim not in {1, 2} or len(numbers) != num_ids:
        raise ValueError(
            f"table {table}: rows are {list(numbers.shape)}; expected one for each of the snapshot's {num_ids} ids"
        )
    wrong = (numbers < NO_ROW) | (numbers >= num_rows)
    if wrong.any():
        place = int(np.flatnonzero(wrong.reshape(num_ids, -1).any(1))[0])
        raise ValueError(
            f"table {table} has {num_rows} rows, and position {place} of the snapshot is given row {numbers[place]}; expected "
            "0 to "
            f"{num_rows - 1}, or -1 for an id without a row"
        )
    return numbers.astype(np.int32)


def _known(source: TableSource, table: str) -> NDArray[np.bool_]:
    """Say which ids the older snapshot has, trained."""
    older = source.except_ids_of
    assert older is not None  # noqa: S101 - the caller has looked
    if source.node_type not in older.node_types:
        raise ValueError(f"table {table}: the older snapshot {older.path} has no ids of {source.node_type!r}")
    try:
        places = match_ids(older.ids(source.node_type), source.snapshot.ids(source.node_type))
    except TypeError as error:
        raise TypeError(f"table {table}: the ids of {source.node_type!r} are of two types in the two snapshots") from error
    known = places >= 0
    trained = older.trained(source.node_type)
    if trained is not None:
        known[known] = trained.numpy()[places[known]]
    return known


def _id_at(source: TableSource, place: int) -> Any:
    return to_arrow(source.snapshot.ids(source.node_type))[place].as_py()
