"""What each type of value means to each declaration, wherever it comes from: the table that docs/graphdb.md shows."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Query, Relation
from multifacet.graphdb.loading.source import Source

Create = Callable[[GraphSchema], GraphStore]
UTC = dt.UTC
BERLIN = dt.timezone(dt.timedelta(hours=2))
LAST = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999)
#: A value that is set aside.
BAD = object()
REFUSED = object()


@pytest.fixture
def edge_log() -> str:
    """Nodes are kept alike whatever storage the edges have."""
    return "embedded"


def _store(create: Create, id_type: str = "int64", **properties: str) -> GraphStore:
    return create(GraphSchema(nodes=(NodeType(name="n", id_type=id_type, properties=properties),)))


def _kept(store: GraphStore, source: Source, column: str, **reading: Any) -> Any:
    """What a load makes of one value: the value stored, or that it was set aside or refused."""
    try:
        report = store.load_nodes("n", source, **reading)
    except GraphError:
        return REFUSED
    if report.num_rejected:
        return BAD
    return store.sql(f'SELECT "{column}" FROM nodes_n')[column].to_pylist()[-1]


DECIMAL = pa.decimal128(38, 0)
IDS: list[tuple[str, pa.Array, Any, Any]] = [
    ("int8", pa.array([7], pa.int8()), 7, "7"),
    ("uint64", pa.array([2**64 - 1], pa.uint64()), BAD, "18446744073709551615"),
    ("least int64", pa.array([-(2**63)], pa.int64()), -(2**63), "-9223372036854775808"),
    ("decimal(38,0)", pa.array([decimal.Decimal(7)], DECIMAL), 7, "7"),
    ("wide decimal", pa.array([decimal.Decimal(10**30)], DECIMAL), BAD, "1" + "0" * 30),
    ("decimal of a whole number", pa.array([decimal.Decimal("7.00")], pa.decimal128(10, 2)), 7, "7"),
    ("decimal of a fraction", pa.array([decimal.Decimal("7.10")], pa.decimal128(10, 2)), BAD, BAD),
    ("whole double", pa.array([7.0]), 7, "7"),
    ("fraction", pa.array([7.5]), BAD, BAD),
    ("double beyond 2^53", pa.array([2.0**53]), BAD, BAD),
    ("float beyond 2^24", pa.array([2.0**24], pa.float32()), BAD, BAD),
    ("nan", pa.array([math.nan]), BAD, BAD),
    ("infinity", pa.array([math.inf]), BAD, BAD),
    ("digits", pa.array(["007"]), 7, "007"),
    ("a space", pa.array([" 7"]), BAD, " 7"),
    ("an underscore", pa.array(["1_000"]), BAD, "1_000"),
    ("hexadecimal", pa.array(["0x1F"]), BAD, "0x1F"),
    ("scientific", pa.array(["1e5"]), BAD, "1e5"),
    ("empty text", pa.array([""]), BAD, ""),
    ("categories", pa.array(["7"]).dictionary_encode(), 7, "7"),
    ("large text", pa.array(["7"], pa.large_string()), 7, "7"),
    ("boolean", pa.array([True]), REFUSED, REFUSED),
    ("date", pa.array([dt.date(2026, 1, 1)]), REFUSED, REFUSED),
    ("timestamp", pa.array([dt.datetime(2026, 1, 1)]), REFUSED, REFUSED),
    ("time of day", pa.array([dt.time(1)]), REFUSED, REFUSED),
    ("bytes", pa.array([b"7"]), REFUSED, REFUSED),
    ("list", pa.array([[7]]), REFUSED, REFUSED),
    ("half float", pa.array(np.array([7], np.float16)), REFUSED, REFUSED),
]


@pytest.mark.parametrize(("array", "number", "text"), [row[1:] for row in IDS], ids=[row[0] for row in IDS])
def test_ids(create: Create, array: pa.Array, number: Any, text: Any) -> None:
    assert _kept(_store(create), pa.table({"id": array}), "id") == number
    assert _kept(_store(create, "string"), pa.table({"id": array}), "id") == text


TIMES: list[tuple[str, pa.Array, Any]] = [
    ("naive", pa.array([dt.datetime(2026, 7, 1, 12)]), dt.datetime(2026, 7, 1, 12)),
    ("seconds", pa.array([1], pa.timestamp("s")), dt.datetime(1970, 1, 1, 0, 0, 1)),
    ("utc", pa.array([0], pa.timestamp("us", "UTC")), dt.datetime(1970, 1, 1)),
    (
        "a zone",
        pa.array([dt.datetime(2026, 7, 1, 12, tzinfo=BERLIN)], pa.timestamp("ms", "Europe/Berlin")),
        dt.datetime(2026, 7, 1, 10),
    ),
    ("nanoseconds", pa.array([1_999], pa.timestamp("ns")), dt.datetime(1970, 1, 1, 0, 0, 0, 1)),
    ("nanoseconds before 1970", pa.array([-1], pa.timestamp("ns")), dt.datetime(1969, 12, 31, 23, 59, 59, 999_999)),
    ("nanoseconds with a zone", pa.array([1_999], pa.timestamp("ns", "UTC")), dt.datetime(1970, 1, 1, 0, 0, 0, 1)),
    ("date", pa.array([dt.date(2026, 7, 1)]), dt.datetime(2026, 7, 1)),
    ("text", pa.array(["2026-07-01 12:00:00"]), dt.datetime(2026, 7, 1, 12)),
    ("text with an offset", pa.array(["2026-07-01T12:00:00+02:00"]), dt.datetime(2026, 7, 1, 10)),
    ("text with a Z", pa.array(["2026-07-01T12:00:00.25Z"]), dt.datetime(2026, 7, 1, 12, 0, 0, 250_000)),
    ("text with a zone", pa.array(["2026-07-01 12:00:00 America/New_York"]), dt.datetime(2026, 7, 1, 16)),
    ("text of a date", pa.array(["2026-07-01"]), dt.datetime(2026, 7, 1)),
    ("no such day", pa.array(["2026-02-30"]), BAD),
    ("words", pa.array(["yesterday"]), BAD),
    ("a name of DuckDB's", pa.array(["epoch"]), BAD),
    ("infinity", pa.array(["infinity"]), BAD),
    ("year 10000", pa.array(["10000-01-01"]), BAD),
    ("beyond year 9999", pa.array([253_402_300_800], pa.timestamp("s")), BAD),
    ("before year 1", pa.array([-62_135_596_801], pa.timestamp("s")), BAD),
    (
        "the last microsecond",
        pa.array([253_402_300_799_999_999], pa.timestamp("us")),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999_999),
    ),
    ("number", pa.array([1_767_225_600]), REFUSED),
    ("boolean", pa.array([True]), REFUSED),
    ("time of day", pa.array([dt.time(1)]), REFUSED),
]


@pytest.mark.parametrize(("array", "time"), [row[1:] for row in TIMES], ids=[row[0] for row in TIMES])
def test_times(create: Create, array: pa.Array, time: Any) -> None:
    assert _kept(_store(create, at="TIMESTAMP"), pa.table({"id": [1], "at": array}), "at") == time


@pytest.mark.parametrize(
    ("values", "reading", "time"),
    [
        ([1_767_225_600], {"time_unit": "s"}, dt.datetime(2026, 1, 1)),
        ([1_767_225_600_000], {"time_unit": "ms"}, dt.datetime(2026, 1, 1)),
        ([1_767_225_600_000_001], {"time_unit": "us"}, dt.datetime(2026, 1, 1, 0, 0, 0, 1)),
        ([1_767_225_600_000_001_999], {"time_unit": "ns"}, dt.datetime(2026, 1, 1, 0, 0, 0, 1)),
        ([1_767_225_600.25], {"time_unit": "s"}, dt.datetime(2026, 1, 1, 0, 0, 0, 250_000)),
        (["1767225600.000001"], {"time_unit": "s"}, dt.datetime(2026, 1, 1, 0, 0, 0, 1)),
        ([-1], {"time_unit": "ms"}, dt.datetime(1969, 12, 31, 23, 59, 59, 999_000)),
        ([1_767_225_600_000], {"time_unit": "s"}, BAD),  # milliseconds taken for seconds
        (["01/02/2026 12:00 +0200"], {"time_format": "%d/%m/%Y %H:%M %z"}, dt.datetime(2026, 2, 1, 10)),
        (["01.02.2026"], {"time_format": "%d.%m.%Y"}, dt.datetime(2026, 2, 1)),
        (["2026-01-01"], {"time_format": "%d.%m.%Y"}, BAD),
    ],
)
def test_times_of_a_unit_or_a_format(create: Create, values: list[Any], reading: dict[str, Any], time: Any) -> None:
    assert _kept(_store(create, at="TIMESTAMP"), pa.table({"id": [1], "at": values}), "at", **reading) == time


@pytest.mark.parametrize(
    ("kind", "value", "kept"),
    [
        ("INTEGER", 1.0, 1), ("INTEGER", 1.5, BAD), ("INTEGER", "1.5", BAD), ("INTEGER", "12", 12), ("INTEGER", 2**31, BAD),
        ("INTEGER", True, REFUSED), ("BIGINT", 2.0**60, BAD), ("BIGINT", decimal.Decimal("2.50"), BAD),
        ("BOOLEAN", 1, True), ("BOOLEAN", 2, BAD), ("BOOLEAN", "false", False), ("BOOLEAN", "maybe", BAD),
        ("DOUBLE", "2.5", 2.5), ("DOUBLE", " 2.5 ", 2.5), ("DOUBLE", "1_0", BAD), ("DOUBLE", "", BAD), ("DOUBLE", 7, 7.0),
        ("FLOAT", 2.5, 2.5), ("DOUBLE", dt.date(2026, 1, 1), REFUSED),
        ("VARCHAR", 94107.0, "94107"), ("VARCHAR", 1.5, "1.5"), ("VARCHAR", 7, "7"), ("VARCHAR", True, "true"),
        ("VARCHAR", dt.date(2026, 1, 1), "2026-01-01"), ("VARCHAR", b"x", REFUSED),
        ("DATE", dt.date(2026, 1, 1), dt.date(2026, 1, 1)), ("DATE", "2026-01-01", dt.date(2026, 1, 1)),
        ("DATE", dt.datetime(2026, 1, 1), dt.date(2026, 1, 1)), ("DATE", dt.datetime(2026, 1, 1, 12), BAD),
        ("DATE", "2026-01-01T00:00:00+02:00", BAD), ("DATE", 20260101, REFUSED),
    ],
)  # fmt: skip
def test_properties(create: Create, kind: str, value: Any, kept: Any) -> None:
    assert _kept(_store(create, x=kind), pa.table({"id": [1], "x": [value]}), "x") == kept


def test_types_may_be_written_small() -> None:
    assert NodeType(name="n", properties={"x": "double"}).properties == {"x": "DOUBLE"}


@pytest.mark.parametrize(
    ("weight", "kept"),
    [
        (2.5, 2.5),
        (3, 3.0),
        ("2.75", 2.75),
        ("1e3", 1000.0),
        ("1_0", BAD),
        (math.nan, BAD),
        (math.inf, BAD),
        (1e39, BAD),
        (True, REFUSED),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_weights(create: Create, tmp_path: Path, weight: Any, kept: Any, suffix: str) -> None:
    relation = Relation(src="n", name="r", dst="n", timed=False, weighted=True)
    store = create(GraphSchema(nodes=(NodeType(name="n"),), relations=(relation,)))
    # Parquet's statistics leave out NaN: other values must be there for them to be wrong.
    table = pa.table({"src": [1, 2], "dst": [1, 2], "weight": pa.array([weight, type(weight)(1)])})
    if suffix:
        pq.write_table(table, tmp_path / "a.parquet")
    try:
        report = store.load_edges("r", tmp_path / "a.parquet" if suffix else table)
    except GraphError:
        assert kept is REFUSED
        return
    weights = store.sql("SELECT weight FROM edges_r WHERE src_id = 1")["weight"].to_pylist()
    assert (weights, report.num_rejected) == (([], 1) if kept is BAD else ([kept], 0))


TABLE = pa.table(
    {
        "id": pa.array(["007", "1e5", "1.10", "true", "2026-01-01", "12:30", 'é, "quoted"\nline', "NULL", "x" * 5000]),
        "at": pa.array([dt.datetime(2026, 1, 1, 12, 30, 15, 250_000)] * 8 + [None], pa.timestamp("us")),
        "price": pa.array([0.1, 2.75, 1e300, -0.0, None, 5.0, 1 / 3, 7.0, 1e-7]),
        "count": pa.array([2**50, 0, -1, None, 5, 6, 7, 8, 9]),
    }
)


def _json(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in TABLE.to_pylist()))
    return path


def _csv(folder: Path) -> Path:
    pyarrow.csv.write_csv(TABLE, folder / "rows.csv")
    return folder / "rows.csv"


def _parquet(folder: Path) -> Path:
    pq.write_table(TABLE, folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


WAYS: dict[str, Callable[[Path], Source]] = {
    "arrow": lambda _: TABLE,
    "record batches": lambda _: pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches(max_chunksize=2)),
    "pandas": lambda _: TABLE.to_pandas(),
    "pandas of objects": lambda _: TABLE.to_pandas().astype({"id": object}),
    "pandas of arrow": lambda _: TABLE.to_pandas(types_mapper=pd.ArrowDtype),
    "pandas with a zone": lambda _: TABLE.to_pandas().assign(
        at=lambda frame: frame["at"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
    ),
    "polars": lambda _: pl.from_arrow(TABLE),
    "polars lazy": lambda _: pl.from_arrow(TABLE).lazy(),  # type: ignore[union-attr]
    "duckdb": lambda _: duckdb.connect().from_arrow(TABLE),
    "query": lambda folder: Query(f"SELECT * FROM '{_parquet(folder)}' -- all of them;"),
    "parquet": _parquet,
    "csv": _csv,
    "json lines": _json,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_value_is_the_same_whichever_way_it_comes(create: Create, tmp_path: Path, way: str) -> None:
    store = _store(create, "string", at="TIMESTAMP", price="DOUBLE", count="BIGINT")
    report = store.load_nodes("n", WAYS[way](tmp_path))
    assert (report.loaded, dict(report.rejected)) == (TABLE.num_rows, {})
    stored = {row["id"]: row for row in store.sql("SELECT * EXCLUDE (idx) FROM nodes_n").to_pylist()}
    assert stored == {row["id"]: row for row in TABLE.to_pylist()}


texts = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=8),
    st.sampled_from(["1e5", "1.10", "007", "NULL", "nan", "", " ", "true", "2026-01-01", '"', ",", "a\nb", "\t", "0x1", "+1"]),
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(texts, min_size=1, max_size=12, unique=True),
    way=st.sampled_from(["arrow", "pandas", "csv", "parquet", "jsonl"]),
)
def test_text_ids_come_back_as_they_were_given(tmp_path_factory: pytest.TempPathFactory, ids: list[str], way: str) -> None:
    folder = tmp_path_factory.mktemp("ids")
    table = pa.table({"id": pa.array(ids, pa.string())})
    source: Source = table
    if way == "pandas":
        source = table.to_pandas()
    elif way == "csv":
        source = folder / "ids.csv"
        # A second column, as a lone empty value is an empty line, which is none.
        pyarrow.csv.write_csv(table.append_column("other", pa.array(["x"] * len(ids))), source)
    elif way == "parquet":
        source = folder / "ids.parquet"
        pq.write_table(table, source)
    elif way == "jsonl":
        source = folder / "ids.jsonl"
        source.write_text("".join(json.dumps({"id": text}) + "\n" for text in ids))
    with GraphStore.create(folder / "g.duckdb", GraphSchema(nodes=(NodeType(name="n", id_type="string"),))) as store:
        assert store.load_nodes("n", source).loaded == len(ids)
        assert set(store.view().node_ids("n").to_pylist()) == set(ids)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    times=st.lists(st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30)), min_size=1, max_size=5, unique=True),
    offset=st.integers(-14 * 60, 14 * 60),
    way=st.sampled_from(["text", "arrow", "csv", "polars"]),
)
def test_times_are_the_instants_that_python_says(
    tmp_path_factory: pytest.TempPathFactory, times: list[dt.datetime], offset: int, way: str
) -> None:
    folder = tmp_path_factory.mktemp("times")
    zone = dt.timezone(dt.timedelta(minutes=offset))
    aware = [
        time.replace(tzinfo=UTC).astimezone(zone)
        if dt.datetime(2, 1, 1) < time < dt.datetime(9998, 1, 1)
        else time.replace(tzinfo=UTC)
        for time in times
    ]
    text = [time.isoformat() for time in aware]
    source: Source = pa.table({"id": range(len(times)), "at": text})
    if way == "arrow":
        source = pa.table(
            {"id": range(len(times)), "at": pa.array([time.astimezone(UTC) for time in aware], pa.timestamp("us", "UTC"))}
        )
    elif way == "polars":
        source = pl.DataFrame(
            {"id": range(len(times)), "at": pl.Series([time.astimezone(UTC).replace(tzinfo=None) for time in aware])}
        )
    elif way == "csv":
        source = folder / "times.csv"
        source.write_text("id,at\n" + "".join(f"{number},{time}\n" for number, time in enumerate(text)))
    schema = GraphSchema(nodes=(NodeType(name="n", properties={"at": "TIMESTAMP"}),))
    with GraphStore.create(folder / "g.duckdb", schema) as store:
        assert store.load_nodes("n", source).loaded == len(times)
        assert store.sql('SELECT "at" FROM nodes_n ORDER BY id')["at"].to_pylist() == [
            time.astimezone(UTC).replace(tzinfo=None) for time in aware
        ]


def test_columns_of_objects_must_be_of_one_type(create: Create) -> None:
    with pytest.raises(GraphError, match="column 'id' of the DataFrame mixes int, str"):
        _store(create, "string").load_nodes("n", pd.DataFrame({"id": pd.Series([1, "a"], dtype=object)}))
    store = _store(create, "string")
    store.load_nodes("n", pd.DataFrame({"id": [uuid.UUID(int=7).hex], "unused": pd.Series([object()])}))
    assert store.view().num_nodes == {"n": 1}


@pytest.mark.slow
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_nothing_hangs_on_the_zone_of_the_machine(zone: str) -> None:
    """What has to do with times, run where local time is not UTC."""
    here = Path(__file__).parent
    files = [str(here / name) for name in ("test_values.py", "../windows/test_asof.py", "test_loading.py")]
    chosen = "(time or whichever or belongs or refused) and not zone_of and not embedded"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", chosen, *files]
    environment = {**os.environ, "TZ": zone, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=here.parents[2])
    assert done.returncode == 0, done.stdout[-3000:]
