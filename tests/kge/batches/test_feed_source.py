"""Trainings from a feed: the batches of one process, and what they are held to."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import kge
from multifacet.artifacts import ArtifactError
from multifacet.graphdb import Feed, GraphSchema, GraphStore, GraphView, NodeType, Relation, write_feed
from multifacet.kge import KgeConfig, TripleSet, TripleSplit
from multifacet.kge.batches.feed_source import FeedSource
from multifacet.kge.batches.source import BatchSource
from multifacet.kge.sampled.trainer import Trainer
from multifacet.kge.triples.feeds import FeedSplit
from multifacet.tables import Snapshot
from multifacet.training import CheckpointError, Lanes, Lifecycle, Position, StepProgress, WarmStart

NUM_USERS, NUM_PINS = 80, 48
BASE: dict[str, Any] = {
    "dim": 8,
    "rank": 2,
    "epochs": 3,
    "batch_size": 64,
    "chunk_size": 16,
    "num_uniform": 9,
    "num_degree": 5,
    "init_scale": 0.3,
    "lr": 0.1,
}
CASES: dict[str, dict[str, Any]] = {
    "softmax": {"model": "complex", "reciprocal": True, "n3": 0.1, "dropout": 0.3, "lr_schedule": "linear"},
    "weighed": {"model": "distmult", "relation_weights": {"clicks": 0.5}, "table_dtype": "bf16"},
    "projected": {"model": "transra", "loss": "margin", "margin": 2.0},
}


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphView]:
    """Users click and save pins of their own third, each pin of one of three advertisers."""
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="advertiser", id_type="string")),
        relations=(
            Relation(src="user", name="clicks", dst="pin", timed=False),
            Relation(src="user", name="saves", dst="pin", timed=False),
            Relation(src="pin", name="made_by", dst="advertiser", timed=False),
            Relation(src="user", name="hides", dst="pin", timed=False),  # of which there is none
        ),
    )
    random = np.random.default_rng(0)
    with GraphStore.create(tmp_path_factory.mktemp("planted") / "graph.duckdb", schema) as store:
        for name, count in (("clicks", 1200), ("saves", 500)):
            users = random.integers(0, NUM_USERS, count)
            pins = users % 3 + 3 * random.integers(0, NUM_PINS // 3, count)
            store.load_edges(name, pa.table({"src": users, "dst": pins}))
        every = np.arange(NUM_PINS)
        store.load_edges("made_by", pa.table({"src": every, "dst": [f"a{pin % 3}" for pin in every]}))
        yield store.view()


@pytest.fixture(scope="module")
def feed(view: GraphView, tmp_path_factory: pytest.TempPathFactory) -> Feed:
    return write_feed(view, tmp_path_factory.mktemp("feed") / "feed", num_shards=12, hold_out=60)


def in_memory(feed: Feed) -> TripleSplit:
    """The feed's triples, in its order."""
    parts = []
    for number in range(feed.num_shards):
        with feed.shard(number) as shard:
            parts.append(shard.read(len(shard)))
    split = FeedSplit.of(feed)
    return TripleSplit(train=split.train.gathered(np.concatenate(parts)), valid=split.valid, test=split.valid.take(slice(0)))


def small_source(feed: Feed, config: KgeConfig, **settings: Any) -> FeedSource:
    """A source whose buffer holds a part of the feed."""
    return FeedSource(feed, config, buffer_edges=250, num_open=3, **settings)


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_has_each_triple_once_in_full_batches_of_one_pair_of_types(feed: Feed, case: str) -> None:
    source = small_source(feed, KgeConfig.model_validate(BASE | CASES[case]))
    orders = []
    for key in (5, 6):
        seen: list[tuple[int, ...]] = []
        num_full, planned = 0, list(source.plan(key))
        for pool, edges, positions, bounds in planned:
            triples = np.stack([column[positions] for column in edges], axis=1)
            assert {("clicks", "saves", "made_by")[number] == "made_by" for number in triples[:, 0]} == {pool == 1}
            assert (np.diff(bounds) <= 16).all()
            if not source.mixes_relations:
                assert all(len(set(triples[begin:end, 0])) == 1 for begin, end in itertools.pairwise(bounds))
            num_full += len(positions) == 64
            seen += map(tuple, triples.tolist())
        train = in_memory(feed).train
        wanted = np.stack([train.relations, train.heads, train.tails], axis=1)
        assert Counter(seen) == Counter(map(tuple, wanted.tolist()))
        assert len(planned) == source.count_steps(key, 0)
        assert num_full >= len(planned) - 6
        orders.append(seen)
    assert orders[0] != orders[1]
    assert orders[0] == [
        tuple(row)
        for _, edges, positions, _ in source.plan(5)
        for row in np.stack([column[positions] for column in edges], axis=1).tolist()
    ]


