"""What is loaded again adds what is new in it: by file, by name, in any split and order, under every policy."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Relation
from multifacet.graphdb.schema import Duplicates
from multifacet.graphdb.storage.edge_storage import EdgeStorage

Create = Callable[[GraphSchema], GraphStore]
Event = tuple[int, int, int, int]
DAY = dt.datetime(2026, 1, 1)
POLICIES = get_args(Duplicates)


def _schema(duplicates: str, **fields: Any) -> GraphSchema:
    relation = Relation.model_validate(
        {"src": "user", "name": "r", "dst": "pin", "weighted": True, "duplicates": duplicates, **fields}
    )
    return GraphSchema(nodes=(NodeType(name="user"), NodeType(name="pin")), relations=(relation,))


def _table(events: list[Event]) -> pa.Table:
    src, dst, day, weight = zip(*events, strict=True) if events else ([], [], [], [])
    return pa.table(
        {
            "src": pa.array(src, pa.int64()),
            "dst": pa.array(dst, pa.int64()),
            "time": pa.array([DAY + dt.timedelta(days=number) for number in day], pa.timestamp("us")),
            "weight": pa.array(weight, pa.float64()),
        }
    )


def _edges(store: GraphStore) -> list[tuple[Any, ...]]:
    rows = store.sql("SELECT src_id, dst_id, time, weight FROM edges_r ORDER BY ALL").to_pydict()
    return list(zip(*rows.values(), strict=True))


def _oracle(events: list[Event], duplicates: str) -> list[tuple[Any, ...]]:
    """What one load of all events leaves."""
    weights: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for src, dst, day, weight in events:
        weights[src, dst, DAY + dt.timedelta(days=day)].append(float(weight))
    kept = {
        "first": lambda given: [given[0]],
        "last": lambda given: [given[-1]],
        "sum": lambda given: [sum(given)],
        "all": lambda given: given,
    }[duplicates]
    return sorted((*key, weight) for key, given in weights.items() for weight in kept(given))


def _write(events: list[Event], path: Path) -> None:
    if path.suffix == ".csv":
        pa.csv.write_csv(_table(events), path)
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(f'{{"src":{s},"dst":{d},"time":"{DAY + dt.timedelta(days=n)}","weight":{w}}}\n' for s, d, n, w in events)
        )
    else:
        pq.write_table(_table(events), path)


events = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(1, 4))
files = st.lists(st.lists(events, min_size=1, max_size=4), min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    files=files,
    order=st.randoms(use_true_random=False),
    duplicates=st.sampled_from(POLICIES),
    suffix=st.sampled_from([".parquet", ".csv", ".jsonl"]),
    storage=st.sampled_from(["embedded", "parquet"]),
    is_glob=st.booleans(),
    compact=st.booleans(),
)
def test_files_in_any_split_and_order_with_any_repeated_are_one_load(
    files: list[list[Event]], order: Any, duplicates: str, suffix: str, storage: EdgeStorage, is_glob: bool, compact: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A row of its own tells a file from one that looks alike, which would be asked about.
        files = [[*rows, (100 + number, 0, 0, 1)] for number, rows in enumerate(files)]
        paths = [folder / f"day-{number}{suffix}" for number in range(len(files))]
        turns = list(range(len(files)))
        if duplicates in {"sum", "all"}:
            order.shuffle(turns)
        with GraphStore.create(folder / "g", _schema(duplicates), edge_log=storage) as store:
            for turn in turns:
                _write(files[turn], paths[turn])
                store.load_edges("r", str(folder / f"day-*{suffix}") if is_glob else paths[turn])
                again = order.choice([path for path in paths if path.exists()])
                report = store.load_edges("r", again)
                assert report.loaded == 0
                assert report.already_there == report.read
                if compact:
                    store.compact()
            assert _edges(store) == _oracle([event for turn in turns for event in files[turn]], duplicates)


@settings(max_examples=15, deadline=None)
@given(
    batches=files,
    repeats=st.lists(st.integers(0, 3), max_size=3),
    duplicates=st.sampled_from(["sum", "all"]),
    timed=st.booleans(),
)
def test_named_batches_in_any_order_with_any_repeated_are_one_load(
    batches: list[list[Event]], repeats: list[int], duplicates: str, timed: bool
) -> None:
    with tempfile.TemporaryDirectory() as name, GraphStore.create(Path(name) / "g", _schema(duplicates, timed=timed)) as store:
        for turn in [*range(len(batches)), *(number for number in repeats if number < len(batches))]:
            table = _table(batches[turn])
            # Under its name a batch is the same, also where its rows come in another order.
            store.load_edges("r", table, batch=f"batch {turn}")
        rows = store.sql("SELECT src_id, dst_id, weight FROM edges_r").to_pydict()
        got = Counter(zip(*rows.values(), strict=True))
        weights: dict[tuple[int, ...], list[float]] = defaultdict(list)
        for src, dst, day, weight in (event for batch in batches for event in batch):
            weights[(src, dst, day) if timed else (src, dst)].append(float(weight))
        wanted = Counter(
            (key[0], key[1], weight)
            for key, given in weights.items()
            for weight in ([sum(given)] if duplicates == "sum" else given)
        )
        assert got == wanted


@pytest.mark.parametrize("duplicates", POLICIES)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_that_grew_or_was_mended_adds_what_is_new(create: Create, tmp_path: Path, duplicates: str, suffix: str) -> None:
    store = create(_schema(duplicates))
    path = tmp_path / f"log{suffix}"
    first: list[Event] = [(1, 1, 0, 5), (2, 1, 0, 7), (1, 1, 0, 2)]
    broken = _table(first).set_column(0, "src", pa.array([1, None, 1]))
    if suffix == ".csv":
        pa.csv.write_csv(broken, path)
    elif suffix == ".parquet":
        pq.write_table(broken, path)
    else:
        _write(first, path)
        path.write_text(path.read_text().replace('"src":2', '"src":null'))
    report = store.load_edges("r", path)
    assert (report.num_rejected, report.read) == (1, 3)
    grown: list[Event] = [*first, (3, 1, 1, 1), (1, 1, 0, 4)]
    _write(grown, path)
    report = store.load_edges("r", path)
    # What was taken is not taken again, so that the mended row comes last under "last" and "all" alike.
    assert _edges(store) == _oracle([first[0], first[2], first[1], *grown[3:]], duplicates)
    assert store.load_edges("r", path).already_there == 5


@pytest.mark.parametrize("duplicates", ["sum", "all"])
def test_a_file_whose_loaded_rows_changed_is_refused(create: Create, tmp_path: Path, duplicates: str) -> None:
    store = create(_schema(duplicates))
    path = tmp_path / "log.csv"
    _write([(1, 1, 0, 5), (2, 1, 0, 7)], path)
    store.load_edges("r", path)
    before = _edges(store)
    _write([(1, 1, 0, 6), (2, 1, 0, 7), (3, 1, 0, 1)], path)
    with pytest.raises(GraphError, match=r"log\.csv that load 0 took are no longer where they were"):
        store.load_edges("r", path)
    assert _edges(store) == before
    assert store.load_edges("r", path, batch="corrected").loaded > 0


@pytest.mark.parametrize("duplicates", ["sum", "all"])
def test_the_same_rows_under_another_path_are_asked_about(create: Create, tmp_path: Path, duplicates: str) -> None:
    store = create(_schema(duplicates))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        _write([(1, 1, 0, 5)], tmp_path / folder / "log.parquet")
    store.load_edges("r", tmp_path / "a" / "log.parquet")
    with pytest.raises(GraphError, match="has the same rows as load 0"):
        store.load_edges("r", tmp_path / "b" / "log.parquet")
    with pytest.raises(GraphError, match="has the same rows as load 0"):
        store.load_edges("r", _table([(1, 1, 0, 5)]))
    store.load_edges("r", tmp_path / "b" / "log.parquet", batch="b")
    assert sum(edge[3] for edge in _edges(store)) == 10.0
    # A named batch of files is known again wherever they lie.
    (tmp_path / "b").rename(tmp_path / "c")
    assert store.load_edges("r", tmp_path / "c" / "log.parquet", batch="b").already_there == 1


@pytest.mark.parametrize("duplicates", POLICIES)
def test_rows_rejected_for_want_of_their_nodes_come_in_later(create: Create, duplicates: str) -> None:
    store = create(_schema(duplicates))
    store.load_nodes("user", pa.table({"id": [1]}))
    store.load_nodes("pin", pa.table({"id": [10]}))
    rows = _table([(1, 10, 0, 5), (2, 10, 0, 7)])
    assert store.load_edges("r", rows, missing_nodes="reject").num_rejected == 1
    store.load_nodes("user", pa.table({"id": [2]}))
    report = store.load_edges("r", rows, missing_nodes="reject")
    assert (report.loaded, report.already_there, report.num_rejected) == (1, 1, 0)
    assert [edge[3] for edge in _edges(store)] == [5.0, 7.0]


@pytest.mark.parametrize("duplicates", POLICIES)
@pytest.mark.parametrize("in_one_load", [True, False])
def test_held_edges_are_released_under_the_policy(create: Create, duplicates: str, in_one_load: bool) -> None:
    store = create(_schema(duplicates))
    rows: list[Event] = [(1, 10, 0, 5), (1, 10, 0, 100), (2, 10, 1, 1)]
    for part in [rows] if in_one_load else [[row] for row in rows]:
        store.load_edges("r", _table(part), missing_nodes="hold")
    store.load_nodes("user", pa.table({"id": [1, 2]}))
    store.load_nodes("pin", pa.table({"id": [10]}))
    assert _edges(store) == _oracle(rows, duplicates)


def test_what_is_loaded_last_stands_unless_it_is_an_old_file(create: Create, tmp_path: Path) -> None:
    store = create(_schema("last"))
    old, new = tmp_path / "1.csv", tmp_path / "2.csv"
    _write([(1, 1, 0, 5)], old)
    _write([(1, 1, 0, 6)], new)
    for path in (old, new, old):
        store.load_edges("r", path)
    assert [edge[3] for edge in _edges(store)] == [6.0]
    # Rows in memory are what somebody says now.
    for weight in (7, 8, 7):
        store.load_edges("r", _table([(1, 1, 0, weight)]))
    assert [edge[3] for edge in _edges(store)] == [7.0]


def test_small_weights_add_up_beyond_what_a_float32_counts(create: Create) -> None:
    store = create(_schema("sum"))
    store.load_edges("r", _table([(1, 1, 0, 1 << 24)]))
    for number in range(3):
        store.load_edges("r", _table([(1, 1, 0, 1)]), batch=f"{number}")
    assert [edge[3] for edge in _edges(store)] == [float((1 << 24) + 3)]


@pytest.mark.parametrize("missing_nodes", ["create", "reject"])
def test_too_many_rejected_rows_refuse_the_load(create: Create, missing_nodes: Any) -> None:
    store = create(_schema("sum"))
    rows = pa.table({"src": ["1", "x", "y"], "dst": [1, 1, 1], "time": [DAY] * 3, "weight": [1, 1, 1]})
    with pytest.raises(
        GraphError, match=r"more than max_rejected=1, so nothing is loaded: .*src is not an int64: 2 \(row 1 is the first\)"
    ):
        store.load_edges("r", rows, max_rejected=1, missing_nodes=missing_nodes)
    assert store.counts() == {"nodes": {"user": 0, "pin": 0}, "edges": {"r": 0}}
    assert store.sql("FROM rejected_rows").num_rows == 0
    with pytest.raises(GraphError, match="max_rejected=0"):
        store.load_nodes("user", pa.table({"id": ["1", "x"]}), max_rejected=0)
    assert store.load_edges("r", rows, max_rejected=2).loaded == 1
