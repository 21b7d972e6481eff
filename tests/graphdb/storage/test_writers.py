"""One writer, whatever handles, threads and processes there are; readers beside it; and what forgetting leaves of a file."""

from __future__ import annotations

import datetime as dt
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NegativeSampler, NodeType, Query, Relation
from multifacet.graphdb.storage.edge_storage import EdgeStorage

DAY = dt.datetime(2026, 1, 1)
SCHEMA = GraphSchema(
    nodes=(NodeType(name="user", id_type="string", properties={"mail": "VARCHAR"}), NodeType(name="pin")),
    relations=(
        Relation(src="user", name="clicks", dst="pin", properties={"note": "VARCHAR"}),
        Relation(src="user", name="r", dst="pin", timed=False),
    ),
)


def _load(store: GraphStore, user: str, pin: int = 1, relation: str = "r") -> int:
    return store.load_edges(relation, pa.table({"src": [user], "dst": [pin]})).loaded


#: Rounds of each of the three processes that write: more than 100 together.
ROUNDS = 34


def _open_and_load(path: Path, number: int, results: Any) -> None:
    """A process that tries to write until it may, and again."""
    loaded = 0
    while loaded < ROUNDS:
        try:
            with GraphStore.open(path) as store:
                loaded += _load(store, f"process {number}, round {loaded}")
        except GraphError as error:
            if "locked by process" not in str(error):
                raise
    results.put((number, loaded))


@pytest.mark.slow
def test_handles_and_threads_of_a_process_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    GraphStore.create(path, SCHEMA).close()
    (tmp_path / "link").symlink_to(path)
    handles = [GraphStore.open(path), GraphStore.open(path), GraphStore.open(tmp_path / "link")]
    failures: list[BaseException] = []
    ready = threading.Barrier(6)

    def work(number: int) -> None:
        try:
            ready.wait()
            for turn in range(17):
                assert _load(handles[number % 3], f"user {number} {turn}") == 1
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    idx = handles[0].sql("SELECT idx FROM nodes_user ORDER BY idx")["idx"].to_pylist()
    assert idx == list(range(6 * 17))
    assert handles[1].counts()["edges"]["r"] == 6 * 17
    for handle in handles:
        handle.close()
    assert not path.with_name("g.duckdb.lock").exists()


