"""Stores whose edges are Parquet files by day: the same store as an embedded one, and files that exist whole or not at all."""

from __future__ import annotations

import datetime as dt
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Relation
from multifacet.graphdb.storage.edge_storage import EdgeStorage

At = Callable[[float], dt.datetime]
STORAGES: tuple[EdgeStorage, EdgeStorage] = ("embedded", "parquet")
BUYS = GraphSchema(
    nodes=(NodeType(name="user"), NodeType(name="pin")),
    relations=(Relation(src="user", name="buys", dst="pin", weighted=True, out_clustered=True),),
)


@pytest.fixture
def edge_log() -> EdgeStorage:
    return "parquet"


def _files(store: GraphStore) -> list[Path]:
    return sorted(store.path.with_name(f"{store.path.name}.edges").glob("*/*/*"))


def _batch(rows: list[tuple[int, int, float, float]], at: At) -> pa.Table:
    src, dst, day, weight = zip(*rows, strict=True)
    return pa.table({"src": src, "dst": dst, "time": [at(value) for value in day], "weight": weight})


changes = st.lists(
    st.one_of(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 9), st.integers(1, 8)), min_size=1, max_size=9),
        st.sampled_from(["compact", "drop_before", "forget", "reopen"]),
    ),
    min_size=1,
    max_size=7,
)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(changes=changes, duplicates=st.sampled_from(["first", "last", "sum", "all"]), since=st.integers(0, 4))
def test_both_storages_hold_the_same(changes: list[Any], duplicates: str, since: int) -> None:
    relation = BUYS.relations[0].model_copy(update={"duplicates": duplicates})
    schema = BUYS.model_copy(update={"relations": (relation,)})
    day = dt.datetime(2026, 1, 1)
    seen = []
    for storage in STORAGES:
        with tempfile.TemporaryDirectory() as folder:
            store = GraphStore.create(Path(folder) / "g.duckdb", schema, edge_log=storage)
            reports: list[Any] = []
            for number, change in enumerate(changes):
                if change == "compact":
                    store.compact()
                elif change == "drop_before":
                    reports.append(store.drop_before(day + dt.timedelta(days=1, hours=6)))
                elif change == "forget":
                    if 2 in store.view(types=["user"]).node_ids("user").to_pylist():
                        reports.append(store.forget("user", 2))
                elif change == "reopen":
                    store.close()
                    store = GraphStore.open(Path(folder) / "g.duckdb")
                else:
                    # Quarters of days, so that days hold several times and drop_before cuts one.
                    batch = _batch(change, lambda quarter: day + dt.timedelta(days=quarter / 4))
                    report = store.load_edges("buys", batch, batch=f"change {number}")
                    reports.append((report.read, report.loaded, report.already_there, dict(report.created_nodes)))
            for view in (store.view(), store.view(since=day + dt.timedelta(days=since / 4), as_of=day + dt.timedelta(days=2))):
                edges = view.edges("buys")
                columns = [getattr(edges, name).tolist() for name in ("src", "dst", "time", "weight")]
                rows = list(zip(*columns, strict=True))
                assert [row[1:3] for row in rows] == sorted(row[1:3] for row in rows)
                reports.append((view.fingerprint, sorted(rows), dict(view.num_edges)))
                view.close()
            out = [sorted(map(str, store.neighbors("user", user, direction="out").to_pylist())) for user in range(5)]
            reports.append((out, store.sql("SELECT * FROM edges_buys ORDER BY ALL").to_pylist()))
            store.close()
            seen.append(reports)
    assert seen[0] == seen[1]


