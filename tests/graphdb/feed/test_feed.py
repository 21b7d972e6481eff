"""Feeds of windows: what they hold, that they depend on nothing else, and what is refused."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from multifacet.artifacts import ArtifactError
from multifacet.graphdb import Feed, GraphError, GraphSchema, GraphStore, GraphView, NodeType, Relation, write_feed
from multifacet.graphdb.feed.degrees import Degrees
from multifacet.graphdb.feed.layout import first_rows, record_of

NUM_USERS, NUM_PINS = 60, 40
SCHEMA = GraphSchema(
    nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="category", id_type="string")),
    relations=(
        Relation(src="user", name="clicks", dst="pin"),
        Relation(src="user", name="buys", dst="pin", weighted=True, timed=False),
        Relation(src="pin", name="alike", dst="pin", timed=False),
        Relation(src="pin", name="in", dst="category", timed=False),
        Relation(src="user", name="likes", dst="category", timed=False),  # of which there is none
    ),
)


def edges_of(name: str) -> pa.Table:
    random = np.random.default_rng(len(name))
    users, pins = random.integers(0, NUM_USERS, 900), random.integers(0, NUM_PINS, 900)
    if name == "clicks":
        time = 1_700_000_000_000_000 + random.integers(0, 10**9, 900)
        return pa.table({"src": users, "dst": pins, "time": pa.array(time).cast(pa.timestamp("us"))})
    if name == "buys":
        return pa.table({"src": users, "dst": pins, "weight": random.integers(0, 4, 900).astype(float)})
    if name == "alike":
        return pa.table({"src": pins[:300], "dst": users[:300] % NUM_PINS})
    return pa.table({"src": np.arange(NUM_PINS), "dst": [f"c{pin % 7}" for pin in range(NUM_PINS)]})


def fill(store: GraphStore, *, backwards: bool = False) -> GraphView:
    """Load all edges at once, or in two parts and the other way round."""
    store.load_nodes("user", pa.table({"id": np.arange(NUM_USERS)}))
    store.load_nodes("pin", pa.table({"id": np.arange(NUM_PINS)}))
    store.load_nodes("category", pa.table({"id": [f"c{number}" for number in range(7)]}))
    for name in ("alike", "in", "clicks", "buys") if backwards else ("clicks", "buys", "alike", "in"):
        table = edges_of(name)
        if name == "buys":
            table = table.group_by(["src", "dst"], use_threads=False).aggregate([("weight", "sum")])
            table = table.rename_columns(["src", "dst", "weight"])
        if backwards:
            order = np.arange(len(table))[::-1]
            store.load_edges(name, table.take(pa.array(order[: len(order) // 2])))
            store.compact()
            store.load_edges(name, table.take(pa.array(order[len(order) // 2 :])))
        else:
            store.load_edges(name, table)
    return store.view()


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> GraphView:
    return fill(GraphStore.create(tmp_path_factory.mktemp("window") / "graph.duckdb", SCHEMA))


@pytest.fixture(scope="module")
def feed(view: GraphView, tmp_path_factory: pytest.TempPathFactory) -> Feed:
    return write_feed(view, tmp_path_factory.mktemp("feed") / "feed", num_shards=8, hold_out=50)


def all_records(feed: Feed) -> np.ndarray[Any, Any]:
    parts = []
    for number in range(feed.num_shards):
        with feed.shard(number) as shard:
            parts.append(shard.read(len(shard)))
    return np.concatenate(parts)


def pairs_of(view: GraphView) -> dict[tuple[int, int, int], tuple[float, int]]:
    """What a window's pairs are, one edge after the other."""
    pairs: dict[tuple[int, int, int], tuple[float, int]] = {}
    for number, relation in enumerate(view.relations):
        edges = view.edges(relation.name)
        for place in range(len(edges)):
            weight = 1.0 if edges.weight is None else float(edges.weight[place])
            time = np.iinfo(np.int64).min if edges.time is None else int(edges.time[place])
            if weight:
                key = (number, int(edges.src[place]), int(edges.dst[place]))
                before = pairs.get(key, (0.0, time))
                pairs[key] = before[0] + weight, min(before[1], time)
    return pairs


def as_pairs(records: np.ndarray[Any, Any]) -> dict[tuple[int, int, int], tuple[float, int]]:
    return {(int(r["relation"]), int(r["src"]), int(r["dst"])): (float(r["weight"]), int(r["time"])) for r in records}


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_each_pair_stands_in_the_feed_once_with_its_weight_and_its_first_time(view: GraphView, tmp_path: Path) -> None:
    feed = write_feed(view, tmp_path / "feed", num_shards=8)
    records = all_records(feed)
    assert as_pairs(records) == pairs_of(view)
    assert len(records) == len(pairs_of(view)) == sum(feed.num_edges.values()) == feed.counts.sum()
    assert feed.num_edges["likes"] == 0
    assert feed.counts.sum(1).min() > 0.5 * feed.counts.sum(1).mean()
    assert feed.node_ids("category").to_pylist() == view.node_ids("category").to_pylist()
    assert feed.node_ids("pin", 3, 6).to_pylist() == [3, 4, 5]
    assert (feed.window, feed.since, feed.as_of) == (view.fingerprint, None, None)
    # Relations are mixed, and the order is no order of the window's.
    assert 200 < np.count_nonzero(np.diff(records["relation"].astype(int))) < len(records)
    assert abs(np.corrcoef(np.arange(len(records)), records["dst"])[0, 1]) < 0.1


