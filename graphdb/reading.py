"""How files are read: which they are, and each kind's columns as they stand, with nothing guessed.

Text is read as text: what a column's values mean is the declaration's to say, not the first rows'. Files that have different
columns or types are read apart, each by its own, and only then put together.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import duckdb
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multifacet.graphdb.lines import COMPRESSIONS
from multifacet.graphdb.rows import Part
from multifacet.graphdb.sql import GraphError, first_line, quote_text, run
from multifacet.graphdb.values import TimeUnit

Format = Literal["parquet", "csv", "jsonl"]

#: Kinds of files by the ends of their names.
FORMATS: Final[dict[str, Format]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_DELIMITERS: Final = ",;\t|"
_VIRTUAL: Final = frozenset({"filename", "file_row_number", "file_index"})
#: A header longer than this is none.
_MAX_HEADER: Final = 1 << 20
#: DuckDB's names of encodings, by Python's.
_ENCODINGS: Final = {"utf-8": "utf-8", "utf-16": "utf-16", "iso8859-1": "latin-1"}


class Reading(BaseModel):
    """How files, or the columns of a table, are read, where the usual way does not fit.

    Example:
        >>> Reading(delimiter=";", time_format="%d.%m.%Y %H:%M", null_texts=("", "-")).delimiter
        ';'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format | None = Field(
        default=None, description="kind of the files: parquet, csv or jsonl; by their names otherwise"
    )
    delimiter: str | None = Field(
        default=None, description="what stands between the columns of a CSV file; a comma, or a tab in .tsv", max_length=4
    )
    quote: str = Field(
        default='"', description="what a CSV value may be quoted by; empty where nothing is quoted", max_length=1
    )
    header: bool | None = Field(
        default=None, description="whether CSV files begin with a line of names; yes, unless columns are given"
    )
    columns: tuple[str, ...] | None = Field(
        default=None, description="names of the columns of CSV files that have none of their own"
    )
    encoding: str = Field(default="utf-8", description="encoding of CSV files: utf-8, utf-16 or latin-1")
    null_texts: tuple[str, ...] = Field(default=(), description="texts that stand for null, beside an empty CSV value")
    time_format: str | None = Field(
        default=None, description="strptime format of times given as text, such as %d/%m/%Y %H:%M; ISO 8601 by default"
    )
    time_unit: TimeUnit | None = Field(
        default=None, description="unit of times given as numbers, since 1970 in UTC: s, ms, us or ns"
    )
    union_by_name: bool = Field(default=False, description="whether a column that some files lack is null there")

    @classmethod
    def of(cls, options: dict[str, Any]) -> Reading:
        """Gives the reading that options ask for; `GraphError` where there is no such one."""
        unknown = sorted(set(options) - set(cls.model_fields))
        if unknown:
            msg = f"{unknown[0]}: is no option of reading; there are {', '.join(cls.model_fields)}"
            raise GraphError(msg)
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise GraphError(faults) from error

    @property
    def for_text_files(self) -> list[str]:
        """Names of the options given that mean something for text files only."""
        names = ("delimiter", "quote", "header", "columns", "encoding")
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


def find_files(patterns: Sequence[str | Path], reading: Reading) -> list[str]:
    """Gives the files that paths, folders and globs (`**` means any depth) name, in order, each once.

    Raises:
        GraphError: Nothing matches one of them.
    """
    files: list[str] = []
    for pattern in map(str, patterns):
        # A name that exists is a file, even where it holds *, ? or [.
        if Path(pattern).is_dir():
            matches = sorted(
                str(path)
                for path in Path(pattern).rglob("*")
                if path.is_file() and _is_data(path.relative_to(pattern), reading)
            )
            if not matches:
                msg = f"no file below the folder {pattern!r} has a name ending in {', '.join(FORMATS)}"
                raise GraphError(msg)
        elif Path(pattern).exists():
            matches = [pattern]
        else:
            found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - patterns may be absolute
            matches = sorted(path for path in found if not Path(path).is_dir())
        if not matches:
            msg = f"no file matches {pattern!r}"
            raise GraphError(msg)
        files += matches
    return list({str(Path(file).absolute()): file for file in reversed(files)}.values())[::-1]


def format_of(file: str, reading: Reading) -> Format:
    """Gives the kind of a file.

    Raises:
        GraphError: Its name does not tell.
    """
    if reading.format is not None:
        return reading.format
    found = FORMATS.get(_suffix(file))
    if found is None:
        msg = (
            f"cannot tell what {file!r} is: expected a name ending in {', '.join(FORMATS)} (optionally .gz or .zst); "
            f"say what it "
            'is with format="csv", "parquet" or "jsonl"'
        )
        raise GraphError(msg)
    return found