@pytest.mark.parametrize("case", CASES)
def test_one_process_learns_from_a_feed_what_it_learns_from_the_same_batches_in_memory(feed: Feed, case: str) -> None:
    config = KgeConfig.model_validate(BASE | CASES[case])
    source = small_source(feed, config)
    streamed = Trainer(FeedSplit.of(feed), config, np.random.default_rng(0), source=source)
    split = in_memory(feed)
    own = Trainer(split, config, np.random.default_rng(0))
    assert isinstance(own.source, BatchSource)
    places = places_of(own.source, split.train)
    for epoch in range(2):
        key = int(own.state.position.begin_epoch(lambda generator: generator.integers(1 << 62)))
        own._num_steps = source.count_steps(key, 0)
        with Lanes() as lanes:
            for step, planned in enumerate(source.plan(key)):
                triples = (column[planned.positions].tolist() for column in planned.edges)
                pool, positions = zip(*(places[triple] for triple in zip(*triples, strict=True)), strict=True)
                assert len(set(pool)) == 1
                batch = own.source.draw(pool[0], np.array(positions), planned.bounds, source.generator(key, step))
                own.state.position.add(loss=own.learn(batch, lanes), examples=batch.num_edges)
        totals = own.state.position.end_epoch()
        row = streamed.run_epoch()
        assert row["loss"] == totals["loss"] / totals["examples"]
        assert row["epoch"] == epoch + 1
    for name, table in own.state.tables.items():
        assert torch.equal(streamed.state.tables[name], table)
        assert torch.equal(streamed.state.optimizers[name].state, own.state.optimizers[name].state)
    assert torch.equal(streamed.state.relations.table, own.state.relations.table)


def places_of(source: BatchSource, train: TripleSet) -> dict[tuple[int, ...], tuple[int, int]]:
    """Relation, head and tail -> the pool of a source in memory, and the position in it."""
    places = {}
    for number, pool in enumerate(source._pools):
        columns = (pool.relations, pool.columns["head"], pool.columns["tail"])
        for position, triple in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            places[triple] = number, position
    assert len(places) == len(train)
    return places


def test_rows_lie_in_their_types_also_where_a_chunk_is_padded(feed: Feed) -> None:
    source = FeedSource(feed, KgeConfig.model_validate(BASE | CASES["softmax"]))
    num_nodes = feed.num_nodes
    ends = {"user": (0, NUM_USERS), "pin": (NUM_USERS, NUM_USERS + NUM_PINS)}
    ends["advertiser"] = (ends["pin"][1], ends["pin"][1] + 3)
    assert sum(num_nodes.values()) == ends["advertiser"][1]
    num_padded = 0
    for seed in range(5):
        for batch in source.begin_epoch(Position(generator=np.random.default_rng(seed))).batches:
            num_padded += int((batch.weights == 0).any())
            types = ("pin", "advertiser") if (batch.sides[0].keys == 2).all() else ("user", "pin")
            for side, known, asked in ((batch.sides[0], *types), (batch.sides[1], *types[::-1])):
                for rows, name in ((side.known, known), (side.candidates.rows, asked)):
                    assert ends[name][0] <= rows.min()
                    assert rows.max() < ends[name][1]
    assert num_padded >= 10


def test_training_from_a_feed_validates_as_in_memory_and_its_snapshot_names_its_window(
    view: GraphView, feed: Feed, tmp_path: Path
) -> None:
    config = KgeConfig.model_validate(BASE | CASES["softmax"] | {"dropout": 0.0})
    result = kge.train(feed, config)
    split = in_memory(feed)
    known = kge.known_pairs(*split)
    again = kge.evaluate(result.predictor(), split.valid.edges(), known)
    assert {name: result.metrics[name] for name in again} == again
    assert result.metrics["num_held_out"] == len(split.valid) > 30
    peer = kge.train_triples(split, config)
    assert result.metrics["filtered_mrr"] > 0.8 * peer.metrics["filtered_mrr"] > 0.15
    snapshot = result.write_snapshot(tmp_path / "snapshot", feed)
    assert snapshot.parents == (view.fingerprint,)
    assert snapshot.window["feed"] == feed.fingerprint
    assert snapshot.ids("advertiser").to_pylist() == ["a0", "a1", "a2"]
    warm = WarmStart.load(tmp_path / "snapshot")
    assert warm.snapshot.fingerprint == Snapshot.load(tmp_path / "snapshot").fingerprint
    gone_on = kge.train(feed, config.model_copy(update={"epochs": 1}), lifecycle=Lifecycle(warm_start=warm))
    assert gone_on.history[0]["loss"] < 0.9 * result.history[0]["loss"]


