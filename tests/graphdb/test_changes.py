"""Schemas that grow, edges and nodes that go, and views that outlive a mistake."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Relation
from multifacet.graphdb.merging import column_pointers, is_clustered, merge, merged_positions, order_of

At = Callable[[float], dt.datetime]


@pytest.fixture
def clicked(store: GraphStore, at: At) -> GraphStore:
    store.load_edges("clicks", pa.table({"src": [1, 1, 2], "dst": [10, 20, 10], "time": [at(0), at(2), at(1)]}))
    store.load_edges("in", pa.table({"src": [10], "dst": ["shoes"]}))
    return store


def test_the_schema_grows_and_stays_grown(clicked: GraphStore, at: At) -> None:
    view = clicked.view()
    clicked.add_node_type(NodeType(name="board"))
    clicked.add_relation(Relation(src="board", name="holds", dst="pin", timed=False))
    clicked.add_property("pin", "colour", "VARCHAR")
    clicked.add_property("clicks", "device", "VARCHAR")
    clicked.load_edges("holds", pa.table({"src": [1], "dst": [10]}))
    clicked.load_nodes("pin", pa.table({"id": [10], "colour": ["red"]}))
    clicked.load_edges("clicks", pa.table({"src": [3], "dst": [10], "time": [at(3)], "device": ["phone"]}))
    assert view.num_edges["clicks"] == 3
    path = clicked.path
    clicked.close()
    with GraphStore.open(path) as store:
        assert store.schema.relation("holds").dst == "pin"
        assert store.sql("SELECT colour FROM nodes_pin ORDER BY id")["colour"].to_pylist() == ["red", None]
        assert store.sql("SELECT device FROM edges_clicks ORDER BY time")["device"].to_pylist() == [None, None, None, "phone"]
        assert store.view().num_edges["holds"] == 1


def test_a_schema_refuses_what_does_not_fit_and_stays_as_it_was(clicked: GraphStore) -> None:
    before = clicked.schema
    with pytest.raises(GraphError, match="node type 'Pin' is declared twice"):
        clicked.add_node_type(NodeType(name="Pin"))
    with pytest.raises(GraphError, match="node type 'board' is not declared"):
        clicked.add_relation(Relation(src="board", name="holds", dst="pin"))
    with pytest.raises(GraphError, match="has a property 'age' already"):
        clicked.add_property("user", "AGE".lower(), "INTEGER")
    with pytest.raises(GraphError, match="expected one of BIGINT"):
        clicked.add_property("user", "size", "HUGE")
    with pytest.raises(GraphError, match="unknown relation 'nothing'"):
        clicked.add_property("nothing", "size", "INTEGER")
    assert clicked.schema == before


def test_old_edges_are_dropped_and_recorded(clicked: GraphStore, at: At) -> None:
    view = clicked.view()
    assert clicked.drop_before(at(2)) == {"clicks": 2, "buys": 0}
    assert clicked.counts()["edges"] == {"clicks": 1, "buys": 0, "in": 1}
    assert view.num_edges["clicks"] == 3
    removals = clicked.sql("SELECT kind, target, before, edges FROM removals WHERE edges > 0").to_pylist()
    assert removals == [{"kind": "drop_before", "target": "clicks", "before": at(2), "edges": 2}]


def test_a_forgotten_node_leaves_no_trace_but_a_gap(clicked: GraphStore, at: At) -> None:
    clicked.load_edges("clicks", pa.table({"src": ["2", "3"], "dst": ["x", "10"], "time": [at(0)] * 2}))
    last = clicked.view().node_ids("user").to_pylist()
    assert last == [1, 2, 3]
    assert clicked.forget("user", 3) == {"clicks": 1, "buys": 0}
    assert clicked.forget("user", 2) == {"clicks": 1, "buys": 0}
    assert clicked.sql("SELECT * FROM rejected_rows").num_rows == 0
    view = clicked.view()
    assert view.node_ids("user").to_pylist() == [1]
    assert view.num_nodes["user"] == 1
    assert view.edges("clicks").src.tolist() == [0, 0]
    assert len(view.fingerprint) == 64
    clicked.load_edges("clicks", pa.table({"src": [2], "dst": [10], "time": [at(5)]}))
    view = clicked.view()
    assert view.node_ids("user").to_pylist() == [1, 2]
    assert view.node_idx("user").tolist() == [0, 3]  # in the store its idx is a new one
    assert view.edges("clicks").src.tolist() == [0, 1, 0]
    with pytest.raises(GraphError, match="there is no user 99 to forget"):
        clicked.forget("user", 99)
    columns = clicked.sql("SELECT * EXCLUDE (removed_at) FROM removals WHERE kind = 'forget' ORDER BY idx").to_pylist()
    assert [(row["target"], row["idx"], row["edges"]) for row in columns] == [("user", 1, 1), ("user", 2, 1)]


def test_a_select_cannot_write(clicked: GraphStore) -> None:
    query = "WITH gone AS (DELETE FROM _edge_clicks RETURNING *) SELECT * FROM gone"
    view = clicked.view()
    for asked in (clicked, view):
        with pytest.raises(GraphError, match="the query failed"):
            asked.sql(query)
    assert view.num_edges["clicks"] == clicked.view().num_edges["clicks"] == 3


def test_a_view_survives_a_failed_query(clicked: GraphStore, at: At) -> None:
    view = clicked.view(as_of=at(2), min_degree={"pin": 2})
    for query in ("SELECT nonsense", "SELECT src_id::VARCHAR || 'x' AS x FROM edges_clicks WHERE error('stop') IS NULL"):
        with pytest.raises(GraphError, match="the query failed"):
            view.sql(query)
        assert view.sql("SELECT count(*) AS n FROM edges_clicks").to_pylist() == [{"n": 2}]
        assert len(view.edges("clicks")) == 2


def test_a_view_whose_snapshot_is_lost_says_so(clicked: GraphStore, at: At) -> None:
    view = clicked.view()
    clicked.load_edges("clicks", pa.table({"src": [9], "dst": [10], "time": [at(0)]}))
    with pytest.raises(GraphError, match="the store has changed since; open another"):
        view.sql("SELECT nonsense")


columns = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 9)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(base=columns, delta=columns)
def test_merging_is_sorting(base: list[tuple[int, int, int]], delta: list[tuple[int, int, int]]) -> None:
    def run(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        array = np.array(sorted(rows), np.int64).reshape(-1, 3)
        return array[:, 0].astype(np.int32), np.ascontiguousarray(array[:, 1]), array[:, 2].astype(np.int32)

    first, second = run(base), run(delta)
    positions = merged_positions(first, second)
    merged = [merge(one, other, positions) for one, other in zip(first, second, strict=True)]
    assert list(zip(*(column.tolist() for column in merged), strict=True)) == sorted(base + delta)
    dst, time, src = merged
    assert is_clustered(dst, time)
    assert order_of(dst, time, src).tolist() == list(range(len(dst)))
    assert column_pointers(dst, 7).tolist() == [sum(value < column for value, *_ in base + delta) for column in range(8)]
    if len(dst) and dst[0] != dst[-1]:
        assert not is_clustered(dst[::-1].copy(), None)
        assert not is_clustered(dst[::-1].copy(), time)


@pytest.mark.parametrize("edge_log", ["embedded"])
def test_a_table_that_lost_its_order_is_sorted_at_the_export(clicked: GraphStore, caplog: pytest.LogCaptureFixture) -> None:
    right = clicked.view().edges("clicks").dst.tolist()
    clicked._session.connection.execute("INSERT INTO _edge_clicks (SELECT * FROM _edge_clicks ORDER BY dst DESC, time DESC)")
    clicked._session.connection.execute("DELETE FROM _edge_clicks WHERE rowid < 3")
    assert clicked.view().edges("clicks").dst.tolist() == right
    assert "clicks is not clustered" in caplog.text


def test_memory_and_threads_can_be_bounded(tmp_path: object, schema: GraphSchema, store: GraphStore) -> None:
    path = store.path
    store.close()
    with GraphStore.open(path, memory_limit="1GB", threads=1) as opened:
        settings = opened.sql("SELECT current_setting('memory_limit') AS m, current_setting('threads') AS t").to_pylist()
    assert settings == [{"m": "953.6 MiB", "t": 1}]
