"""What is computed from a window is the same before and after later loads, to the bit."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphSchema, GraphStore, GraphView, MetapathWalker, NegativeSampler, NodeType, Relation
from multifacet.graphdb.storage.edge_storage import EdgeStorage

At = Callable[[float], dt.datetime]
DAY = dt.datetime(2026, 1, 1)
SCHEMA = GraphSchema(
    nodes=(
        NodeType(name="user"),
        NodeType(name="pin", id_type="string", properties={"price": "DOUBLE"}),
        NodeType(name="maker", id_type="string"),
        NodeType(name="country", id_type="string"),
    ),
    relations=(
        Relation(src="user", name="clicks", dst="pin"),
        Relation(src="user", name="buys", dst="pin", weighted=True, duplicates="sum", properties={"shop": "VARCHAR"}),
        Relation(src="user", name="follows", dst="user"),
        Relation(src="pin", name="made_by", dst="maker", timed=False),
        Relation(src="maker", name="in", dst="country", timed=False),
    ),
)
CUT = 5


def _time(day: float) -> dt.datetime:
    return DAY + dt.timedelta(days=day)


def _load(store: GraphStore, events: list[tuple[str, int, int, int]], batch: str) -> None:
    """Events as (relation, head, tail, day); a pin comes with its maker, a maker with its country."""
    for name in ("clicks", "buys", "follows"):
        chosen = [event for event in events if event[0] == name]
        if not chosen:
            continue
        _, heads, tails, days = zip(*chosen, strict=True)
        ends = list(tails) if name == "follows" else [f"p{tail}" for tail in tails]
        columns: dict[str, Any] = {"src": heads, "dst": ends, "time": [_time(day) for day in days]}
        if name == "buys":
            columns |= {"weight": [1.0 + tail for tail in tails], "shop": [f"s{head}" for head in heads]}
        store.load_edges(name, pa.table(columns), batch=batch)
    pins = sorted({event[2] for event in events if event[0] != "follows"})
    if pins:
        store.load_edges("made_by", pa.table({"src": [f"p{pin}" for pin in pins], "dst": [f"m{pin % 4}" for pin in pins]}))
        store.load_edges("in", pa.table({"src": [f"m{pin % 4}" for pin in pins], "dst": [f"c{pin % 2}" for pin in pins]}))


def _everything(view: GraphView) -> dict[str, Any]:
    """What a window gives, as what can be compared."""
    found: dict[str, Any] = {"fingerprint": view.fingerprint, "repr": repr(view), "edges": dict(view.num_edges)}
    for name in view.num_nodes:
        found[f"ids {name}"] = view.node_ids(name).to_pylist()
        found[f"seen {name}"] = view.first_seen(name).tolist()
        found[f"sql {name}"] = view.sql(f"SELECT * EXCLUDE (idx) FROM nodes_{name} ORDER BY ALL").to_pylist()
        if view.num_nodes[name]:
            found[f"negatives {name}"] = NegativeSampler.from_view(view, name, alpha=0.0).sample(20).tolist()
    for relation in view.relations:
        columns = view.csc(relation.name)
        found[relation.name] = [
            None if part is None else part.tolist() for part in (columns.colptr, columns.row, columns.time, columns.weight)
        ]
        found[f"sql {relation.name}"] = view.sql(
            f'SELECT * EXCLUDE (src_idx, dst_idx) FROM "edges_{relation.name}" ORDER BY ALL'
        ).to_pylist()
    triples = view.triples()
    found["triples"] = [part.tolist() for part in (triples.head, triples.relation, triples.tail)]
    found["prices"] = [None if np.isnan(price) else price for price in view.node_property("pin", "price").tolist()]
    return found


numbers = st.integers(0, 7)
events = st.lists(st.tuples(st.sampled_from(["clicks", "buys", "follows"]), numbers, numbers, st.integers(0, 9)), max_size=25)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    before=events,
    after=events,
    catalogue=st.lists(numbers, unique=True),
    storage=st.sampled_from(["embedded", "parquet"]),
    compact=st.booleans(),
    since=st.none() | st.integers(0, 4),
)
def test_a_window_does_not_know_what_comes_later(
    before: list[Any], after: list[Any], catalogue: list[int], storage: EdgeStorage, compact: bool, since: int | None
) -> None:
    # What comes later: events from the cut on, of new and of old nodes, and nodes without events.
    later = [(name, head + 100 * (day % 2), tail + 100, max(day, CUT)) for name, head, tail, day in after]
    window = {"as_of": _time(CUT), "since": None if since is None else _time(since)}
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder) / "g", SCHEMA, edge_log=storage) as store:
        _load(store, before, "before")
        with_view = store.view(**window)
        first = _everything(with_view)
        with_view.close()
        _load(store, later, "later")
        store.load_nodes("pin", pa.table({"id": [f"p{500 + number}" for number in catalogue], "price": [1.0] * len(catalogue)}))
        store.load_nodes("maker", pa.table({"id": [f"m{500 + number}" for number in catalogue]}))
        if compact:
            store.compact()
        again = store.view(**window)
        assert _everything(again) == first
        # Nor does it matter whether its past was loaded first.
        other = GraphStore.create(Path(folder) / "other", SCHEMA, edge_log=storage)
        _load(other, later, "later")
        _load(other, before, "before")
        view = other.view(**window)
        assert (view.fingerprint, view.num_edges) == (first["fingerprint"], first["edges"])
        assert {name: sorted(view.node_ids(name).to_pylist()) for name in view.num_nodes} == {
            name: sorted(first[f"ids {name}"]) for name in view.num_nodes
        }
        for opened in (again, view):
            opened.close()
        other.close()


def test_a_node_belongs_from_its_first_event_its_own_time_or_its_load(tmp_path: Path, at: At) -> None:
    with GraphStore.create(tmp_path / "g", SCHEMA) as store:
        store.load_nodes("pin", pa.table({"id": ["p1", "p2", "p3"], "at": [at(2), None, at(8)]}), time="at")
        store.load_edges("clicks", pa.table({"src": [1], "dst": ["p3"], "time": [at(4)]}))
        # p1 has a time of its own, p3 an event before its own time, p2 nothing: it was not known before today.
        assert store.view(as_of=at(3)).node_ids("pin").to_pylist() == ["p1"]
        assert store.view(as_of=at(5)).node_ids("pin").to_pylist() == ["p1", "p3"]
        assert store.view(as_of=dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).num_nodes["pin"] == 3
        assert store.view().node_ids("pin").to_pylist() == ["p1", "p2", "p3"]
        seen = store.view(as_of=at(5)).first_seen("pin").astype("datetime64[us]").tolist()
        assert seen == [at(2), at(4)]
        # An event that comes late makes a node older.
        store.load_edges("clicks", pa.table({"src": [1], "dst": ["p3"], "time": [at(1)]}))
        assert store.view(as_of=at(3)).node_ids("pin").to_pylist() == ["p1", "p3"]


def test_makers_come_with_what_they_made(tmp_path: Path, at: At) -> None:
    with GraphStore.create(tmp_path / "g", SCHEMA) as store:
        store.load_edges("clicks", pa.table({"src": [1, 1], "dst": ["p1", "p2"], "time": [at(1), at(6)]}))
        store.load_edges("made_by", pa.table({"src": ["p1", "p2"], "dst": ["m1", "m2"]}))
        store.load_edges("in", pa.table({"src": ["m1", "m2"], "dst": ["c1", "c2"]}))
        view = store.view(as_of=at(3))
        assert {name: view.node_ids(name).to_pylist() for name in view.num_nodes} == {
            "user": [1], "pin": ["p1"], "maker": ["m1"], "country": ["c1"],
        }  # fmt: skip
        assert view.num_edges == {"clicks": 1, "buys": 0, "follows": 0, "made_by": 1, "in": 1}
        assert view.sql("SELECT dst_id FROM edges_in").to_pylist() == [{"dst_id": "c1"}]


def test_edges_that_a_join_has_chosen_are_in_order(tmp_path: Path, at: At) -> None:
    rng = np.random.default_rng(0)
    with GraphStore.create(tmp_path / "g", SCHEMA) as store:
        pins = [f"p{number}" for number in rng.permutation(3000)]
        late = [at(1) if number % 3 else at(9) for number in range(3000)]
        store.load_edges("clicks", pa.table({"src": rng.integers(0, 500, 3000), "dst": pins, "time": late}))
        store.load_edges("made_by", pa.table({"src": pins, "dst": [f"m{number % 7}" for number in range(3000)]}))
        for view in (store.view(as_of=at(5)), store.view(min_degree={"user": 3}), store.view(as_of=at(5), min_degree=2)):
            for relation in ("made_by", "clicks"):
                edges = view.edges(relation)
                times = [0] * len(edges) if edges.time is None else edges.time.tolist()
                keys = list(zip(edges.dst.tolist(), times, edges.src.tolist(), strict=True))
                assert keys == sorted(keys)
                assert len(keys) > 0


def test_a_graph_without_times_is_in_every_window(tmp_path: Path, at: At) -> None:
    schema = GraphSchema(
        nodes=(NodeType(name="entity", id_type="string"),),
        relations=(Relation(src="entity", name="related", dst="entity", timed=False),),
    )
    with GraphStore.create(tmp_path / "g", schema) as store:
        store.load_edges("related", pa.table({"src": ["a"], "dst": ["b"]}))
        assert store.view(as_of=at(0)).num_nodes == {"entity": 2}


def test_properties_are_part_of_the_fingerprint(tmp_path: Path, at: At) -> None:
    with GraphStore.create(tmp_path / "g", SCHEMA) as store:
        rows = {"src": [1], "dst": ["p1"], "time": [at(1)], "weight": [1.0]}
        store.load_edges("buys", pa.table({**rows, "shop": ["north"]}))
        first = store.view().fingerprint
        store.load_nodes("pin", pa.table({"id": ["p1"], "price": [2.5]}))
        second = store.view().fingerprint
        assert second != first
        store.load_edges("buys", pa.table({**rows, "weight": [0.0], "shop": ["south"]}))
        assert store.view().fingerprint not in {first, second}


@pytest.mark.parametrize(
    "given", ["2026-01-03", "2026-01-03T02:00:00+02:00", dt.date(2026, 1, 3), np.datetime64("2026-01-03T00:00")]
)
def test_a_time_can_be_given_as_what_people_have(tmp_path: Path, at: At, given: Any) -> None:
    with GraphStore.create(tmp_path / "g", SCHEMA) as store:
        store.load_edges("clicks", pa.table({"src": [1, 2], "dst": ["p1", "p1"], "time": [at(1), at(2)]}))
        assert store.view(as_of=given).num_edges["clicks"] == 1
        assert store.neighbors("pin", "p1", since=given).num_rows == 1
        assert store.drop_before(given)["clicks"] == 1


@pytest.mark.parametrize("given", [1_767_398_400, "the third", np.datetime64("NaT"), float("nan"), "10000-01-01"])
def test_what_is_no_time_is_refused(tmp_path: Path, given: Any) -> None:
    with (
        GraphStore.create(tmp_path / "g", SCHEMA) as store,
        pytest.raises(ValueError, match=r"as_of is .* expected a datetime"),
    ):
        store.view(as_of=given)


def test_walks_stay_within_the_window(tmp_path: Path, at: At) -> None:
    with GraphStore.create(tmp_path / "g", SCHEMA) as store:
        store.load_edges(
            "clicks", pa.table({"src": [9, 1, 2, 3], "dst": ["p9", "p1", "p1", "p2"], "time": [at(9), at(1), at(2), at(3)]})
        )
        view = store.view(as_of=at(5), relations=["clicks"])
        assert view.node_idx("user").tolist() == [0, 1, 2]
        walker = MetapathWalker.from_view(view, ["clicks", "clicks^-1"])
        users = walker.walk(torch.arange(3), length=4)[:, ::2]
        assert int(users.max()) < 3