def test_the_bytes_depend_on_the_window_the_seed_and_the_number_of_shards_alone(
    create: Callable[[GraphSchema], GraphStore], feed: Feed, tmp_path: Path
) -> None:
    view = fill(create(SCHEMA), backwards=True)
    again = write_feed(view, tmp_path / "again", num_shards=8, hold_out=50)
    assert contents(again.path) == contents(feed.path)
    assert again.fingerprint == feed.fingerprint


def test_shards_are_cuts_of_one_order_and_another_seed_is_another_order(view: GraphView, tmp_path: Path) -> None:
    few, many, other = (
        all_records(write_feed(view, tmp_path / f"{shards}-{seed}", num_shards=shards, seed=seed))
        for shards, seed in ((1, 0), (13, 0), (13, 1))
    )
    assert few.tobytes() == many.tobytes()
    assert other.tobytes() != many.tobytes()
    assert sorted(other.tolist()) == sorted(many.tolist())


def test_what_is_held_out_is_joined_by_nothing_else_and_its_nodes_are_known(view: GraphView, feed: Feed) -> None:
    records, held = all_records(feed), feed.held_out()
    offsets = first_rows(feed.num_nodes)

    def nodes(part: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
        ends = [(offsets[relation.src], offsets[relation.dst]) for relation in feed.relations]
        return [(int(r["src"]) + ends[r["relation"]][0], int(r["dst"]) + ends[r["relation"]][1]) for r in part]

    assert 34 <= len(held) <= 50
    assert {name: int(np.sum(held["relation"] == number)) for number, name in enumerate(feed.num_held_out)} == feed.num_held_out
    assert all(feed.num_held_out[name] for name in ("clicks", "buys", "alike"))
    assert as_pairs(held).items() <= pairs_of(view).items()
    assert as_pairs(records).items() <= pairs_of(view).items()
    joined = {frozenset(ends) for ends in nodes(records)}
    assert not any(frozenset(ends) in joined for ends in nodes(held))
    known = {node for ends in nodes(records) for node in ends}
    assert known.issuperset(node for ends in nodes(held) for node in ends)
    # What is in neither part lies between the ends of a held-out pair.
    missing = pairs_of(view).keys() - as_pairs(records).keys() - as_pairs(held).keys()
    apart = np.array([(*key, 0, 0) for key in missing], feed.record)
    assert all(frozenset(ends) in {frozenset(other) for other in nodes(held)} for ends in nodes(apart))


def test_the_feed_knows_which_pairs_answer_the_queries_of_what_is_held_out(feed: Feed) -> None:
    records, held = all_records(feed), feed.held_out()
    heads = {(r["relation"], r["src"]) for r in held}
    tails = {(r["relation"], r["dst"]) for r in held}
    wanted = {
        (int(r["relation"]), int(r["src"]), int(r["dst"]))
        for r in records
        if (r["relation"], r["src"]) in heads or (r["relation"], r["dst"]) in tails
    }
    known = [tuple(map(int, record)) for record in feed.known()]
    assert wanted <= set(known)
    assert len(known) == len(set(known))
    assert set(known) <= {key[:3] for key in as_pairs(records)}


@pytest.mark.parametrize("max_counters", [1 << 20, 10])
def test_degrees_are_counted_by_relation_or_by_the_types_that_it_joins(feed: Feed, max_counters: int) -> None:
    records = all_records(feed)
    degrees = Degrees(feed.relations, feed.num_nodes, max_counters=max_counters)
    for part in np.array_split(records, 3):
        degrees.add(part["relation"], part["src"], part["dst"])
    arrays = degrees.to_arrays()
    groups = feed.degree_groups if degrees.by_relation else [0, 0, 1, 2, 3]
    assert degrees.by_relation == (max_counters > 10)
    for group in range(max(groups) + 1):
        chosen = np.isin(records["relation"], [number for number, other in enumerate(groups) if other == group])
        for end, column in (("head", "src"), ("tail", "dst")):
            rows, counts = np.unique(records[column][chosen], return_counts=True)
            assert arrays[f"{group}/{end}/rows"].tolist() == rows.tolist()
            assert arrays[f"{group}/{end}/counts"].tolist() == counts.tolist()
            if degrees.by_relation:
                assert [part.tolist() for part in feed.degrees(group, end)] == [rows.tolist(), counts.tolist()]


def test_a_finished_feed_is_left_as_it_is_and_another_is_refused(view: GraphView, tmp_path: Path) -> None:
    write_feed(view, tmp_path / "feed", num_shards=4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_feed(view, tmp_path / "feed", num_shards=4)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(GraphError, match="holds another feed \\(seed 0, not 3\\): name another folder"):
        write_feed(view, tmp_path / "feed", num_shards=4, seed=3)
    (tmp_path / "mine").mkdir()
    with pytest.raises(GraphError, match="is taken, and not by a whole feed"):
        write_feed(view, tmp_path / "mine", num_shards=4)


def test_a_shard_that_is_missing_cut_or_changed_is_refused(view: GraphView, tmp_path: Path) -> None:
    write_feed(view, tmp_path / "feed", num_shards=4)
    shard = tmp_path / "feed" / "shards" / "00002.edges"
    whole = shard.read_bytes()
    changed = bytearray(whole)
    changed[40] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(ArtifactError, match=r"shards/00002.edges: sha256 .* expected"):
        Feed.open(tmp_path / "feed")
    opened = Feed.open(tmp_path / "feed", verify=False)
    with opened.shard(2) as reader:
        reader.read(len(reader) - 1)
        with pytest.raises(ArtifactError, match="is not what its feed's manifest says"):
            reader.read(1)
    shard.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=r"shards/00002.edges: \d+ bytes, expected \d+"):
        Feed.open(tmp_path / "feed", verify=False)
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"shards/00002.edges: missing"):
        Feed.open(tmp_path / "feed", verify=False)
    with pytest.raises(ArtifactError, match="There is no artefact at"):
        Feed.open(tmp_path / "nothing")


