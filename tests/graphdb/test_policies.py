"""What becomes of duplicates, of edges that come before their nodes, and of edge properties."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, LoadReport, NodeType, Relation

At = Callable[[float], dt.datetime]
Create = Callable[[GraphSchema], GraphStore]


def _schema(**fields: Any) -> GraphSchema:
    relation = Relation.model_validate({"src": "user", "name": "buys", "dst": "pin", "weighted": True, **fields})
    return GraphSchema(nodes=(NodeType(name="user"), NodeType(name="pin", id_type="string")), relations=(relation,))


def _batch(rows: list[tuple[int, str, float]], time: dt.datetime) -> pa.Table:
    src, dst, weight = zip(*rows, strict=True)
    return pa.table({"src": src, "dst": dst, "time": [time] * len(rows), "weight": weight})


def _weights(store: GraphStore) -> list[tuple[int, str, float]]:
    table = store.sql("SELECT src_id, dst_id, weight FROM edges_buys ORDER BY ALL").to_pydict()
    return list(zip(table["src_id"], table["dst_id"], table["weight"], strict=True))


def _check_sum(report: LoadReport) -> None:
    assert report.read == report.loaded + report.already_there + report.held + report.num_rejected


FIRST = [(1, "a", 1.0), (1, "a", 2.0), (2, "b", 4.0)]
SECOND = [(2, "b", 8.0), (2, "b", 16.0), (3, "c", 32.0)]


@pytest.mark.parametrize(
    ("duplicates", "after_first", "after_second", "loaded"),
    [
        ("first", [1.0, 4.0], [1.0, 4.0, 32.0], (2, 1)),
        ("last", [2.0, 4.0], [2.0, 16.0, 32.0], (2, 1)),
        ("sum", [3.0, 4.0], [3.0, 28.0, 32.0], (2, 1)),
        ("all", [1.0, 2.0, 4.0], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], (3, 3)),
    ],
)
@pytest.mark.parametrize("compact", [False, True])
def test_duplicates(
    create: Create,
    at: At,
    duplicates: str,
    after_first: list[float],
    after_second: list[float],
    loaded: tuple[int, int],
    compact: bool,
) -> None:
    store = create(_schema(duplicates=duplicates, out_clustered=True))
    report = store.load_edges("buys", _batch(FIRST, at(0)))
    _check_sum(report)
    assert report.loaded == loaded[0]
    assert [weight for *_, weight in _weights(store)] == after_first
    report = store.load_edges("buys", _batch(SECOND, at(0)))
    _check_sum(report)
    assert report.loaded == loaded[1]
    if compact:
        store.compact()
    assert [weight for *_, weight in _weights(store)] == after_second
    # The same batch again adds nothing.
    if duplicates in {"sum", "all"}:
        # Where every row counts, an equal batch without a name could be a repeat or more of the same.
        with pytest.raises(GraphError, match="has the same rows as load 1"):
            store.load_edges("buys", _batch(SECOND[::-1], at(0)))
    else:
        repeated = store.load_edges("buys", _batch(SECOND, at(0)))
        assert (repeated.loaded, repeated.already_there) == (0, 3)
    assert [weight for *_, weight in _weights(store)] == after_second
    out = store.neighbors("user", 2, direction="out")["weight"].to_pylist()
    assert sorted(out) == sorted(weight for user, _, weight in _weights(store) if user == 2)


def test_duplicates_of_untimed_edges_and_strings(create: Create) -> None:
    store = create(_schema(timed=False, duplicates="sum"))
    store.load_edges("buys", pa.table({"src": [1, 1, 1], "dst": ["a", "é", "a"], "weight": [1, 2, 3]}))
    assert _weights(store) == [(1, "a", 4.0), (1, "é", 2.0)]


@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.integers(1, 8)), min_size=1, max_size=20),
    cut=st.integers(1, 19),
)
def test_sums_do_not_depend_on_how_rows_are_batched(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], cut: int
) -> None:
    path = tmp_path_factory.mktemp("sum") / "g.duckdb"
    with GraphStore.create(path, _schema(duplicates="sum")) as store:
        parts = [part for part in (rows[:cut], rows[cut:]) if part]
        for number, part in enumerate(parts):
            # A mark makes the batches differ in content.
            store.load_edges("buys", _batch([*part, (100 + number, "mark", 1)], dt.datetime(2026, 1, 1)))
        wanted: dict[tuple[int, str], float] = {}
        for src, dst, weight in rows:
            wanted[src, dst] = wanted.get((src, dst), 0) + weight
        assert [edge for edge in _weights(store) if edge[1] != "mark"] == sorted(
            (*key, weight) for key, weight in wanted.items()
        )


def test_held_edges_wait_for_their_nodes(create: Create, at: At) -> None:
    store = create(_schema())
    store.load_nodes("user", pa.table({"id": [1]}))
    store.load_nodes("pin", pa.table({"id": ["a"]}))
    rows = _batch([(1, "a", 1.0), (2, "a", 2.0), (2, "a", 9.0), (2, "z", 3.0)], at(0))
    report = store.load_edges("buys", rows, missing_nodes="hold")
    _check_sum(report)
    assert (report.loaded, report.held, report.already_there) == (1, 2, 1)
    assert store.counts()["nodes"] == {"user": 1, "pin": 1}
    assert store.stats()["relations"]["buys"]["held"] == 2
    again = store.load_edges("buys", rows, missing_nodes="hold")
    assert (again.loaded, again.held, again.already_there) == (0, 0, 4)
    assert dict(store.load_nodes("user", pa.table({"id": [2]})).released) == {"buys": 1}
    assert _weights(store) == [(1, "a", 1.0), (2, "a", 2.0)]
    assert dict(store.load_nodes("pin", pa.table({"id": ["z"]})).released) == {"buys": 1}
    assert store.stats()["relations"]["buys"]["held"] == 0


def test_edges_carry_properties(create: Create, at: At) -> None:
    store = create(_schema(properties={"price": "DOUBLE", "it's": "VARCHAR"}, duplicates="last"))
    rows = pa.table({"src": [1, 2, 3], "dst": ["a"] * 3, "time": [at(0)] * 3, "weight": [1.0] * 3})
    rows = rows.append_column("price", pa.array(["1.5", None, "dear"])).append_column("it's", pa.array(["x", "y", "z"]))
    report = store.load_edges("buys", rows)
    assert (report.loaded, dict(report.rejected)) == (2, {"price is not a DOUBLE": 1})
    assert store.sql('SELECT price, "it\'s" FROM edges_buys ORDER BY src_id').to_pylist() == [
        {"price": 1.5, "it's": "x"},
        {"price": None, "it's": "y"},
    ]
    store.load_edges("buys", rows.slice(0, 1).set_column(4, "price", pa.array([2.5])))
    store.compact()
    assert store.view().sql("SELECT price FROM edges_buys WHERE src_id = 1")["price"].to_pylist() == [2.5]


def test_rejected_rows_name_their_file(create: Create, tmp_path: Any, at: At) -> None:
    store = create(_schema(timed=False, weighted=False))
    for suffix in ("csv", "parquet"):
        for part in range(2):
            path = tmp_path / f"log{part}.{suffix}"
            table = pa.table({"src": ["1", "x" if part else "2", "3"], "dst": ["a"] * 3})
            if suffix == "csv":
                pa.csv.write_csv(table, path)
            else:
                pa.parquet.write_table(table, path)
        store.load_edges("buys", tmp_path / f"log*.{suffix}")
    rows = store.sql("SELECT file, row, src_or_id FROM rejected_rows ORDER BY load_id").to_pylist()
    # A text file has lines, from 1, its header included; other files have rows, from 0.
    assert rows == [
        {"file": str(tmp_path / "log1.csv"), "row": 3, "src_or_id": "x"},
        {"file": str(tmp_path / "log1.parquet"), "row": 1, "src_or_id": "x"},
    ]


def test_long_loads_tell_their_progress(create: Create) -> None:
    store = create(_schema(timed=False, weighted=False))
    told: list[tuple[str, float]] = []
    store.load_edges("buys", pa.table({"src": [1], "dst": ["a"]}), progress=lambda name, share: told.append((name, share)))
    assert told[-1] == ("edges of buys", 1.0)
    assert all(0 <= share <= 1 for _, share in told)
