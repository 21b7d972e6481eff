"""Windows against a plain Python oracle, and what later loads may not change."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, GraphView, NodeType, Relation

At = Callable[[float], dt.datetime]
Click = tuple[int, str, int]
Buy = tuple[int, str, int, int]
Like = tuple[str, str]
Batch = tuple[list[Click], list[Buy], list[Like]]

DAY = dt.datetime(2026, 1, 1)
SCHEMA = GraphSchema(
    nodes=(NodeType(name="user"), NodeType(name="pin", id_type="string")),
    relations=(
        Relation(src="user", name="clicks", dst="pin"),
        Relation(src="user", name="buys", dst="pin", surface="offsite", weighted=True),
        Relation(src="pin", name="like", dst="pin", timed=False),
    ),
)
ids, days = st.integers(-3, 3), st.integers(0, 6)
names = st.sampled_from(["a", "b", "'", "é", ""])
batches = st.lists(
    st.tuples(
        st.lists(st.tuples(ids, names, days), max_size=12),
        st.lists(st.tuples(ids, names, days, st.integers(1, 9)), max_size=12),
        st.lists(st.tuples(names, names), max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def _time(day: int) -> dt.datetime:
    return DAY + dt.timedelta(days=day)


def _load(store: GraphStore, batch: Batch) -> None:
    clicks, buys, likes = batch
    text, times = pa.string(), pa.timestamp("us")
    for name, edges in (("clicks", clicks), ("buys", buys)):
        columns = {
            "src": pa.array([edge[0] for edge in edges], pa.int64()),
            "dst": pa.array([edge[1] for edge in edges], text),
            "time": pa.array([_time(edge[2]) for edge in edges], times),
        }
        if name == "buys":
            columns["weight"] = pa.array([edge[3] for edge in buys], pa.float32())
        store.load_edges(name, pa.table(columns))
    store.load_edges(
        "like", pa.table({"src": pa.array([e[0] for e in likes], text), "dst": pa.array([e[1] for e in likes], text)})
    )


def _oracle(given_batches: list[Batch], since: int | None, as_of: int | None) -> dict[str, dict[tuple[object, ...], float]]:
    """Relation -> (src, dst, day) -> weight, the first row of a key standing."""
    kept: dict[str, dict[tuple[object, ...], float]] = {"clicks": {}, "buys": {}, "like": {}}
    for clicks, buys, likes in given_batches:
        for src, dst, day in clicks:
            kept["clicks"].setdefault((src, dst, day), 1.0)
        for src, dst, day, weight in buys:
            kept["buys"].setdefault((src, dst, day), weight)
        for edge in likes:
            kept["like"].setdefault((*edge, None), 1.0)
    for name in ("clicks", "buys"):
        kept[name] = {
            key: weight
            for key, weight in kept[name].items()
            if (since is None or since <= key[2]) and (as_of is None or key[2] < as_of)  # type: ignore[operator]
        }
    if as_of is not None:
        # An untimed edge is in the windows that hold both of its ends: pins belong from their first event.
        seen = {dst for clicks, buys, _ in given_batches for _, dst, day, *_ in (*clicks, *buys) if day < as_of}
        kept["like"] = {key: weight for key, weight in kept["like"].items() if {key[0], key[1]} <= seen}
    return kept


def _exported(view: GraphView, relation: str) -> list[tuple[object, object, int | None, float]]:
    declared = view.schema.relation(relation)
    edges = view.edges(relation)
    src_ids, dst_ids = view.node_ids(declared.src).to_pylist(), view.node_ids(declared.dst).to_pylist()
    midnight = int(DAY.replace(tzinfo=dt.UTC).timestamp() * 1e6)
    day_us = 86_400_000_000
    times = [None] * len(edges) if edges.time is None else [(time - midnight) // day_us for time in edges.time.tolist()]
    weight = [1.0] * len(edges) if edges.weight is None else edges.weight.tolist()
    ends = zip(edges.src.tolist(), edges.dst.tolist(), strict=True)
    return [(src_ids[s], dst_ids[d], t, w) for (s, d), t, w in zip(ends, times, weight, strict=True)]


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(given_batches=batches, since=st.none() | days, length=st.none() | st.integers(1, 5), compact=st.booleans())
def test_windows_hold_what_the_oracle_says(
    given_batches: list[Batch], since: int | None, length: int | None, compact: bool
) -> None:
    as_of = None if length is None else (since or 0) + length
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder) / "g.duckdb", SCHEMA) as store:
        for batch in given_batches:
            _load(store, batch)
        if compact:
            store.compact()
        view = store.view(since=None if since is None else _time(since), as_of=None if as_of is None else _time(as_of))
        wanted = _oracle(given_batches, since, as_of)
        for relation in view.relations:
            edges = view.edges(relation.name)
            keys = list(zip(edges.dst.tolist(), [0] * len(edges) if edges.time is None else edges.time.tolist(), strict=True))
            assert keys == sorted(keys)
            got = _exported(view, relation.name)
            assert Counter(got) == Counter((*key, weight) for key, weight in wanted[relation.name].items())
            assert view.num_edges[relation.name] == len(got)
            csc = view.csc(relation.name)
            assert csc.colptr.diff().tolist() == [edges.dst.tolist().count(idx) for idx in range(view.num_nodes[relation.dst])]
        view.close()


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(given_batches=batches, seed=st.randoms(use_true_random=False), compact=st.booleans())
def test_fingerprints_do_not_depend_on_the_order_of_loading(given_batches: list[Batch], seed: object, compact: bool) -> None:
    # A weight belongs to its key, so that which row comes first does not matter.
    def weigh(batch: Batch) -> Batch:
        return batch[0], [(src, dst, day, (src + day) % 7) for src, dst, day, _ in batch[1]], batch[2]

    first = [weigh(batch) for batch in given_batches]
    rows = [[row for batch in first for row in batch[part]] for part in range(3)]
    for part in rows:
        seed.shuffle(part)  # type: ignore[attr-defined]
    fingerprints = []
    for order in (first, [tuple(rows)]):
        with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder) / "g.duckdb", SCHEMA) as store:
            for batch in order:
                _load(store, batch)
            if compact:
                store.compact()
            view = store.view()
            fingerprints.append(view.fingerprint)
            view.close()
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize("change", ["edge", "time", "weight", "node"])
def test_fingerprints_tell_contents_apart(create: Callable[[GraphSchema], GraphStore], change: str) -> None:
    fingerprints = set()
    for changed in (False, True):
        store = create(SCHEMA)
        _load(store, ([(1, "b" if changed and change == "edge" else "a", 0), (2, "b", 0)], [], []))
        _load(store, ([], [(1, "a", 1 if changed and change == "time" else 0, 2 if changed and change == "weight" else 1)], []))
        if changed and change == "node":
            store.load_nodes("user", pa.table({"id": [77]}))
        fingerprints.add(store.view().fingerprint)
    assert len(fingerprints) == 2


def test_an_open_view_does_not_change(store: GraphStore, at: At) -> None:
    store.load_edges("clicks", pa.table({"src": [1, 2], "dst": [1, 1], "time": [at(0), at(1)]}))
    view = store.view(as_of=at(5))
    untouched = store.view(as_of=at(5))  # reads nothing before the changes
    before = view.fingerprint, dict(view.num_edges), dict(view.num_nodes), view.edges("clicks").src.tolist()
    store.load_edges("clicks", pa.table({"src": [3, 1], "dst": [1, 2], "time": [at(2), at(3)]}))
    store.load_nodes("user", pa.table({"id": [9], "age": [1], "country": ["fi"]}))
    store.compact()
    store.load_edges("clicks", pa.table({"src": [4], "dst": [0], "time": [at(2)]}))
    for opened in (view, untouched):
        assert (opened.fingerprint, opened.num_edges, opened.num_nodes, opened.edges("clicks").src.tolist()) == before
        assert opened.sql("SELECT count(*) AS n FROM edges_clicks").to_pylist() == [{"n": 2}]
        assert opened.node_ids("user").to_pylist() == [1, 2]
    assert store.view(as_of=at(5)).num_edges["clicks"] == 5
    store.compact()
    assert view.edges("clicks").src.tolist() == before[3]


def test_relations_and_surfaces_can_be_chosen(store: GraphStore, at: At) -> None:
    store.load_edges("clicks", pa.table({"src": [1], "dst": [1], "time": [at(0)]}))
    store.load_edges("buys", pa.table({"src": [1], "dst": [1], "time": [at(0)], "weight": [1.0]}))
    assert [relation.name for relation in store.view(surface="offsite").relations] == ["buys"]
    view = store.view(relations=["in", "clicks"])
    assert [relation.name for relation in view.relations] == ["in", "clicks"]
    with pytest.raises(GraphError, match="relation 'buys' is not in this view"):
        view.edges("buys")
    assert view.sql("SELECT * FROM edges_buys").num_rows == 0
    with pytest.raises(GraphError, match="unknown relation 'sells'"):
        store.view(relations=["sells"])
    with pytest.raises(GraphError, match="an empty window"):
        store.view(since=at(1), as_of=at(1))


def test_types_keep_the_relations_between_them(store: GraphStore, at: At) -> None:
    store.load_edges("clicks", pa.table({"src": [1], "dst": [1], "time": [at(0)]}))
    store.load_edges("in", pa.table({"src": [1], "dst": ["a"]}))
    view = store.view(types=["pin", "category"])
    assert [relation.name for relation in view.relations] == ["in"]
    assert view.num_nodes == {"pin": 1, "category": 1}
    assert repr(view) == "GraphView(pin=1, category=1, (pin, in, category)=1)"
    assert view.to_hetero_data().node_types == ["pin", "category"]
    fingerprint = view.fingerprint
    store.load_nodes("user", pa.table({"id": [9], "age": [1], "country": ["fi"]}))
    assert store.view(types=["category", "pin"]).fingerprint == fingerprint != store.view().fingerprint
    store.load_nodes("category", pa.table({"id": ["b"]}))
    assert store.view(types=["category", "pin"]).fingerprint != fingerprint
    with pytest.raises(GraphError, match="unknown node type 'usr'"):
        store.view(types=["usr"])
    with pytest.raises(GraphError, match=r"\(user, clicks, pin\) has an end that is not of types=\['pin'\]"):
        store.view(types=["pin"], relations=["clicks"])


def test_bounds_with_a_zone_are_moments(store: GraphStore, at: At) -> None:
    store.load_edges("clicks", pa.table({"src": [1, 2], "dst": [1, 1], "time": [at(0), at(1)]}))
    zone = dt.timezone(dt.timedelta(hours=-3))
    view = store.view(as_of=dt.datetime(2026, 1, 1, 21, tzinfo=zone), since=dt.datetime(2025, 12, 31, 21, tzinfo=zone))
    assert view.edges("clicks").src.tolist() == [0]


def test_min_degree_counts_within_the_window_over_all_its_relations(store: GraphStore, at: At) -> None:
    store.load_edges("clicks", pa.table({"src": [1, 1, 2, 3], "dst": [1, 2, 1, 3], "time": [at(0), at(0), at(0), at(9)]}))
    store.load_edges("buys", pa.table({"src": [2], "dst": [2], "time": [at(0)], "weight": [1.0]}))
    view = store.view(as_of=at(5), min_degree=2)
    assert view.num_edges == {"clicks": 3, "buys": 1, "in": 0}
    assert store.view(as_of=at(5), min_degree={"user": 2}, relations=["clicks"]).num_edges == {"clicks": 2}
    assert view.num_nodes["user"] == 2  # those of few edges stay, those of the future are not there yet
    with pytest.raises(GraphError, match="unknown node type 'usr'"):
        store.view(min_degree={"usr": 2})
    assert "(user, clicks, pin)=3" in repr(view)