@pytest.mark.slow
def test_processes_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    GraphStore.create(path, SCHEMA).close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_open_and_load, args=(path, number, results)) for number in range(3)]
    for worker in workers:
        worker.start()
    assert sorted(results.get(timeout=120) for _ in workers) == [(number, ROUNDS) for number in range(3)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with GraphStore.open(path, read_only=True) as store:
        assert store.sql("SELECT idx FROM nodes_user ORDER BY idx")["idx"].to_pylist() == list(range(3 * ROUNDS))
        assert store.counts()["edges"]["r"] == 3 * ROUNDS


def test_a_writer_is_one_also_after_its_file_was_read(tmp_path: Path) -> None:
    """DuckDB's own lock on a file is gone once its process closes another handle on it."""
    path = tmp_path / "g.duckdb"
    with GraphStore.create(path, SCHEMA) as store:
        path.read_bytes()
        code = f"from multifacet.graphdb import GraphStore; GraphStore.open({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert f"locked by process {os.getpid()}" in other.stderr
        assert _load(store, "a") == 1


def test_another_handle_sees_what_the_first_one_changed(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    with GraphStore.create(path, SCHEMA) as first, GraphStore.open(path) as second:
        first.add_relation(Relation(src="user", name="likes", dst="pin", timed=False))
        assert _load(second, "a", relation="likes") == 1
        assert second.view().num_edges["likes"] == 1
        assert second.neighbors("user", "a").num_rows == 1
        first.forget("user", "a")
        assert second.neighbors("user", "a").num_rows == 0
        assert _load(second, "b") == 1
        assert second.sql("SELECT idx, id FROM nodes_user").to_pylist() == [{"idx": 1, "id": "b"}]


@pytest.mark.parametrize("edge_log", ["embedded", "parquet"])
def test_a_copy_is_read_while_another_process_writes(tmp_path: Path, edge_log: EdgeStorage) -> None:
    path, copy = tmp_path / "g.duckdb", tmp_path / "copies" / "copy.duckdb"
    with GraphStore.create(path, SCHEMA, edge_log=edge_log) as store:
        rows = {"src": ["a"], "dst": [1], "time": [DAY], "note": ["x"]}
        store.load_edges("clicks", pa.table(rows))
        code = (
            "import sys; from multifacet.graphdb import GraphStore\n"
            "GraphStore.backup(sys.argv[1], sys.argv[2])\n"
            "with GraphStore.open(sys.argv[2], read_only=True) as store: print(store.counts()['edges'])"
        )
        other = subprocess.run([sys.executable, "-c", code, path, copy], check=False, capture_output=True, text=True)
        assert other.stdout.strip() == "{'clicks': 1, 'r': 0}", other.stderr
        # This process's lock still stands, and it goes on; a copy of the copy can be written to.
        store.load_edges("clicks", pa.table({**rows, "dst": [2]}))
        GraphStore.backup(path, tmp_path / "mine.duckdb")
        with GraphStore.open(tmp_path / "mine.duckdb") as mine:
            assert mine.counts()["edges"]["clicks"] == 2
            mine.load_edges("clicks", pa.table({**rows, "dst": [3]}))
        assert store.view().num_edges["clicks"] == 2
        with pytest.raises(GraphError, match=r"copy\.duckdb exists"):
            GraphStore.backup(path, copy)
    with pytest.raises(GraphError, match="there is no store"):
        GraphStore.backup(tmp_path / "none.duckdb", tmp_path / "x.duckdb")


def test_a_plain_copy_of_the_file_is_a_store(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    with GraphStore.create(path, SCHEMA) as store:
        subprocess.run(["cp", path, tmp_path / "empty.duckdb"], check=True)
        _load(store, "a")
        subprocess.run(["cp", path, tmp_path / "loaded.duckdb"], check=True)
    for name, edges in (("empty", 0), ("loaded", 1)):
        with GraphStore.open(tmp_path / f"{name}.duckdb", read_only=True) as copy:
            assert copy.counts()["edges"]["r"] == edges


def test_a_process_that_was_killed_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    code = f"import os; from multifacet.graphdb import GraphStore; s = GraphStore.open({str(path)!r}); os.kill(os.getpid(), 9)"
    GraphStore.create(path, SCHEMA).close()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with GraphStore.open(path) as store:
        assert _load(store, "a") == 1


SECRET = "secret-4711@example.org"  # noqa: S105 - an id that is to be forgotten


def _bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("edge_log", ["embedded", "parquet"])
def test_no_byte_of_a_forgotten_id_stays(tmp_path: Path, edge_log: EdgeStorage, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "store"
    store = GraphStore.create(folder / "g.duckdb", SCHEMA, edge_log=edge_log)
    people = [SECRET, *(f"user {number}" for number in range(3000))]
    store.load_nodes("user", pa.table({"id": people, "mail": people}))
    notes = [f"note of {person}" for person in people]
    days = [DAY + dt.timedelta(days=number % 3) for number in range(len(people))]
    store.load_edges("clicks", pa.table({"src": people, "dst": range(len(people)), "time": days, "note": notes}))
    store.load_edges("clicks", Query(f"SELECT '{SECRET}' AS src, 7 AS dst, TIMESTAMP '2026-02-01' AS time, 'x' AS note"))
    store.load_edges("r", pa.table({"src": [SECRET, SECRET], "dst": ["x", "9"]}))  # one is rejected
    store.load_edges("r", pa.table({"src": ["user 1"], "dst": [SECRET]}))
    store.load_edges("r", pa.table({"src": [SECRET], "dst": [12345678]}), missing_nodes="hold")
    store.compact()
    store.load_table("mails", pa.table({"address": [SECRET]}))
    caplog.set_level(logging.WARNING)
    view = store.view()
    store.forget("user", SECRET)
    assert "table 'mails' holds the forgotten id in its column 'address'" in caplog.text
    store.load_table("mails", pa.table({"address": ["user 1"]}))
    store.compact()
    assert "still holds bytes of forgotten nodes: close its views" in caplog.text
    view.close()
    store.compact()
    assert store.view().num_nodes["user"] == 3000
    assert _load(store, "user 5", 77) == 1
    store.close()
    assert SECRET.encode() not in _bytes_of(folder)
    with GraphStore.open(folder / "g.duckdb") as again:
        assert again.sql("SELECT count(*) AS n FROM edges_clicks").to_pylist() == [{"n": 3000}]
        # The idx of the forgotten node is not given again.
        _load(again, "somebody new")
        assert again.sql("SELECT idx FROM nodes_user WHERE id = 'somebody new'")["idx"].to_pylist() == [3001]


def test_rejected_rows_that_spell_a_forgotten_number_otherwise_go(tmp_path: Path) -> None:
    schema = GraphSchema(nodes=(NodeType(name="n"),), relations=(Relation(src="n", name="r", dst="n", timed=False),))
    with GraphStore.create(tmp_path / "g.duckdb", schema) as store:
        rows = {"src": ["9", "009", " 9", "+9", "x", "9.0", "19", "90"], "dst": ["1", "x", "1", "x", " 9", "1", "x", "x"]}
        store.load_edges("r", pa.table(rows))
        store.forget("n", 9)
        assert store.sql("SELECT src_or_id FROM rejected_rows ORDER BY 1")["src_or_id"].to_pylist() == ["19", "90"]


def test_a_forgotten_node_is_drawn_no_more(tmp_path: Path) -> None:
    with GraphStore.create(tmp_path / "g.duckdb", SCHEMA) as store:
        for pin in (1, 2, 3):
            _load(store, f"user {pin}", pin)
        store.forget("pin", 2)
        view = store.view()
        ids = view.node_ids("pin").to_pylist()
        assert {ids[row] for row in NegativeSampler.from_view(view, "pin", alpha=0.0).sample(500).tolist()} == {1, 3}


def test_a_store_of_another_format_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    GraphStore.create(path, SCHEMA).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE _meta SET value = '2' WHERE key = 'format_version'")
    with pytest.raises(GraphError, match="store format 2, this version reads 4 and 5; build it anew"):
        GraphStore.open(path)


_FULL_DISK = """
import resource, signal, sys
from multifacet.graphdb import GraphError, GraphStore, Query
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = GraphStore.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
try:
    store.load_edges("r", Query("SELECT md5(i::VARCHAR) AS src, i AS dst FROM range(2000000) t(i)"))
except GraphError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    with GraphStore.create(path, SCHEMA) as store:
        _load(store, "a")
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, path], check=False, capture_output=True, text=True)
    assert done.stdout.startswith("edges of 'r': "), done.stderr
    assert "nothing was changed" in done.stdout
    with GraphStore.open(path) as store:
        assert store.counts()["edges"]["r"] == 1
        assert _load(store, "b") == 1
