"""Arrow columns as one array."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

__all__ = ["as_one_array"]

_MAX_TEXT: Final = (1 << 31) - 1


def as_one_array(column: Any, *, max_text: int = _MAX_TEXT) -> Any:
    """Puts the chunks of a column together.

    Args:
        column: A ChunkedArray, or an array, which is given back.
        max_text: Bytes of text that an array of 32-bit offsets holds; more of it becomes `large_string`.

    Returns:
        One array: of the column's type, or of `large_string`, where its text would overflow that.

    Example:
        >>> as_one_array(pa.chunked_array([["a"], ["b"]])).to_pylist()
        ['a', 'b']
    """
    if not isinstance(column, pa.ChunkedArray):
        return column
    if pa.types.is_string(column.type) and column.num_chunks > 1 and column.nbytes > max_text:
        column = column.cast(pa.large_string())
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