def test_days_are_files_and_late_rows_wait_for_a_compaction(create: Callable[[GraphSchema], GraphStore], at: At) -> None:
    store = create(BUYS)
    store.load_edges("buys", _batch([(1, 1, 0, 1), (2, 1, 0.5, 2), (1, 2, 3, 3)], at))
    days = sorted({path.parent.relative_to(path.parents[2]).as_posix() for path in _files(store)})
    assert days == [f"relation=buys{copy}/date=2026-01-0{day}" for copy in ("", "~out") for day in (1, 4)]
    before = _files(store)
    store.load_edges("buys", _batch([(9, 1, 0.2, 1), (9, 1, 7, 1)], at))
    assert store.stats()["relations"]["buys"]["not_compacted"] == 1  # the seventh day is a file, the first has one already
    assert set(before) < set(_files(store))
    assert store.compact() == {"buys": 1}
    assert store.view().edges("buys").src.tolist() == [0, 2, 1, 2, 0]
    store.compact()
    assert not set(before[:1]) & set(_files(store))  # what the first compaction replaced has gone
    first = next(path for path in _files(store) if path.parent.name == "date=2026-01-01" and "~" not in str(path))
    assert pq.read_table(first, partitioning=None).select(["dst", "src"]).to_pydict() == {"dst": [0, 0, 0], "src": [0, 2, 1]}


def test_windows_read_only_their_days(create: Callable[[GraphSchema], GraphStore], at: At) -> None:
    store = create(BUYS)
    store.load_edges("buys", _batch([(1, day, day, 1) for day in range(6)], at))
    for path in _files(store):
        if path.parent.name not in {"date=2026-01-03", "date=2026-01-04"}:
            path.write_bytes(b"not read")
    view = store.view(since=at(2), as_of=at(3.5))
    assert view.node_ids("pin").take(view.edges("buys").dst.numpy()).to_pylist() == [2, 3]
    with pytest.raises(duckdb.Error):
        store.view(since=at(2)).edges("buys")


def test_an_open_view_keeps_its_files(create: Callable[[GraphSchema], GraphStore], at: At) -> None:
    store = create(BUYS)
    store.load_edges("buys", _batch([(1, 1, 0, 1)], at))
    view = store.view()
    for user in (2, 3, 4):
        store.load_edges("buys", _batch([(user, 1, 0.1 * user, 1)], at))
        store.compact()
    store.forget("user", 1)
    assert view.edges("buys").src.tolist() == [0]
    assert view.sql("SELECT src_id FROM edges_buys")["src_id"].to_pylist() == [1]
    view.close()
    store.compact()
    assert len(_files(store)) == 2


def test_forgetting_and_dropping_take_the_rows_out_of_the_files(create: Callable[[GraphSchema], GraphStore], at: At) -> None:
    store = create(BUYS)
    store.load_edges("buys", _batch([(1, 1, 0, 1), (2, 1, 0.1, 1), (2, 1, 5, 1), (1, 1, 9, 1)], at))
    assert store.forget("user", 2) == {"buys": 2}
    assert store.drop_before(at(9)) == {"buys": 1}
    store.compact()
    assert [pq.read_table(path, partitioning=None).num_rows for path in _files(store)] == [1, 1]
    assert store.counts()["edges"]["buys"] == 1


def test_store_and_log_can_be_moved_together(create: Callable[[GraphSchema], GraphStore], at: At, tmp_path: Path) -> None:
    store = create(BUYS)
    store.load_edges("buys", _batch([(1, 1, 0, 1)], at))
    fingerprint = store.view().fingerprint
    store.close()
    there = tmp_path / "it's [elsewhere]"
    there.mkdir()
    store.path.rename(there / "h.duckdb")
    store.path.with_name(f"{store.path.name}.edges").rename(there / "h.duckdb.edges")
    for read_only in (True, False):
        with GraphStore.open(there / "h.duckdb", read_only=read_only) as moved:
            assert moved.sql("SELECT count(*) AS n FROM edges_buys").to_pylist() == [{"n": 1}]
            assert moved.view().fingerprint == fingerprint


def test_a_log_is_not_made_where_it_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="DuckDB cuts its search path at commas"):
        GraphStore.create(tmp_path / "a,b" / "g.duckdb", BUYS, edge_log="parquet")
    (tmp_path / "g.duckdb.edges").mkdir()
    with pytest.raises(GraphError, match=r"g\.duckdb\.edges exists"):
        GraphStore.create(tmp_path / "g.duckdb", BUYS, edge_log="parquet")