def open_files(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[str],
    wanted: Sequence[str] | None,
    reading: Reading,
    *,
    sets_aside: bool = True,
) -> list[Part]:
    """Gives the rows of files, as parts that each have columns and types of their own.

    Args:
        connection: A connection.
        files: The files, in order.
        wanted: The columns that are looked for; all by default.
        reading: How they are read.
        sets_aside: Whether lines of a text file that are no rows are left to DuckDB's tables of them, or are an error.

    Raises:
        GraphError: The files are of different kinds, or one cannot be read.
    """
    kinds = {format_of(file, reading) for file in files}
    if len(kinds) != 1:
        msg = f"the files are of different kinds ({', '.join(sorted(kinds))}); load each kind with a call of its own"
        raise GraphError(msg)
    kind = kinds.pop()
    if kind != "csv" and reading.for_text_files:
        msg = f"{', '.join(reading.for_text_files)}: only CSV files are read so, and {files[0]!r} is {kind}"
        raise GraphError(msg)
    if kind == "parquet":
        return _open_parquet(connection, files, wanted)
    if kind == "csv":
        return _open_csv(files, wanted, reading, sets_aside=sets_aside)
    return _open_json(connection, files)


def _is_data(path: Path, reading: Reading) -> bool:
    is_hidden = any(part.startswith(("_", ".")) for part in path.parts)
    return not is_hidden and (reading.format is not None or _suffix(str(path)) in FORMATS)


