"""Loading: every row is loaded, already there, or rejected with a reason; nothing is half done."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, LoadReport, NodeType, Query, Relation

At = Callable[[float], dt.datetime]


def _check_sum(report: LoadReport) -> None:
    assert report.read == report.loaded + report.already_there + report.num_rejected


def _edges(store: GraphStore, relation: str) -> list[dict[str, Any]]:
    return store.sql(f'SELECT * EXCLUDE (src_idx, dst_idx) FROM "edges_{relation}" ORDER BY ALL').to_pylist()


def test_creates_missing_nodes_and_tells(store: GraphStore, at: At) -> None:
    report = store.load_edges("clicks", pa.table({"src": [5, 5, 9], "dst": [1, 2, 1], "time": [at(0), at(1), at(0)]}))
    _check_sum(report)
    assert (report.read, report.loaded, dict(report.created_nodes)) == (3, 3, {"user": 2, "pin": 2})
    assert _edges(store, "clicks")[0] == {"src_id": 5, "dst_id": 1, "time": at(0)}


def test_the_same_batch_twice_adds_nothing(store: GraphStore, at: At) -> None:
    batch = pa.table({"src": [5, 5, 9], "dst": [1, 2, 1], "time": [at(0)] * 3, "weight": [1.0, 2.0, 3.0]})
    first = store.load_edges("buys", batch)
    before = store.view().fingerprint
    second = store.load_edges("buys", batch)
    assert (first.loaded, first.already_there) == (3, 0)
    assert (second.loaded, second.already_there, dict(second.created_nodes)) == (0, 3, {})
    assert store.view().fingerprint == before


def test_an_edge_given_twice_keeps_its_first_weight(store: GraphStore, at: At) -> None:
    batch = pa.table({"src": [5, 5], "dst": [1, 1], "time": [at(0)] * 2, "weight": [2.0, 9.0]})
    assert store.load_edges("buys", batch).already_there == 1
    store.load_edges("buys", pa.table({"src": [5], "dst": [1], "time": [at(0)], "weight": [7.0]}))
    assert [edge["weight"] for edge in _edges(store, "buys")] == [2.0]


def test_rejects_rows_with_their_reason(store: GraphStore) -> None:
    rows = pa.table(
        {
            "src": ["1", None, "1.5", "99999999999999999999", "x", "2", "3", "4", "5", "6"],
            "dst": ["1"] * 10,
            "time": ["2026-01-01"] * 5 + [None, "yesterday", "infinity", "2026-01-01", "2026-01-01"],
            "weight": ["1"] * 8 + ["nan", None],
        }
    )
    report = store.load_edges("buys", rows)
    _check_sum(report)
    assert report.loaded == 1
    assert dict(report.rejected) == {
        "src is null": 1,
        "src is not an int64": 3,
        "time is null": 1,
        "time is not a timestamp": 2,
        "weight is not a finite number": 2,
    }
    kept = store.sql("SELECT row, reason, src_or_id, time FROM rejected_rows WHERE target = 'buys' ORDER BY row").to_pylist()
    assert [row["row"] for row in kept] == list(range(1, 10))
    assert kept[1] == {"row": 2, "reason": "src is not an int64", "src_or_id": "1.5", "time": "2026-01-01"}
    assert store.counts()["nodes"]["user"] == 1  # a rejected edge creates no node


def test_rejects_floating_point_weights_that_are_not_finite(store: GraphStore, at: At) -> None:
    weights = [1.0, float("nan"), float("inf"), 1e300, None]
    rows = pa.table({"src": range(5), "dst": range(5), "time": [at(0)] * 5, "weight": weights})
    report = store.load_edges("buys", rows)
    assert (report.loaded, dict(report.rejected)) == (1, {"weight is not a finite number": 4})


def test_unsigned_ids_that_int64_cannot_hold_are_rejected(store: GraphStore) -> None:
    rows = pa.table({"id": pa.array([7, 2**64 - 1, None], pa.uint64()), "age": [1, 2, 3], "country": ["a"] * 3})
    report = store.load_nodes("user", rows)
    _check_sum(report)
    assert (report.loaded, dict(report.rejected)) == (1, {"id is not an int64": 1, "id is null": 1})


def test_floating_point_ids_are_those_that_they_stand_for_alone(store: GraphStore, at: At) -> None:
    ids = [7.0, 1.5, None, 2.0**53, float("nan"), float("inf"), -3.0]
    report = store.load_edges("clicks", pa.table({"src": ids, "dst": [1] * 7, "time": [at(0)] * 7}))
    assert dict(report.rejected) == {"src is not an int64": 4, "src is null": 1}
    assert store.sql("SELECT id FROM nodes_user ORDER BY id")["id"].to_pylist() == [-3, 7]


def test_columns_of_which_no_value_can_be_an_id_are_refused_whole(store: GraphStore, at: At) -> None:
    with pytest.raises(GraphError, match="'src' is BOOLEAN, but ids of 'user' are int64: cast it to BIGINT"):
        store.load_edges("clicks", pa.table({"src": [True], "dst": [1], "time": [at(0)]}))
    assert store.counts()["nodes"] == {"user": 0, "pin": 0, "category": 0}


def test_number_columns_are_not_taken_for_times(store: GraphStore) -> None:
    with pytest.raises(GraphError, match="column 'time' is BIGINT, but times are a TIMESTAMP, a DATE, or text: say what"):
        store.load_edges("clicks", pa.table({"src": [1], "dst": [1], "time": [1767225600]}))


def test_times_with_a_zone_become_utc(store: GraphStore) -> None:
    zone = dt.timezone(dt.timedelta(hours=2))
    times = pa.array([dt.datetime(2026, 1, 1, 2, tzinfo=zone)], pa.timestamp("us", "UTC"))
    store.load_edges("clicks", pa.table({"src": [1], "dst": [1], "time": times}))
    assert _edges(store, "clicks")[0]["time"] == dt.datetime(2026, 1, 1)


def test_missing_columns_are_named(store: GraphStore) -> None:
    with pytest.raises(GraphError, match=r"edges of \(user, clicks, pin\): column 'dst' is missing, the source has"):
        store.load_edges("clicks", pa.table({"src": [1], "to": [1]}))
    with pytest.raises(GraphError, match="nodes of 'user': column 'id' is missing"):
        store.load_nodes("user", pa.table({"user": [1]}))


def test_a_partial_feed_changes_what_it_brings(store: GraphStore) -> None:
    store.load_nodes("user", pa.table({"id": [1], "age": [30], "country": ["fi"]}))
    report = store.load_nodes("user", pa.table({"id": [1, 2], "age": [31, 40]}))
    assert report.absent == ("country",)
    assert store.sql("SELECT age, country FROM nodes_user ORDER BY id").to_pylist() == [
        {"age": 31, "country": "fi"},
        {"age": 40, "country": None},
    ]


def test_columns_can_have_other_names(store: GraphStore, at: At) -> None:
    store.load_edges("clicks", pa.table({"who": [1], "what": [2], "ts": [at(0)]}), src="who", dst="what", time="ts")
    assert _edges(store, "clicks") == [{"src_id": 1, "dst_id": 2, "time": at(0)}]


def test_unknown_nodes_can_reject_the_edge(store: GraphStore, at: At) -> None:
    store.load_nodes("user", pa.table({"id": [1], "age": [30], "country": ["fi"]}))
    store.load_nodes("pin", pa.table({"id": [1]}))
    rows = pa.table({"src": [1, 2, 1], "dst": [1, 1, 2], "time": [at(0)] * 3})
    report = store.load_edges("clicks", rows, missing_nodes="reject")
    _check_sum(report)
    assert (report.loaded, dict(report.rejected)) == (1, {"src is not a known user": 1, "dst is not a known pin": 1})


def test_idx_are_dense_and_never_change(store: GraphStore) -> None:
    store.load_nodes("category", pa.table({"id": ["b", "d"]}))
    before = store.view().node_ids("category").to_pylist()
    store.load_edges("in", pa.table({"src": [1, 2], "dst": ["a", "c"]}))
    after = store.view().node_ids("category").to_pylist()
    assert after[: len(before)] == before
    assert sorted(after) == ["a", "b", "c", "d"]


def test_node_properties_are_updated_and_the_last_row_wins(store: GraphStore) -> None:
    store.load_nodes("user", pa.table({"id": [1, 2], "age": [30, 40], "country": ["fi", "se"]}))
    report = store.load_nodes("user", pa.table({"id": [2, 2, 3], "age": [41, 42, 50], "country": ["se", None, "no"]}))
    _check_sum(report)
    assert (report.loaded, report.already_there) == (1, 2)
    rows = store.sql("SELECT id, age, country FROM nodes_user ORDER BY id").to_pylist()
    # A null says nothing, unless it is meant to.
    assert rows[1:] == [{"id": 2, "age": 42, "country": "se"}, {"id": 3, "age": 50, "country": "no"}]
    store.load_nodes("user", pa.table({"id": [2], "age": [None], "country": pa.array([None], pa.string())}), nulls="write")
    assert store.sql("SELECT age, country FROM nodes_user WHERE id = 2").to_pylist() == [{"age": None, "country": None}]


def test_node_properties_of_the_wrong_type_are_rejected(store: GraphStore) -> None:
    report = store.load_nodes("user", pa.table({"id": [1, 2], "age": ["30", "old"], "country": ["fi", "se"]}))
    assert dict(report.rejected) == {"age is not a INTEGER": 1}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_files_globs_and_lists_are_read(store: GraphStore, tmp_path: Path, at: At, suffix: str) -> None:
    for part in range(3):
        table = pa.table({"src": [part, part + 1], "dst": [part] * 2, "time": [at(part)] * 2})
        path = tmp_path / f"log-{part}{suffix}"
        if suffix == ".parquet":
            pq.write_table(table, path)
        else:
            compression = "gzip" if suffix.endswith(".gz") else None
            with pa.output_stream(path, compression=compression) as stream:
                pyarrow.csv.write_csv(table, stream)
    assert store.load_edges("clicks", tmp_path / f"log-0{suffix}").loaded == 2
    assert store.load_edges("clicks", [tmp_path / f"log-1{suffix}"]).loaded == 2
    assert store.load_edges("clicks", str(tmp_path / f"log-*{suffix}")).already_there == 4


def test_names_of_files_are_taken_literally(store: GraphStore, tmp_path: Path, at: At) -> None:
    folder = tmp_path / "it's a [log]; DROP TABLE _meta; --"
    folder.mkdir()
    path = folder / 'e"d*g?es.parquet'
    pq.write_table(pa.table({"src": [1], "dst": [2], "time": [at(0)]}), path)
    pq.write_table(pa.table({"src": [8], "dst": [9], "time": [at(0)]}), folder / 'e"dXgYes.parquet')
    assert store.load_edges("clicks", path).loaded == 1
    with pytest.raises(GraphError, match="no file matches"):
        store.load_edges("clicks", tmp_path / "nothing.parquet")
    with pytest.raises(GraphError, match="cannot tell what"):
        store.load_edges("clicks", Path(__file__))


def test_queries_join_and_rename(store: GraphStore, tmp_path: Path, at: At) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"who": [1, 2], "what": [7, 8], "unix": [1767225600, 1767225601]}), path)
    query = Query(f"SELECT who AS src, what AS dst, to_timestamp(unix)::TIMESTAMP AS time FROM '{path}';")
    assert store.load_edges("clicks", query).loaded == 2
    assert _edges(store, "clicks")[0]["time"] == at(0)


def test_a_stream_can_be_read_once_only_and_that_is_enough(store: GraphStore, at: At) -> None:
    table = pa.table({"src": [1, 2, None], "dst": [7, 8, 9], "time": [at(0)] * 3})
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=1))
    report = store.load_edges("clicks", reader)
    assert (report.read, report.loaded, report.num_rejected) == (3, 2, 1)


def test_what_cannot_be_read_is_said(store: GraphStore) -> None:
    with pytest.raises(GraphError, match="cannot read rows from a object"):
        store.load_edges("clicks", object())


def test_a_failed_load_leaves_nothing(store: GraphStore, at: At) -> None:
    store.load_edges("clicks", pa.table({"src": [1], "dst": [1], "time": [at(0)]}))
    before = store.counts(), store.sql("SELECT count(*) FROM loads").to_pylist()
    with pytest.raises(Exception, match=r"(?s)cannot read the rows: .*timestamp"):
        store.load_edges("clicks", Query("SELECT i AS src, i AS dst, ('x' || i)::TIMESTAMP AS time FROM range(10) AS t(i)"))
    assert (store.counts(), store.sql("SELECT count(*) FROM loads").to_pylist()) == before


def test_every_load_is_recorded(store: GraphStore, at: At) -> None:
    store.load_edges("clicks", pa.table({"src": [1, None], "dst": [1, 1], "time": [at(0)] * 2}))
    store.load_nodes("pin", pa.table({"id": [1]}))
    rows = store.sql("SELECT target, read, loaded, already_there, rejected FROM loads ORDER BY load_id").to_pylist()
    assert rows == [
        {"target": "clicks", "read": 2, "loaded": 1, "already_there": 0, "rejected": 1},
        {"target": "pin", "read": 1, "loaded": 0, "already_there": 1, "rejected": 0},
    ]


@pytest.mark.slow
def test_hostile_names_are_only_names(create: Callable[[GraphSchema], GraphStore], at: At) -> None:
    hostile = "a\"b'; DROP TABLE _meta; -- \\ ü\n%s {x} $1 ?"
    schema = GraphSchema(
        nodes=(NodeType(name=hostile, id_type="string", properties={hostile: "VARCHAR"}), NodeType(name="select")),
        relations=(
            Relation(src=hostile, name=hostile, dst="select", weighted=True),
            Relation(src="select", name="in", dst="select"),
        ),
    )
    store = create(schema)
    store.load_nodes(hostile, pa.table({"id": [hostile], hostile: [hostile]}))
    columns = {hostile: [hostile, "x"], "order": [1, 2], "table": [at(0)] * 2, "group": [1.0, 2.0]}
    report = store.load_edges(hostile, pa.table(columns), src=hostile, dst="order", time="table", weight="group")
    assert (report.loaded, dict(report.created_nodes)) == (2, {hostile: 1, "select": 2})
    rejected = store.load_edges(
        hostile, pa.table({**columns, "order": [None, 3]}), src=hostile, dst="order", time="table", weight="group"
    )
    assert rejected.num_rejected == 1
    view = store.view(min_degree=1)
    assert view.num_edges[hostile] == 3
    assert view.node_ids(hostile).to_pylist() == [hostile, "x"]
    assert len(view.edges(hostile)) == 3
    quoted = hostile.replace('"', '""')
    assert view.sql(f'SELECT count(*) AS n FROM "edges_{quoted}"').to_pylist() == [{"n": 3}]
    assert store.neighbors(hostile, hostile).num_rows == 1
    store.compact()
    assert store.stats()["relations"][hostile]["edges"] == 3


def test_names_and_times_are_not_read_as_sql(store: GraphStore) -> None:
    with pytest.raises(GraphError, match="NUL"):
        store.load_table("a\x00b", pa.table({"x": [1]}))
    for name in ("_meta", "nodes_x", "edges_clicks", "loads"):
        with pytest.raises(GraphError, match="belong to the store"):
            store.load_table(name, pa.table({"x": [1]}))
    assert store.load_table("my \"table'", pa.table({"x": [1, 2]})) == 2
    assert store.load_table("my \"table'", pa.table({"y": [3]})) == 1
    assert store.sql('SELECT * FROM "my ""table\'"').to_pylist() == [{"y": 3}]


@pytest.mark.slow
def test_a_larger_batch_is_loaded_right(store: GraphStore) -> None:
    generator = np.random.default_rng(0)
    src, dst = generator.integers(0, 1000, 200_000), generator.integers(0, 300, 200_000)
    time = generator.integers(0, 50, 200_000).astype("datetime64[D]").astype("datetime64[us]")
    wanted = set(zip(src.tolist(), dst.tolist(), time.tolist(), strict=True))
    report = store.load_edges("clicks", pa.table({"src": src, "dst": dst, "time": time}))
    assert (report.read, report.loaded) == (200_000, len(wanted))
    got = store.sql("SELECT src_id, dst_id, time FROM edges_clicks").to_pydict()
    assert set(zip(got["src_id"], got["dst_id"], got["time"], strict=True)) == wanted


def test_relations_of_other_databases_are_read(store: GraphStore, tmp_path: Path, at: At) -> None:
    with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as other:
        other.execute("CREATE TABLE log AS SELECT 1 AS src, i AS dst, TIMESTAMP '2026-01-01' AS time FROM range(5) AS t(i)")
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{tmp_path / 'warehouse.duckdb'}' AS warehouse (READ_ONLY)")
        report = store.load_edges("clicks", connection.sql("SELECT * FROM warehouse.log WHERE dst > 1"))
    assert (report.read, report.loaded) == (3, 3)
