"""Opening, asking, and the store's own accounts."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from multifacet.graphdb import GraphError, GraphSchema, GraphStore

At = Callable[[float], dt.datetime]


@pytest.fixture
def clicked(store: GraphStore, at: At) -> GraphStore:
    store.load_edges("clicks", pa.table({"src": [1, 1, 2], "dst": [10, 20, 10], "time": [at(0), at(2), at(1)]}))
    store.load_edges("buys", pa.table({"src": [1], "dst": [10], "time": [at(3)], "weight": [2.5]}))
    store.load_edges("in", pa.table({"src": [10], "dst": ["shoes"]}))
    return store


def test_opens_what_it_created(tmp_path: Path, schema: GraphSchema) -> None:
    path = tmp_path / "deep" / "g.duckdb"
    with GraphStore.create(path, schema) as store:
        store.load_nodes("pin", pa.table({"id": [3, 1]}))
        fingerprint = store.view().fingerprint
    with pytest.raises(GraphError, match="exists; open it with"):
        GraphStore.create(path, schema)
    with GraphStore.open(path, read_only=True) as store:
        assert store.schema == schema
        assert store.view().fingerprint == fingerprint
        with pytest.raises(GraphError, match="is open read-only; open it with"):
            store.load_nodes("pin", pa.table({"id": [4]}))
    with GraphStore.open(path) as store:
        assert store.load_nodes("pin", pa.table({"id": [4]})).loaded == 1


def test_says_what_it_cannot_open(tmp_path: Path, schema: GraphSchema) -> None:
    with pytest.raises(GraphError, match="there is no store at"):
        GraphStore.open(tmp_path / "none.duckdb")
    text = tmp_path / "text.duckdb"
    text.write_text("not a database, but longer than nothing at all")
    with pytest.raises(GraphError, match="cannot open"):
        GraphStore.open(text)
    other = tmp_path / "other.duckdb"
    duckdb.connect(str(other)).close()
    with pytest.raises(GraphError, match="not a graph store"):
        GraphStore.open(other)
    newer = tmp_path / "newer.duckdb"
    GraphStore.create(newer, schema).close()
    with duckdb.connect(str(newer)) as connection:
        connection.execute("UPDATE _meta SET value = '999' WHERE key = 'format_version'")
    with pytest.raises(GraphError, match="store format 999, this version reads"):
        GraphStore.open(newer)


def test_a_second_writing_process_is_told(tmp_path: Path, schema: GraphSchema) -> None:
    path = tmp_path / "g.duckdb"
    GraphStore.create(path, schema).close()
    script = "import sys, duckdb; held = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        for read_only in (False, True):
            with pytest.raises(GraphError, match=rf"(?s)cannot open {path} as a graph store: .*lock.*{other.pid}"):
                GraphStore.open(path, read_only=read_only)
        other.communicate()
    GraphStore.open(path).close()


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM _edge_clicks",
        "INSERT INTO _meta VALUES ('a', 'b')",
        "CREATE TABLE x AS SELECT 1",
        "DROP VIEW edges_clicks",
        "SELECT 1; SELECT 2",
        "SELECT 1; DELETE FROM _edge_clicks",
        "COPY (SELECT 1) TO '{folder}/leak.csv'",
        "ATTACH '{folder}/leak.duckdb'",
        "EXPORT DATABASE '{folder}/leak'",
        "CHECKPOINT",
        "SET memory_limit = '1MB'",
        "",
    ],
)
def test_sql_only_reads(clicked: GraphStore, tmp_path: Path, query: str) -> None:
    before = clicked.view().fingerprint
    for asked in (clicked, clicked.view()):
        with pytest.raises(GraphError, match="expected one SELECT, got"):
            asked.sql(query.replace("{folder}", str(tmp_path)))
    assert clicked.view().fingerprint == before
    assert not list(tmp_path.glob("leak*"))


def test_sql_says_what_fails(clicked: GraphStore) -> None:
    with pytest.raises(GraphError, match=r"(?s)the query failed: .*edges_clickz"):
        clicked.sql("SELECT * FROM edges_clickz")


def test_sql_takes_parameters(clicked: GraphStore) -> None:
    query = "SELECT dst_id FROM edges_clicks WHERE src_id = $user ORDER BY time"
    assert clicked.sql(query, {"user": 1})["dst_id"].to_pylist() == [10, 20]
    assert clicked.sql("SELECT ? || ? AS x", ["'; DROP", " TABLE"])["x"].to_pylist() == ["'; DROP TABLE"]


def test_views_cut_sql_to_the_window(clicked: GraphStore, at: At) -> None:
    query = "SELECT src_id, dst_id FROM edges_clicks ORDER BY time"
    assert clicked.view(since=at(1), as_of=at(2)).sql(query).to_pylist() == [{"src_id": 2, "dst_id": 10}]
    assert clicked.sql(query).num_rows == 3


def test_neighbors_latest_first(clicked: GraphStore, at: At) -> None:
    found = clicked.neighbors("pin", 10).to_pylist()
    assert [(row["relation"], row["direction"], row["type"], row["id"], row["time"]) for row in found] == [
        ("buys", "in", "user", "1", at(3)),
        ("clicks", "in", "user", "2", at(1)),
        ("clicks", "in", "user", "1", at(0)),
        ("in", "out", "category", "shoes", None),
    ]
    assert found[0]["weight"] == 2.5


def test_neighbors_can_be_filtered(clicked: GraphStore, at: At) -> None:
    assert clicked.neighbors("user", 1, relation="clicks", since=at(1))["id"].to_pylist() == ["20"]
    assert clicked.neighbors("user", 1, relation="clicks", as_of=at(1))["id"].to_pylist() == ["10"]
    assert clicked.neighbors("pin", 10, direction="out")["id"].to_pylist() == ["shoes"]
    assert clicked.neighbors("pin", 10, limit=1).num_rows == 1
    assert clicked.neighbors("pin", 999).num_rows == 0
    with pytest.raises(GraphError, match="unknown node type"):
        clicked.neighbors("pun", 1)


def test_stats_add_up(clicked: GraphStore, at: At) -> None:
    stats = clicked.stats()
    assert stats["nodes"] == {"user": 2, "pin": 2, "category": 1}
    clicks = stats["relations"]["clicks"]
    assert (clicks["edges"], clicks["distinct_src"], clicks["distinct_dst"]) == (3, 2, 2)
    assert (clicks["first"], clicks["last"]) == (at(0).isoformat(), at(2).isoformat())
    assert repr(clicked).startswith("GraphStore(user=2, pin=2, category=1, (user, clicks, pin)=3")