def test_what_a_killed_writer_left_goes(create: Callable[[GraphSchema], GraphStore], at: At) -> None:
    store = create(BUYS)
    store.load_edges("buys", _batch([(1, 1, 0, 1)], at))
    kept = _files(store)
    store.close()
    for name in ("x.unfinished", "y.parquet"):
        (kept[0].parent / name).write_bytes(b"half")
    with GraphStore.open(store.path, read_only=True) as opened:
        assert len(_files(opened)) == len(kept) + 2
    with GraphStore.open(store.path) as opened:
        assert _files(opened) == kept
        assert opened.counts()["edges"]["buys"] == 1


def test_a_failed_load_lists_no_file(
    create: Callable[[GraphSchema], GraphStore], at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(BUYS)
    with monkeypatch.context() as patch:
        full = OSError("no space left on device")
        patch.setattr("multifacet.artifacts.files.os.fsync", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="no space"):
            store.load_edges("buys", _batch([(1, 1, 0, 1)], at))
    assert store.counts() == {"nodes": {"user": 0, "pin": 0}, "edges": {"buys": 0}}
    store.compact()
    assert _files(store) == []
    assert store.load_edges("buys", _batch([(1, 1, 0, 1)], at)).loaded == 1


def test_properties_that_came_later_are_null_in_older_files(create: Callable[[GraphSchema], GraphStore], at: At) -> None:
    store = create(BUYS)
    store.load_edges("buys", _batch([(1, 1, 0, 1), (2, 1, 2, 1)], at))
    store.add_property("buys", "device", "VARCHAR")
    late = _batch([(3, 1, 1, 1), (4, 1, 0.5, 1)], at).append_column("device", pa.array(["phone", "desk"]))
    store.load_edges("buys", late)
    for _ in range(2):
        query = "SELECT src_id, device FROM edges_buys ORDER BY time"
        assert store.sql(query)["device"].to_pylist() == [None, "desk", "phone", None]
        assert store.view().edges("buys").src.tolist() == [0, 3, 2, 1]
        store.compact()


@pytest.mark.parametrize("storage", STORAGES)
def test_logs_that_users_have_are_loaded_by_a_glob(tmp_path: Path, at: At, storage: EdgeStorage, schema: GraphSchema) -> None:
    for day in range(3):
        folder = tmp_path / "relation=clicks" / f"date=2026-01-0{day + 1}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"src": [day, 7], "dst": [70, 70], "time": [at(day + 0.5)] * 2}), folder / "part.parquet")
    pattern = str(tmp_path / "relation=clicks" / "date=*" / "*.parquet")
    with GraphStore.create(tmp_path / "g.duckdb", schema, edge_log=storage) as store:
        assert store.load_edges("clicks", pattern).loaded == 6
        # A log whose time is only in its folders' names.
        assert store.load_edges("clicks", str(tmp_path / "*" / "*" / "*.parquet"), time="date").loaded == 6
        assert store.view(since=at(2)).edges("clicks").src.tolist() == store.view(since=at(2)).edges("clicks").src.tolist()
        assert store.view(since=at(2)).num_edges["clicks"] == 4


@pytest.mark.slow
def test_thirty_daily_batches_are_one_bulk_load(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    day, num_rows = np.datetime64("2026-01-01", "us"), 3000
    times = np.sort(generator.integers(0, 30 * 86_400, num_rows)).astype("timedelta64[s]") + day
    log = pa.table({"src": generator.integers(0, 200, num_rows), "dst": generator.integers(0, 50, num_rows), "time": times})
    log = log.append_column("weight", pa.array(np.ones(num_rows)))
    cuts = np.searchsorted(times, day + np.arange(31).astype("timedelta64[D]"))
    fingerprints = set()
    for storage in STORAGES:
        for bounds in ([(0, num_rows)], list(itertools.pairwise(cuts))):
            path = tmp_path / f"{storage}{len(bounds)}.duckdb"
            with GraphStore.create(path, BUYS, edge_log=storage) as store:
                for start, end in bounds:
                    store.load_edges("buys", log.slice(start, end - start))
                fingerprints |= {store.view().fingerprint}
                store.compact()
                fingerprints |= {store.view().fingerprint}
    assert len(fingerprints) == 1
