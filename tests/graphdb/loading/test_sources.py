"""Rows from whatever holds them, and reports that add up whatever the rows are."""

from __future__ import annotations

import collections
import datetime as dt
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Query, Relation
from multifacet.graphdb.loading.edge_load import MissingNodes
from multifacet.graphdb.loading.source import Source
from multifacet.graphdb.storage.edge_storage import EdgeStorage

At = Callable[[float], dt.datetime]
TABLE = pa.table(
    {
        "src": pa.array([1, 2, None, 2], pa.int64()),
        "dst": pa.array([10, 20, 30, 20], pa.int64()),
        "time": pa.array([dt.datetime(2026, 1, day) for day in (1, 2, 3, 2)], pa.timestamp("us")),
        "weight": pa.array([1.5, 2.5, 3.5, 4.5], pa.float32()),
    }
)


def _attached(folder: Path) -> Source:
    with duckdb.connect(str(folder / "warehouse.duckdb")) as warehouse:
        warehouse.register("log", TABLE)
        warehouse.execute("CREATE TABLE edges AS FROM log")
    connection = duckdb.connect()
    connection.execute(f"ATTACH '{folder / 'warehouse.duckdb'}' AS warehouse (READ_ONLY)")
    return connection.sql("FROM warehouse.edges")


def _written(folder: Path) -> Source:
    duckdb.from_arrow(TABLE).write_parquet(str(folder / "log.parquet"))
    return Query(f"SELECT * FROM '{folder / 'log.parquet'}'")


SOURCES: dict[str, Callable[[Path], Source]] = {
    "arrow table": lambda _: TABLE,
    "record batch": lambda _: TABLE.to_batches()[0],
    "record batch reader": lambda _: pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches(max_chunksize=2)),
    "pandas": lambda _: TABLE.to_pandas(types_mapper=pd.ArrowDtype),
    "pandas with nullable integers": lambda _: TABLE.to_pandas().astype({"src": "Int64"}),
    "polars": lambda _: pl.from_arrow(TABLE),
    "polars lazy": lambda _: pl.from_arrow(TABLE).lazy(),  # type: ignore[union-attr]
    "duckdb relation": lambda _: duckdb.connect().from_arrow(TABLE),
    "attached database": _attached,
    "query": _written,
}


@pytest.mark.parametrize("source", SOURCES)
def test_rows_are_the_same_wherever_they_come_from(store: GraphStore, tmp_path: Path, source: str) -> None:
    report = store.load_edges("buys", SOURCES[source](tmp_path))
    assert (report.read, report.loaded, report.already_there, dict(report.rejected)) == (4, 2, 1, {"src is null": 1})
    rows = store.sql("SELECT src_id, dst_id, time, weight FROM edges_buys ORDER BY ALL").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (1, 10, dt.datetime(2026, 1, 1), 1.5),
        (2, 20, dt.datetime(2026, 1, 2), 2.5),
    ]


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_nodes_come_from_frames(store: GraphStore, frame: Any) -> None:
    report = store.load_nodes("user", frame({"id": [4, 5], "age": [30, 40], "country": ["fi", None]}))
    assert report.loaded == 2
    assert store.sql("SELECT age, country FROM nodes_user ORDER BY id").to_pydict() == {
        "age": [30, 40],
        "country": ["fi", None],
    }


ids = st.sampled_from(["1", "2", "3", "-9223372036854775808", None, "1.5", "9223372036854775808", "", "x"])
times = st.sampled_from(["2026-01-01", "2026-01-02 10:00:00", None, "infinity", "yesterday", "999999-01-01", "2026-02-30"])
weights = st.sampled_from(["1", "2.5", "nan", "inf", "1e300", None, "heavy"])
rows = st.lists(st.tuples(ids, ids, times, weights), max_size=25)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(rows, min_size=1, max_size=2),
    known=st.lists(st.integers(1, 3), unique=True),
    missing=st.sampled_from(["create", "reject", "hold"]),
    duplicates=st.sampled_from(["first", "last", "sum", "all"]),
    edge_log=st.sampled_from(["embedded", "parquet"]),
)
def test_reports_add_up(
    batches: list[list[tuple[Any, ...]]],
    known: list[int],
    missing: MissingNodes,
    duplicates: str,
    edge_log: EdgeStorage,
) -> None:
    relation = Relation.model_validate({"src": "n", "name": "r", "dst": "n", "weighted": True, "duplicates": duplicates})
    schema = GraphSchema(nodes=(NodeType(name="n"),), relations=(relation,))
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder) / "g", schema, edge_log=edge_log) as store:
        store.load_nodes("n", pa.table({"id": pa.array(known, pa.int64())}))
        loaded = held = 0
        for number, batch in enumerate(batches):
            columns = list(zip(*batch, strict=True)) or [(), (), (), ()]
            names = ["src", "dst", "time", "weight"]
            table = pa.table({name: pa.array(list(column), pa.string()) for name, column in zip(names, columns, strict=True)})
            report = store.load_edges("r", table, missing_nodes=missing)
            assert report.read == len(batch)
            assert report.read == report.loaded + report.already_there + report.held + report.num_rejected
            assert min(report.loaded, report.already_there, report.held) >= 0
            kept = store.sql("SELECT row, reason FROM rejected_rows WHERE load_id = ?", [number + 1]).to_pydict()
            assert collections.Counter(kept["reason"]) == dict(report.rejected)
            assert len(set(kept["row"])) == report.num_rejected
            for row, values in enumerate(batch):
                is_right = (
                    all(end in {"1", "2", "3", "-9223372036854775808"} for end in values[:2])
                    and values[2] in {"2026-01-01", "2026-01-02 10:00:00"}
                    and values[3] in {"1", "2.5"}
                )
                if missing == "reject":
                    is_right = is_right and all(int(end) in known for end in values[:2])
                # A batch that is known as a whole is not looked at row by row.
                assert (row in kept["row"]) is not is_right or report.already_there == report.read
            loaded += report.loaded
            held += report.held
        relations = store.stats()["relations"]["r"]
        assert (relations["edges"], relations["held"]) == (loaded, held)
