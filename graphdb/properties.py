"""Properties of nodes and edges as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from multifacet.graphdb.sql import GraphError

if TYPE_CHECKING:
    from torch import Tensor

#: What stands for a null among dates and times.
NO_TIME: Final = np.iinfo(np.int64).min

_FLOATS: Final[Mapping[str, pa.DataType]] = {
    "BOOLEAN": pa.float32(),
    "INTEGER": pa.float64(),
    "BIGINT": pa.float64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
}
_TIMES: Final = frozenset({"DATE", "TIMESTAMP"})
_MAX_EXACT: Final = 1 << 53
_DAY_US: Final = 86_400_000_000
_MAX_DAY: Final = np.iinfo(np.int64).max // _DAY_US
#: DuckDB's infinity among dates, which becomes that of timestamps.
_ENDLESS_DAY: Final = (1 << 31) - 1


def tensor_properties(properties: Mapping[str, str]) -> list[str]:
    """The names of those properties that a tensor can hold: all but text.

    Args:
        properties: Property name -> DuckDB type.
    """
    return [name for name, kind in properties.items() if kind in _FLOATS or kind in _TIMES]


def property_tensor(column: pa.ChunkedArray, kind: str, *, where: str) -> Tensor:
    """A property as a tensor that holds every value unchanged.

    Numbers and booleans become floats, NaN where they are null: float32 for BOOLEAN and FLOAT, float64 for INTEGER, BIGINT and
    DOUBLE. A DATE or TIMESTAMP becomes int64 microseconds since 1970 (UTC), -2^63 where it is null.

    Args:
        column: The values, [n].
        kind: Their DuckDB type.
        where: What the property is called in an error.

    Raises:
        GraphError: A BIGINT beyond 2^53, which a float64 cannot tell from its neighbours; or text.
    """
    if kind in _TIMES:
        return torch.from_numpy(_microseconds(column, kind, where))
    if kind not in _FLOATS:
        msg = f"{where} is {kind}, which no tensor holds; read it by SQL, or export it as Parquet"
        raise GraphError(msg)
    if kind == "BIGINT" and len(column) > column.null_count:
        bounds = pc.min_max(column)
        extremes = bounds["min"].as_py(), bounds["max"].as_py()
        if max(map(abs, extremes)) > _MAX_EXACT:
            msg = (
                f"{where} has values from {extremes[0]} to {extremes[1]}; beyond 2^53 a float64 tensor is not exact. "
                "Leave the property out, or read it by SQL"
            )
            raise GraphError(msg)
    floats = pc.fill_null(column.cast(_FLOATS[kind], safe=False), np.nan)
    return torch.from_numpy(floats.to_numpy().copy())


def _microseconds(column: pa.ChunkedArray, kind: str, where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    integers = column.cast(pa.int32()).cast(pa.int64()) if kind == "DATE" else column.cast(pa.int64())
    null = integers.is_null().to_numpy()
    values: np.ndarray[Any, np.dtype[np.int64]] = pc.fill_null(integers, 0).to_numpy().copy()
    if kind == "DATE":
        endless = np.abs(values) == _ENDLESS_DAY
        far = ~endless & (np.abs(values) > _MAX_DAY)
        if far.any():
            msg = (
                f"{where} has a date {int(values[far][0])} days from 1970, whose microseconds do not fit 64 bits; "
                "leave it out of the properties, or read it by SQL"
            )
            raise GraphError(msg)
        values = np.where(endless, np.sign(values) * np.iinfo(np.int64).max, values * _DAY_US)
    values[null] = NO_TIME
    return values