def test_a_training_that_is_stopped_in_an_epoch_goes_on_with_the_same_bits(feed: Feed, tmp_path: Path) -> None:
    config = KgeConfig.model_validate(BASE | CASES["softmax"])
    whole = kge.train(feed, config)
    stop = threading.Event()

    def on_step(progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == (1, 7):
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        kge.train(feed, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", on_step=on_step, stop=stop))
    resumed = kge.train(feed, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", resume=True))
    assert resumed.metrics == whole.metrics
    for name, vectors in whole.vectors.items():
        assert torch.equal(resumed.vectors[name], vectors)


def test_an_epoch_that_was_dealt_out_to_others_is_not_gone_on_with(feed: Feed) -> None:
    config = KgeConfig.model_validate(BASE | CASES["softmax"])
    trainer = Trainer(FeedSplit.of(feed), config, np.random.default_rng(0), source=small_source(feed, config))
    saved = trainer.state.save()
    trainer.state.num_readers = 3
    trainer.state.restore(saved)  # between two epochs any number will do
    trainer.state.position.step = 5
    with pytest.raises(CheckpointError, match="whose shards were dealt out to 1 processes, and there are 3: resume with 1"):
        trainer.state.restore(saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"full_softmax": {}}, "full_softmax=.*: needs all edges in memory, which a feed has not"),
        ({"partitions": 2}, "partitions=2: needs"),
        ({"memory_limit_gb": 1.0}, "memory_limit_gb=1.0: needs"),
        ({"mask_known": True}, "mask_known=True: needs"),
        ({"max_edges_per_relation": 5}, "max_edges_per_relation=5: needs"),
        ({"preset": "auto"}, "preset='auto': needs"),
        ({"relation_weights": {"sells": 2.0}}, r"relation_weights names \['sells'\], but the feed has"),
        ({"relation_weights": {"clicks": 0.0}}, r"relation_weights leaves \['clicks'\] out"),
    ],
)
def test_what_needs_all_edges_is_refused_by_name(feed: Feed, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kge.train(feed, KgeConfig.model_validate({"dim": 4} | settings))


def test_weights_are_refused_where_the_feed_has_them(feed: Feed, tmp_path: Path) -> None:
    config = KgeConfig(dim=4, epochs=1, distinct_edges=False)
    kge.train(feed, config)  # no pair of this window stands there twice
    schema = GraphSchema(nodes=(NodeType(name="user"),), relations=(Relation(src="user", name="knows", dst="user"),))
    with GraphStore.create(tmp_path / "graph.duckdb", schema) as store:
        times = pa.array([1, 2]).cast(pa.timestamp("us"))
        store.load_edges("knows", pa.table({"src": [1, 1], "dst": [2, 2], "time": times}))
        timed = write_feed(store.view(), tmp_path / "feed", num_shards=2)
    with pytest.raises(ValueError, match="distinct_edges=False learns from an edge as often as its weight says"):
        kge.train(timed, config)


def test_a_shard_that_changes_under_a_training_stops_it(view: GraphView, tmp_path: Path) -> None:
    feed = write_feed(view, tmp_path / "feed", num_shards=3)
    shard = feed.path / "shards" / "00001.edges"
    changed = bytearray(shard.read_bytes())
    changed[1] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(ArtifactError, match=r"00001.edges is not what its feed's manifest says"):
        kge.train(feed, KgeConfig(dim=4, epochs=1))


def test_three_processes_share_the_triples_out_and_all_take_as_many_steps(feed: Feed) -> None:
    config = KgeConfig.model_validate(BASE | CASES["softmax"] | {"batch_size": 48})
    sources = [small_source(feed, config, rank=rank, world_size=3, tells_places=False) for rank in range(3)]
    epochs = [source.begin_epoch(Position(generator=np.random.default_rng(4))) for source in sources]
    batches = [list(epoch.batches) for epoch in epochs]
    assert {len(part) for part in batches} == {epoch.num_steps for epoch in epochs}
    assert sum(batch.num_edges for part in batches for batch in part) == sum(feed.num_edges.values())
    # A full batch of each process has a third of the weight.
    assert batches[0][0].weights.sum() == pytest.approx(1 / 3)
    assert batches[0][0].sides[0].rows.dtype == np.int64
    negatives = [part[0].sides[0].candidates.rows[:, 16:].tolist() for part in batches]
    assert negatives[0] != negatives[1]
    with pytest.raises(ValueError, match="which 3 processes cannot share evenly: set batch_size to a multiple of 48"):
        small_source(feed, config.model_copy(update={"batch_size": 64}), rank=0, world_size=3)