def _suffix(file: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    while suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _names(files: Sequence[str]) -> str:
    # DuckDB expands globs in a file's name by itself: escape what is meant literally.
    return f"[{', '.join(quote_text(glob.escape(file)) for file in files)}]"


def _runs(files: Sequence[str], key: Callable[[str], Any]) -> Iterator[tuple[Any, list[str]]]:
    """Neighbours that have the same key."""
    for shared, run_of in itertools.groupby(files, key=key):
        yield shared, list(run_of)


def _open_parquet(connection: duckdb.DuckDBPyConnection, files: Sequence[str], wanted: Sequence[str] | None) -> list[Part]:
    schemas = _parquet_schemas(connection, files)
    parts = []
    for number, (_, group) in enumerate(_runs(files, schemas.__getitem__)):
        names, options = _names(group), "hive_partitioning = false"
        types = _describe(connection, f"read_parquet({_names(group[:1])}, {options})", group[0])
        present = {name.lower() for name in types}
        if wanted is not None and any(name.lower() not in present and f"{name}=" in group[0] for name in wanted):
            # Values of a folder's name, as text: they are converted as any other.
            options = "hive_partitioning = true, hive_types_autocast = false"
            types = _describe(connection, f"read_parquet({_names(group[:1])}, {options})", group[0])
        if _VIRTUAL & {name.lower() for name in types}:
            own = f"read_parquet({names}, {options}, filename = '_mf_filename')"
            parts.append(Part(sql=own, types=types, files=group, file="_mf_filename", number=None, order=(str(number),)))
            continue
        parts.append(
            Part(
                sql=f"read_parquet({names}, {options})",
                types=types,
                files=group,
                file="filename",
                number="file_row_number",
                order=(str(number), "file_index", "file_row_number"),
                is_repeatable=True,
            )
        )
    return parts


def _parquet_schemas(connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Each file's columns and their types, to be compared."""
    if len(files) == 1:
        return {files[0]: ()}
    fields = (
        "file_name, name, type, type_length, repetition_type = 'REPEATED', num_children, converted_type, scale, precision, "
        "logical_type"
    )
    with _told(f"one of {files[0]} and {len(files) - 1} others"):
        rows = run(connection, f"SELECT {fields} FROM parquet_schema({_names(files)})")
    schemas: dict[str, list[Any]] = {file: [] for file in files}
    for file, *field in rows:
        schemas[file].append(tuple(field))
    # The first row is the root, which writers name as they like.
    return {file: tuple(schema[1:]) for file, schema in schemas.items()}


def _describe(connection: duckdb.DuckDBPyConnection, rows: str, file: str) -> dict[str, str]:
    with _told(file):
        return {name: kind for name, kind, *_ in run(connection, f"DESCRIBE SELECT * FROM {rows}")}


def _open_csv(files: Sequence[str], wanted: Sequence[str] | None, reading: Reading, *, sets_aside: bool) -> list[Part]:
    encoding = _encoding(reading)
    has_header = reading.header if reading.header is not None else reading.columns is None
    if not has_header and reading.columns is None:
        msg = "header is false: name the columns with columns=(...), in the files' order"
        raise GraphError(msg)
    parts = []
    delimiters = {file: _delimiter(file, reading) for file in files}
    headers = {file: reading.columns or _read_header(file, delimiters[file], reading) for file in files}
    for number, ((columns, delimiter), group) in enumerate(_runs(files, lambda file: (headers[file], delimiters[file]))):
        if not columns:
            continue  # an empty file, which has neither names nor rows
        twice = [name for name in columns if columns.count(name) > 1 and (wanted is None or name in wanted)]
        if twice:
            msg = f"{group[0]}: column {twice[0]!r} stands there twice, in {list(columns)}; name them with columns=(...)"
            raise GraphError(msg)
        shape = ", ".join(f"'c{position}': 'VARCHAR'" for position in range(len(columns)))
        nulls = ", ".join(map(quote_text, dict.fromkeys(("", *reading.null_texts))))
        options = (
            f"columns = {{{shape}}}, auto_detect = false, header = {has_header}, delim = {quote_text(delimiter)}, "
            f"quote = {quote_text(reading.quote)}, escape = {quote_text(reading.quote)}, encoding = {quote_text(encoding)}, "
            f"nullstr = [{nulls}], allow_quoted_nulls = false, store_rejects = {sets_aside}, filename = '_mf_filename'"
        )
        types = dict.fromkeys(columns, "VARCHAR")
        parts.append(
            Part(
                sql=f"read_csv({_names(group)}, {options})",
                types=types,
                expressions={name: f"c{columns.index(name)}" for name in types},
                files=group,
                file="_mf_filename",
                number=None,
                order=(str(number),),
                first_line=2 if has_header else 1,
                quote=reading.quote if encoding != "utf-16" else None,
                hint=_delimiter_hint(columns, delimiter),
            )
        )
    if not parts:
        msg = f"{files[0]!r} is empty: it has no line of column names"
        raise GraphError(msg)
    return parts


def _delimiter(file: str, reading: Reading) -> str:
    return reading.delimiter or ("\t" if _suffix(file) == ".tsv" else ",")


def _delimiter_hint(columns: Sequence[str], delimiter: str) -> str:
    if len(columns) > 1:
        return ""
    other = next((mark for mark in _DELIMITERS if mark != delimiter and mark in columns[0]), None)
    return "" if other is None else f"; its columns may be cut by {other!r}: give delimiter={other!r}"


def _encoding(reading: Reading) -> str:
    import codecs  # noqa: PLC0415 - only text files need it

    with contextlib.suppress(LookupError):
        name = codecs.lookup(reading.encoding).name
        if name in _ENCODINGS:
            return _ENCODINGS[name]
    msg = (
        f"encoding {reading.encoding!r} is not one of {', '.join(_ENCODINGS.values())}: convert the files first, "
        f"by iconv for example"
    )
    raise GraphError(msg)


def _read_header(file: str, delimiter: str, reading: Reading) -> tuple[str, ...]:
    """The names in a CSV file's first line; none where the file is empty."""
    try:
        with pa.input_stream(file, compression=COMPRESSIONS.get(Path(file).suffix.lower())) as stream:
            text = io.TextIOWrapper(stream, encoding=_python_encoding(reading.encoding), errors="surrogateescape", newline="")
            line = text.readline(_MAX_HEADER)
            while line and not line.strip():
                line = text.readline(_MAX_HEADER)
            if reading.quote:
                while line.count(reading.quote) % 2 and (more := text.readline(_MAX_HEADER)) and len(line) < _MAX_HEADER:
                    line += more
    except OSError as error:
        msg = f"cannot read {file}: {error}"
        raise GraphError(msg) from error
    if not line:
        return ()
    if any("\udc80" <= character <= "\udcff" for character in line):
        msg = f"{file}: its first line is not {reading.encoding}; say encoding='latin-1' or 'utf-16', if it is that"
        raise GraphError(msg)
    line = line.removeprefix("\ufeff").rstrip("\r\n")
    if len(delimiter) > 1:
        return tuple(name.strip(reading.quote or None) for name in line.split(delimiter))
    if not reading.quote:
        return tuple(line.split(delimiter))
    return tuple(next(csv.reader([line], delimiter=delimiter, quotechar=reading.quote), ()))


def _python_encoding(encoding: str) -> str:
    return "utf-8-sig" if encoding.lower().replace("_", "-") in {"utf-8", "utf8"} else encoding


def _open_json(connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> list[Part]:
    layout = "newline_delimited" if all(_suffix(file) != ".json" for file in files) else "auto"
    keys = f"read_json({_names(files)}, format = '{layout}', sample_size = -1, maximum_depth = 1)"
    types = dict.fromkeys(_describe(connection, keys, files[0]), "JSON")
    lines = "" if layout == "newline_delimited" else None
    # Values as they stand in the document: by DuckDB's type for all of them, a number could not be told from what it is
    # rounded to.
    shape = ", ".join(f"{quote_text(name)}: 'JSON'" for name in types)
    rows = f"read_json({_names(files)}, format = '{layout}', columns = {{{shape}}}, filename = '_mf_filename')"
    return [Part(sql=rows, types=types, files=files, file="_mf_filename", number=None, order=("0",), first_line=1, quote=lines)]


@contextlib.contextmanager
def _told(file: str) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        msg = f"cannot read {file}: {first_line(error)}"
        raise GraphError(msg) from error