def write_and_die(path: Path, folder: Path) -> None:
    add = Degrees.add

    def die_at_the_third(self: Degrees, *arrays: Any) -> None:
        if len(list(folder.glob(".feed.tmp-*/shards/*"))) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, *arrays)

    Degrees.add = die_at_the_third  # type: ignore[method-assign]
    with GraphStore.open(path, read_only=True) as store:
        write_feed(store.view(), folder / "feed", num_shards=4)


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_opens_and_the_next_one_sweeps_up(tmp_path: Path) -> None:
    path, folder = tmp_path / "graph.duckdb", tmp_path / "feeds"
    folder.mkdir()
    with GraphStore.create(path, SCHEMA) as store:
        fill(store)
    child = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(path, folder))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (left,) = folder.iterdir()
    assert left.name.startswith(".feed.tmp-")
    with pytest.raises(ArtifactError, match="There is no artefact"):
        Feed.open(folder / "feed")
    with pytest.raises(ArtifactError, match=r"manifest.json is missing"):
        Feed.open(left)
    with GraphStore.open(path, read_only=True) as store:
        write_feed(store.view(), folder / "feed", num_shards=4)
    assert [part.name for part in folder.iterdir()] == ["feed"]


def test_a_disk_that_takes_no_more_is_told_and_nothing_is_left(view: GraphView, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(GraphError, match=r"could not be written to .*, and nothing is left of it: File too large"):
            write_feed(view, tmp_path / "feed", num_shards=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_windows_without_edges_and_weights_below_zero_are_refused(
    create: Callable[[GraphSchema], GraphStore], tmp_path: Path
) -> None:
    store = create(SCHEMA)
    with pytest.raises(GraphError, match="there are no edges to feed"):
        write_feed(store.view(), tmp_path / "feed")
    for weight, message in ((0.0, "all edges of the window have weight zero"), (-1.0, "an edge has the weight -1")):
        store.load_edges("buys", pa.table({"src": [1], "dst": [int(weight)], "weight": [weight]}))
        with pytest.raises(GraphError, match=message):
            write_feed(store.view(), tmp_path / "feed")
    assert not (tmp_path / "feed").exists()
    with pytest.raises(ValueError, match="num_shards is 0; expected 1 or more"):
        write_feed(store.view(), tmp_path / "feed", num_shards=0)
    with pytest.raises(ValueError, match="max_fraction is 2; expected between 0 and 1"):
        write_feed(store.view(), tmp_path / "feed", max_fraction=2)


def test_types_and_relations_may_be_called_anything(create: Callable[[GraphSchema], GraphStore], tmp_path: Path) -> None:
    names = ["../../etc", 'a"b;\n', "päq/../x"]
    store = create(
        GraphSchema(
            nodes=(NodeType(name=names[0], id_type="string"), NodeType(name=names[1])),
            relations=(Relation(src=names[0], name=names[2], dst=names[1], timed=False),),
        )
    )
    store.load_edges(names[2], pa.table({"src": ["x", "y\x00z"], "dst": [1, 2]}))
    feed = write_feed(store.view(), tmp_path / "feed", num_shards=2)
    assert sorted(contents(feed.path))[-2:] == ["shards/00000.edges", "shards/00001.edges"]
    assert feed.num_edges == {names[2]: 2}
    assert feed.node_ids(names[0]).to_pylist() == store.view().node_ids(names[0]).to_pylist()
    assert feed.record.names == ("relation", "src", "dst")


def test_a_type_beyond_int32_has_wide_rows() -> None:
    relations = SCHEMA.relations[:1]
    assert record_of(relations, {"user": 1 << 31, "pin": 5})["src"] == np.int32
    wide = record_of(relations, {"user": 5, "pin": (1 << 31) + 1})
    assert (wide["src"], wide["dst"]) == (np.int64, np.int64)
