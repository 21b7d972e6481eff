"""The ready-made queries, against sets and breadth-first search in plain Python."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Relation

Node = tuple[str, int]


@pytest.fixture
def graph(create: Callable[[GraphSchema], GraphStore]) -> tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]:
    store = create(
        GraphSchema(
            nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="advertiser")),
            relations=(
                Relation(src="user", name="buys", dst="pin", out_clustered=True),
                Relation(src="pin", name="made_by", dst="advertiser", timed=False),
                Relation(src="user", name="follows", dst="user", timed=False),
            ),
        )
    )
    generator = np.random.default_rng(5)
    edges: dict[str, list[tuple[Node, Node]]] = {}
    sizes = {"user": 30, "pin": 25, "advertiser": 4}
    for relation, number in zip(store.schema.relations, (60, 25, 12), strict=True):
        src = generator.integers(0, sizes[relation.src], number).tolist()
        dst = generator.integers(0, sizes[relation.dst], number).tolist()
        pairs = sorted({*zip(src, dst, strict=True)})
        edges[relation.name] = [((relation.src, s), (relation.dst, d)) for s, d in pairs]
        table = pa.table({"src": [s for s, _ in pairs], "dst": [d for _, d in pairs]})
        if relation.timed:
            table = table.append_column("time", pa.array([dt.datetime(2026, 1, 1)] * len(pairs)))
        half = len(pairs) // 2
        store.load_edges(relation.name, table.slice(0, half))
        store.load_edges(relation.name, table.slice(half))
    return store, edges


def _around(edges: dict[str, list[tuple[Node, Node]]], node: Node) -> set[Node]:
    pairs = [pair for group in edges.values() for pair in group]
    return {b for a, b in pairs if a == node} | {a for a, b in pairs if b == node}


def _distances(edges: dict[str, list[tuple[Node, Node]]], start: Node, num_hops: int) -> dict[Node, int]:
    found, frontier = {start: 0}, {start}
    for hop in range(1, num_hops + 1):
        frontier = {near for node in frontier for near in _around(edges, node)} - set(found)
        found |= dict.fromkeys(frontier, hop)
    return found


def test_degrees(graph: tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]) -> None:
    store, edges = graph
    for end, position, kind in (("src", 0, "user"), ("dst", 1, "pin")):
        counts = Counter(pair[position] for pair in edges["buys"])
        wanted = Counter(counts[kind, node] for node in store.view().node_ids(kind).to_pylist())
        table = store.queries.degrees("buys", end)
        assert dict(zip(*table.to_pydict().values(), strict=True)) == wanted


def test_common_neighbors(graph: tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]) -> None:
    store, edges = graph
    wanted = {
        (a, b): {d[1] for s, d in edges["buys"] if s == ("user", a)} & {d[1] for s, d in edges["buys"] if s == ("user", b)}
        for a in range(8)
        for b in range(8)
        if ("user", a) in dict(edges["buys"]) and ("user", b) in dict(edges["buys"])
    }
    assert any(wanted.values())
    for (a, b), ids in wanted.items():
        table = store.queries.common_neighbors("user", a, b, relation="buys")
        assert {int(identifier) for identifier in table["id"].to_pylist()} == ids


def test_hops(graph: tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]) -> None:
    store, edges = graph
    start = edges["buys"][0][0]
    wanted = Counter((hop, kind) for (kind, _), hop in _distances(edges, start, 3).items())
    rows = store.queries.hops(*start, num_hops=3).to_pylist()
    assert {(row["hop"], row["type"]): row["nodes"] for row in rows} == wanted
    with pytest.raises(GraphError, match="expected 0 to 6 hops"):
        store.queries.hops(*start, num_hops=7)


def test_paths_are_shortest_and_real(graph: tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]) -> None:
    store, edges = graph
    start = edges["buys"][0][0]
    distances = _distances(edges, start, 3)
    for target in [node for node, hop in distances.items() if hop in {1, 2, 3}][::4]:
        rows = store.queries.paths(start, target, limit=5).to_pylist()
        assert 1 <= len({row["path"] for row in rows}) <= 5
        for path in {row["path"] for row in rows}:
            steps = [row for row in rows if row["path"] == path]
            assert len(steps) == distances[target]
            node = start
            for step in steps:
                reached = step["type"], int(step["id"])
                pair = (node, reached) if step["direction"] == "out" else (reached, node)
                assert pair in edges[step["relation"]]
                node = reached
            assert node == target
    far = (
        "user",
        next(n for n in store.view().node_ids("user").to_pylist() if ("user", n) not in distances or distances["user", n] > 1),
    )
    assert store.queries.paths(start, far, max_hops=1).num_rows == 0


def test_top_follows_a_path_of_relations(graph: tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]) -> None:
    store, edges = graph
    user = edges["buys"][0][0]
    bought = [pin for node, pin in edges["buys"] if node == user]
    wanted = Counter(maker for pin in bought for node, maker in edges["made_by"] if node == pin)
    table = store.queries.top(*user, ["buys", "made_by"])
    assert dict(zip(table["id"].to_pylist(), table["edges"].to_pylist(), strict=True)) == {
        str(maker): number for (_, maker), number in wanted.items()
    }
    with pytest.raises(GraphError, match="there is no user 999"):
        store.queries.top("user", 999, ["buys"])


def test_neighbours_by_src_are_those_of_the_copy(graph: tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]) -> None:
    store, edges = graph
    for compacted in (False, True):
        if compacted:
            store.compact()
        for user in {user for user, _ in edges["buys"]}:
            ids = store.neighbors(*user, relation="buys", direction="out")["id"].to_pylist()
            assert sorted(map(int, ids)) == [pin[1] for node, pin in edges["buys"] if node == user]


def test_a_window_can_be_asked_too(graph: tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]) -> None:
    store, edges = graph
    queries = store.view(as_of=dt.datetime(2026, 1, 1)).queries
    user = edges["buys"][0][0]
    assert queries.neighbors(*user, relation="buys").num_rows == 0
    assert queries.degrees("buys").num_rows == 0  # no pin has been seen yet
    assert queries.hops(*user, num_hops=1).num_rows >= 1


def test_neighbours_know_what_has_changed(graph: tuple[GraphStore, dict[str, list[tuple[Node, Node]]]]) -> None:
    store, edges = graph
    (_, user), (_, pin) = edges["buys"][0]
    before = store.neighbors("user", user, relation="buys")["id"].to_pylist()
    store.load_edges("buys", pa.table({"src": [user], "dst": [777], "time": [dt.datetime(2026, 1, 2)]}))
    assert store.neighbors("user", user, relation="buys")["id"].to_pylist() == ["777", *before]
    store.forget("pin", pin)
    assert store.neighbors("user", user, relation="buys")["id"].to_pylist() == ["777", *(i for i in before if i != str(pin))]


@pytest.mark.slow
@given(
    edges=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 5), st.integers(0, 5), st.integers(0, 9)), max_size=40),
    compacted=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_many_relations_answer_as_a_walk_over_their_edges(edges: list[tuple[int, int, int, int]], compacted: bool) -> None:
    """One query asks many relations at once; relations 0 to 5 join users, the others users and pins; odd ones have no time."""
    relations = [
        Relation(src="user", name=f"r{number}", dst="user" if number < 6 else "pin", timed=number % 2 == 0, duplicates="all")
        for number in range(12)
    ]
    schema = GraphSchema(nodes=(NodeType(name="user"), NodeType(name="pin")), relations=tuple(relations))
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder) / "graph.duckdb", schema) as store:
        for name in ("user", "pin"):
            store.load_nodes(name, pa.table({"id": range(6)}))
        pairs: dict[str, list[tuple[Node, Node]]] = {relation.name: [] for relation in relations}
        wanted: dict[Node, Counter[tuple[object, ...]]] = {
            (name, node): Counter() for name in ("user", "pin") for node in range(6)
        }
        for number, relation in enumerate(relations):
            own = [edge[1:] for edge in edges if edge[0] == number]
            times = [dt.datetime(2026, 1, 1) + dt.timedelta(seconds=second) for _, _, second in own]
            columns = {"src": [src for src, _, _ in own], "dst": [dst for _, dst, _ in own]}
            if own:
                store.load_edges(relation.name, pa.table(columns | ({"time": times} if relation.timed else {})))
            for (src, dst, _), time in zip(own, times, strict=True):
                head, tail = ("user", src), (relation.dst, dst)
                pairs[relation.name].append((head, tail))
                wanted[head][relation.name, "out", relation.dst, str(dst), time if relation.timed else None] += 1
                wanted[tail][relation.name, "in", "user", str(src), time if relation.timed else None] += 1
            if compacted and number % 3 == 0:
                store.compact()
        for queries in (store.queries, store.view().queries):
            for (kind, node), counts in wanted.items():
                rows = queries.neighbors(kind, node).drop_columns("weight").to_pylist()
                assert Counter(tuple(row.values()) for row in rows) == counts
                times = [row["time"] for row in rows if row["time"]]
                assert times == sorted(times, reverse=True)
                assert all(row["time"] is None for row in rows[len(times) :])
                assert queries.neighbors(kind, node, limit=2).num_rows == min(2, counts.total())
            hops = queries.hops("user", 0, num_hops=3).to_pylist()
            distances = _distances(pairs, ("user", 0), 3)
            assert {(row["hop"], row["type"]): row["nodes"] for row in hops} == Counter(
                (hop, kind) for (kind, _), hop in distances.items()
            )
            for target, hop in distances.items():
                rows = queries.paths(("user", 0), target).to_pylist()
                assert Counter(row["path"] for row in rows) == Counter(dict.fromkeys({row["path"] for row in rows}, hop))
                assert bool(rows) == (hop > 0)
            for other in range(6):
                shared = queries.common_neighbors("user", 0, other).to_pylist()
                around = [{key[:4] for key in wanted["user", node]} for node in (0, other)]
                assert {tuple(row.values()) for row in shared} == around[0] & around[1]
                assert len(shared) == len(around[0] & around[1])


def test_times_beyond_pythons_years_are_read(tmp_path: Path) -> None:
    """An older store may hold them."""
    follows = Relation(src="user", name="follows", dst="user")
    path = tmp_path / "graph.duckdb"
    days = [dt.datetime(2026, 1, day) for day in range(1, 6)]
    with GraphStore.create(path, GraphSchema(nodes=(NodeType(name="user"),), relations=(follows,))) as store:
        store.load_edges("follows", pa.table({"src": [1, 2, 3, 4, 5], "dst": [1] * 5, "time": days}))
    far = {1: "infinity", 2: "57971-02-25 00:00:00", 3: "2026-01-01 00:00:00.5", 4: "-5000-01-01", 5: "-infinity"}
    with duckdb.connect(str(path)) as connection:
        for user, time in far.items():
            src = f"(SELECT idx FROM _node_user WHERE id = {user})"
            connection.execute(f"UPDATE _edge_follows SET time = '{time}'::TIMESTAMP WHERE src = {src}")
    with GraphStore.open(path) as store:
        table = store.neighbors("user", 1, direction="in")
        assert table["id"].to_pylist() == ["1", "2", "3", "4", "5"]
        microseconds = [
            int(np.datetime64(time, "us").astype(int)) for time in ("57971-02-25", "2026-01-01T00:00:00.5", "-5000-01-01")
        ]
        times = table["time"].cast(pa.int64()).to_pylist()
        assert times[0] == 2**63 - 1
        assert times[1:3] == microseconds[:2]
        assert times[4] == -(2**63 - 1)
        assert store.stats()["relations"]["follows"]["last"] == "infinity"
        assert store.view().edges("follows").time.tolist() == sorted(times)
        store.sql("SELECT 1")
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM _edge_follows WHERE isinf(time)")
    with GraphStore.open(path) as store:
        described = store.stats()["relations"]["follows"]
        assert described["last"] == "57971-02-25T00:00:00"
