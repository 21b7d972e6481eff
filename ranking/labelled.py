"""Examples from a user's own labelled rows: Parquet, Arrow, or any DuckDB relation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from ranking.examples import Examples, column
from ranking.recent import RecentPins

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LabelledColumns(BaseModel):
    """Which columns of a table are what; those that are None are filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str = Field(default="user_id", description="user ids, integers")
    pin: str = Field(default="pin_id", description="pin ids, integers")
    advertiser: str | None = Field(default=None, description="advertiser ids, integers, null where there is none")
    click: str = Field(default="clicked", description="0 or 1")
    conversion: str | None = Field(
        default=None, description="0 or 1 of a click; null where it is not known yet, and of what was not clicked"
    )
    dense: tuple[str, ...] = Field(min_length=1, description="numeric features, known before the exposure")
    period: str | None = Field(default=None, description="integer period (week, day) of the exposure, for segments")
    context: str | None = Field(default=None, description="integer context of the exposure")
    sampling_rate: str | None = Field(
        default=None,
        description="share of such rows that were kept where negatives were down-sampled: 1 for a click, e.g. 0.1 for others",
    )
    negative_rate: str | None = Field(
        default=None, description="share that would have been kept had the row been a negative; needed with sampling_rate"
    )
    recent_pins: str | None = Field(default=None, description="lists of the user's recent pin ids, the latest first")
    num_recent_pins: int = Field(default=20, ge=1, description="pins that are kept of each list")


def read_examples(source: Any, columns: LabelledColumns) -> Examples:
    """Read labelled rows.

    Args:
        source: A Parquet file or folder, an Arrow table, or what gives one by the Arrow PyCapsule interface, such as a
            DuckDB relation, which streams its rows without a copy through Python objects.
        columns: Which columns are what.

    Returns:
        The examples, in the order of the rows.

    Raises:
        ValueError: If there are no rows, a column is missing, has nulls, is no number, or holds what it may not: the
            message names the column and the first row.

    Example:
        >>> rows = pa.table({"user_id": [1, 2], "pin_id": [7, 8], "clicked": [0, 1], "price": [0.5, 2.0]})
        >>> read_examples(rows, LabelledColumns(dense=("price",)))
        Examples(2 rows, 1 positives, 0 conversions)
    """
    names = [value for value in columns.model_dump().values() if isinstance(value, str)]
    wanted = list(dict.fromkeys([*names, *columns.dense]))
    table = pq.read_table(source, columns=wanted) if isinstance(source, (str, Path)) else pa.table(source)
    missing = [name for name in wanted if name not in table.column_names]
    if missing or table.num_rows == 0:
        raise ValueError(f"columns {missing} are missing; the table has {table.num_rows} rows of {table.column_names}")
    reader = _Reader(table)
    click = reader.labels(columns.click)
    conversion = np.full(len(click), np.nan, np.float32)
    if columns.conversion is not None:
        conversion = reader.labels(columns.conversion, nullable=True)
        reader.refuse(columns.conversion, (conversion == 1) & (click == 0), "a conversion of what was not clicked")
        conversion[click == 0] = np.nan
    if (columns.sampling_rate is None) != (columns.negative_rate is None):
        raise ValueError("sampling_rate and negative_rate go together: give the columns of both, or of neither")
    dense = np.stack([reader.numbers(name) for name in columns.dense], axis=1)
    return Examples(
        user_id=reader.integers(columns.user, np.int64),
        pin_id=reader.integers(columns.pin, np.int64),
        advertiser_id=reader.integers(columns.advertiser, np.int64, null=-1),
        context=reader.integers(columns.context, np.int32),
        period=reader.integers(columns.period, np.int32),
        dense=dense,
        ctr_label=click,
        cvr_label=conversion,
        sampling_rate=reader.rates(columns.sampling_rate),
        negative_rate=reader.rates(columns.negative_rate),
        dense_names=columns.dense,
        metadata={"columns": columns.model_dump(mode="json")},
        recent=None
        if columns.recent_pins is None
        else RecentPins.from_arrow(table[columns.recent_pins], length=columns.num_recent_pins),
    )


class _Reader:
    """Reads checked columns of one table."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def refuse(self, name: str, wrong: NDArray[np.bool_], what: str) -> None:
        """Name the first wrong row."""
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"column {name!r}, row {row}: {what} ({self.table[name][row]}); {int(wrong.sum())} such rows")

    def integers(self, name: str | None, dtype: Any, null: int | None = None) -> NDArray[Any]:
        """Read ids or periods; zeros (or `null`) where there is no such column."""
        if name is None:
            return np.full(self.table.num_rows, null or 0, dtype)
        if not pa.types.is_integer(self.table[name].type):
            raise ValueError(
                f"column {name!r} is {self.table[name].type}; expected integers (give strings numbers of their own)"
            )
        column_ = self.table[name].cast(pa.from_numpy_dtype(dtype))
        if null is not None:
            column_ = column_.fill_null(null)
        self._refuse_nulls(name, column_)
        return column(pa.table({name: column_}), name)

    def numbers(self, name: str, *, nullable: bool = False) -> NDArray[np.float32]:
        """Read finite numbers; NaN where they are null, if they may be."""
        kind = self.table[name].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ValueError(f"column {name!r} is {kind}; expected numbers")
        column_ = self.table[name].cast(pa.float32(), safe=False)
        if not nullable:
            self._refuse_nulls(name, column_)
        values = np.array(column_.to_numpy(), dtype=np.float32)
        self.refuse(name, ~np.isfinite(values) & ~self._nulls(name), "not a finite number")
        return values

    def labels(self, name: str, *, nullable: bool = False) -> NDArray[np.float32]:
        """Read zeros and ones."""
        values = self.numbers(name, nullable=nullable)
        self.refuse(name, ~np.isnan(values) & (values != 0) & (values != 1), "a label other than 0 and 1")
        return values

    def rates(self, name: str | None) -> NDArray[np.float32]:
        """Read rates above 0; ones where there is no such column."""
        if name is None:
            return np.ones(self.table.num_rows, np.float32)
        values = self.numbers(name)
        self.refuse(name, values <= 0, "a rate that is not above 0")
        return values

    def _nulls(self, name: str) -> NDArray[np.bool_]:
        return np.asarray(self.table[name].is_null().to_numpy(), dtype=np.bool_)

    def _refuse_nulls(self, name: str, values: pa.ChunkedArray) -> None:
        if values.null_count:
            self.refuse(name, np.asarray(values.is_null().to_numpy(), dtype=np.bool_), "a null")
