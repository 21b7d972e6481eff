"""Examples from a user's own labelled rows: Parquet, Arrow, or any DuckDB relation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as pads
from pydantic import Field, model_validator

from multifacet.inputs import Configuration, expect_type
from multifacet.ranking.examples.examples import ID_FEATURES, Examples, column
from multifacet.ranking.examples.recent import IdLists
from multifacet.ranking.slots import RECENT_PINS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_FEATURE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_TAKEN: Final = (*ID_FEATURES, RECENT_PINS)


class LabelledColumns(Configuration):
    """Which columns of a table are what; those that are None are filled in.

    Ids are integers or strings. A feature is a line: ``features={"country": "country", "device": "device", "tags": "tag_ids"}``
    reads three more of them, one a list.
    """

    user: str = Field(default="user_id", description="user ids")
    pin: str = Field(default="pin_id", description="pin ids: of what is shown")
    advertiser: str | None = Field(default=None, description="advertiser ids, null where there is none")
    features: dict[str, str] = Field(
        default_factory=dict,
        description="further id features: name -> column of integers, strings, or lists of them; null where there is none",
    )
    max_list_length: int = Field(default=20, ge=1, description="ids that are kept of each list, the first ones")
    click: str = Field(default="clicked", description="0 or 1")
    conversion: str | None = Field(
        default=None, description="0 or 1 of a click; null where it is not known yet, and of what was not clicked"
    )
    dense: tuple[str, ...] = Field(default=(), description="numeric features, known before the exposure")
    weight: str | None = Field(default=None, description="what each row counts for in the loss, above 0")
    time: str | None = Field(default=None, description="time of the exposure, to split by; a timestamp or a date")
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.dense)) != len(self.dense):
            raise ValueError(f"dense features are named twice: {self.dense}")
        labels = {self.click: "click", self.conversion: "conversion", self.sampling_rate: "sampling_rate"}
        labels |= {self.negative_rate: "negative_rate", self.weight: "weight"}
        known = [name for name in self.dense if name in labels]
        if known:
            raise ValueError(
                f"dense names {known[0]!r}, the column of {labels[known[0]]}: a model that reads it would know the "
                f"answer; leave it out"
            )
        wrong = [name for name in self.features if not _FEATURE_NAME.fullmatch(name) or name in _TAKEN]
        if wrong:
            raise ValueError(
                f"features names {wrong}: use letters, digits, '_', '-' and '.', and other names than {', '.join(_TAKEN)}"
            )
        return self


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
    expect_type("columns", columns, LabelledColumns)
    fields = columns.model_dump(exclude={"dense", "features", "max_list_length", "num_recent_pins"})
    wanted = list(
        dict.fromkeys([*(name for name in fields.values() if name is not None), *columns.features.values(), *columns.dense])
    )
    table = _open(source, wanted)
    missing = [name for name in wanted if name not in table.column_names]
    if missing or table.num_rows == 0:
        raise ValueError(f"columns {missing} are missing; the table has {table.num_rows} rows of {table.column_names}")
    repeated = [name for name in wanted if table.column_names.count(name) > 1]
    if repeated:
        raise ValueError(f"the table has several columns named {repeated}; rename all but one of each")
    reader = _Reader(table)
    click = reader.labels(columns.click)
    conversion = np.full(len(click), np.nan, np.float32)
    if columns.conversion is not None:
        conversion = reader.labels(columns.conversion, nullable=True)
        reader.refuse(columns.conversion, (conversion == 1) & (click == 0), "a conversion of what was not clicked")
        conversion[click == 0] = np.nan
    if (columns.sampling_rate is None) != (columns.negative_rate is None):
        raise ValueError("sampling_rate and negative_rate go together: give the columns of both, or of neither")
    dense = [reader.numbers(name) for name in columns.dense]
    words: dict[str, pa.Array] = {}
    pins = [columns.pin, *([columns.recent_pins] if columns.recent_pins is not None else [])]
    pin, *recent = reader.ids(pins, "pin", words)
    singles = {name: column_ for name, column_ in columns.features.items() if not reader.is_list(column_)}
    lists = {name: column_ for name, column_ in columns.features.items() if reader.is_list(column_)}
    return Examples(
        user_id=reader.ids([columns.user], "user", words)[0],
        pin_id=pin,
        advertiser_id=np.full(len(click), -1, np.int64)
        if columns.advertiser is None
        else reader.ids([columns.advertiser], "advertiser", words, nullable=True)[0],
        context=reader.integers(columns.context, np.int32),
        period=reader.integers(columns.period, np.int32),
        dense=np.stack(dense, axis=1) if dense else np.zeros((len(click), 0), np.float32),
        ctr_label=click,
        cvr_label=conversion,
        sampling_rate=reader.rates(columns.sampling_rate),
        negative_rate=reader.rates(columns.negative_rate),
        dense_names=columns.dense,
        metadata={"columns": columns.model_dump(mode="json")},
        recent=reader.lists(columns.recent_pins, recent[0], columns.num_recent_pins)
        if recent and columns.recent_pins is not None
        else None,
        extra={name: reader.ids([column_], name, words, nullable=True)[0] for name, column_ in singles.items()},
        lists={
            name: reader.lists(column_, reader.ids([column_], name, words, nullable=True)[0], columns.max_list_length)
            for name, column_ in lists.items()
        },
        vocabularies=words,
        weight=None if columns.weight is None else reader.weights(columns.weight),
    )


def read_times(source: Any, columns: LabelledColumns) -> NDArray[np.datetime64]:
    """Read the times of labelled rows, to split them by.

    Args:
        source: As `read_examples`.
        columns: Which column holds the times.

    Returns:
        datetime64[us], shape [n]; times of a zone are turned to UTC.

    Raises:
        ValueError: If no column is named, or it holds no times, or nulls.
    """
    expect_type("columns", columns, LabelledColumns)
    if columns.time is None:
        raise ValueError("no column of times is named: set LabelledColumns.time")
    table = _open(source, [columns.time])
    if columns.time not in table.column_names:
        raise ValueError(f"column {columns.time!r} is missing; the table has {table.column_names}")
    values = table[columns.time]
    if not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
        raise ValueError(f"column {columns.time!r} is {values.type}; expected timestamps or dates")
    _Reader(table).refuse(columns.time, np.asarray(values.is_null().to_numpy(), dtype=np.bool_), "a null")
    times: NDArray[np.datetime64] = values.cast(pa.timestamp("us"), safe=False).to_numpy().astype("datetime64[us]")
    return times


def _open(source: Any, wanted: list[str]) -> pa.Table:
    """Open a source as an Arrow table, of a file only the columns that are wanted."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"there are no labelled rows at {path}")
        try:
            if path.suffix == ".csv":
                return pyarrow.csv.read_csv(path)
            # Through the dataset, which also reads a folder; a column that is missing is named by the caller.
            names = set(pads.dataset(path).schema.names)
            return pads.dataset(path).to_table(columns=[name for name in wanted if name in names])
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} cannot be read as {'CSV' if path.suffix == '.csv' else 'Parquet'}: {error}") from error
    if isinstance(source, pa.Table) or hasattr(source, "__arrow_c_stream__"):
        return pa.table(source)
    raise TypeError(
        f"labelled rows are a {type(source).__name__}; expected a Parquet file or folder, a CSV file, a data frame, "
        f"an Arrow table "
        "or a DuckDB relation"
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

    def is_list(self, name: str) -> bool:
        """Tell whether a column holds lists."""
        kind = self.table[name].type
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))

    def ids(
        self, names: Sequence[str], feature: str, words: dict[str, pa.Array], *, nullable: bool = False
    ) -> list[NDArray[np.int64]]:
        """Read ids of one feature out of some columns, of lists their values; put its strings into `words`.

        Returns:
            Integers as they are, or numbers of strings, int64 [n] a column; -1, or the number of "", where a value is null.
        """
        columns = [self._flat(name) if self.is_list(name) else self.table[name] for name in names]
        kinds = {_id_kind(values.type) for values in columns}
        if None in kinds or len(kinds) > 1:
            types = ", ".join(f"{name!r} is {self.table[name].type}" for name in names)
            raise ValueError(f"{feature}: column {types}; expected ids, all integers or all strings")
        for name, values in zip(names, columns, strict=True):
            if not nullable:
                self.refuse(name, self._nulls(name), "a null")
            if self.is_list(name) and values.null_count:
                raise ValueError(f"column {name!r} has {values.null_count} nulls within its lists; drop them")
        if kinds == {"integer"}:
            read = []
            for name, values in zip(names, columns, strict=True):
                try:
                    cast = values.cast(pa.int64())
                except pa.ArrowInvalid as error:
                    raise ValueError(f"column {name!r} holds ids beyond 64 bits: {error}") from error
                read.append(column(pa.table({"id": cast.fill_null(-1)}), "id"))
            return read
        together = pa.chunked_array([chunk for values in columns for chunk in values.cast(pa.string()).chunks], pa.string())
        encoded = together.fill_null("").combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        words[feature] = encoded.dictionary
        bounds = np.cumsum([len(values) for values in columns])[:-1]
        return np.split(encoded.indices.to_numpy().astype(np.int64), bounds)

    def lists(self, name: str, numbers: NDArray[np.int64], length: int) -> IdLists:
        """Cut a column's values, which `ids` gave, into its lists."""
        values = self.table[name].combine_chunks()
        values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        counts = np.asarray(pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        cut = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(numbers))
        return IdLists.from_arrow(pa.chunked_array([cut]), length=length)

    def _flat(self, name: str) -> pa.ChunkedArray:
        flat = pc.list_flatten(self.table[name])
        return flat if isinstance(flat, pa.ChunkedArray) else pa.chunked_array([flat])

    def weights(self, name: str) -> NDArray[np.float32]:
        """Read weights above 0."""
        values = self.numbers(name)
        self.refuse(name, values <= 0, "a weight that is not above 0")
        return values

    def integers(self, name: str | None, dtype: Any) -> NDArray[Any]:
        """Read periods or contexts; zeros where there is no such column."""
        if name is None:
            return np.zeros(self.table.num_rows, dtype)
        if not pa.types.is_integer(self.table[name].type):
            raise ValueError(f"column {name!r} is {self.table[name].type}; expected integers")
        try:
            column_ = self.table[name].cast(pa.from_numpy_dtype(dtype))
        except pa.ArrowInvalid as error:
            raise ValueError(f"column {name!r} does not fit {np.dtype(dtype)}: {error}") from error
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
        """Read shares above 0 and up to 1; ones where there is no such column."""
        if name is None:
            return np.ones(self.table.num_rows, np.float32)
        values = self.numbers(name)
        self.refuse(name, (values <= 0) | (values > 1), "a rate that is not above 0 and up to 1")
        return values

    def _nulls(self, name: str) -> NDArray[np.bool_]:
        return np.asarray(self.table[name].is_null().to_numpy(), dtype=np.bool_)

    def _refuse_nulls(self, name: str, values: pa.ChunkedArray) -> None:
        if values.null_count:
            self.refuse(name, np.asarray(values.is_null().to_numpy(), dtype=np.bool_), "a null")


def _id_kind(kind: pa.DataType) -> str | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "integer"
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "string" if is_text else None
