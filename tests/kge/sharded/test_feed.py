"""Processes that train together, each from its own shards of a feed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import kge
from multifacet.graphdb import Feed, GraphSchema, GraphStore, NodeType, Relation, write_feed
from multifacet.kge import KgeConfig
from multifacet.kge.batches.batch import Batch, BatchSide
from multifacet.kge.batches.chunks import ChunkCandidates
from multifacet.kge.batches.feed_source import FeedSource
from multifacet.kge.sampled.trainer import Trainer
from multifacet.kge.sharded.trainer import ShardedTrainer
from multifacet.kge.triples.feeds import FeedSplit
from multifacet.tables.optim import Occurrences
from multifacet.training import CheckpointError, Lanes, Lifecycle, StepProgress, WarmStart

from .processes import run_processes

NUM_USERS, NUM_PINS = 90, 60
CONFIG = KgeConfig.model_validate(
    {
        "model": "complex",
        "dim": 8,
        "epochs": 3,
        "batch_size": 48,
        "chunk_size": 8,
        "num_uniform": 6,
        "num_degree": 4,
        "init_scale": 0.3,
        "lr": 0.1,
        "reciprocal": True,
        "lr_schedule": "linear",
    }
)


def write(folder: Path, *, with_makers: bool) -> Feed:
    """Users click and save pins of their own third; each pin may have a maker."""
    schema = GraphSchema(
        nodes=(NodeType(name="user", id_type="string"), NodeType(name="pin"), NodeType(name="maker")),
        relations=(
            Relation(src="user", name="clicks", dst="pin", timed=False),
            Relation(src="user", name="saves", dst="pin", timed=False),
            Relation(src="pin", name="made_by", dst="maker", timed=False),
        ),
    )
    random = np.random.default_rng(0)
    with GraphStore.create(folder / "graph.duckdb", schema) as store:
        for name, count in (("clicks", 1500), ("saves", 400)):
            users = random.integers(0, NUM_USERS, count)
            pins = users % 3 + 3 * random.integers(0, NUM_PINS // 3, count)
            store.load_edges(name, pa.table({"src": [f"u{user}" for user in users], "dst": pins}))
        if with_makers:
            store.load_edges("made_by", pa.table({"src": np.arange(NUM_PINS), "dst": np.arange(NUM_PINS) % 3}))
        relations = None if with_makers else ["clicks", "saves"]
        return write_feed(store.view(relations=relations), folder / "feed", num_shards=11, hold_out=60)


def learn_one_epoch(rank: int, folder: Path) -> None:
    feed = Feed.open(folder / "feed", verify=False)
    source = FeedSource(feed, CONFIG, rank=rank, world_size=2, tells_places=False, buffer_edges=200)
    trainer = ShardedTrainer(FeedSplit.of(feed), CONFIG, np.random.default_rng(0), folder=folder, source=source)
    kept: dict[str, Any] = {}
    for moment in ("start", "end"):
        if moment == "end":
            kept["row"] = trainer.run_epoch()
        predictor = trainer.predictor()
        kept[moment] = {name: table.clone() for name, table in predictor.vectors.items()}, predictor.relations.table.clone()
    torch.save(kept, folder / f"kept-{rank}")


def joined(parts: list[Batch], source: FeedSource) -> Batch:
    """The batches of both processes as one."""
    sides = []
    for position in range(2):
        each = [batch.sides[position] for batch in parts]
        candidates = ChunkCandidates(
            **{name: np.concatenate([getattr(side.candidates, name) for side in each]) for name in ("rows", "targets", "bias")}
        )
        rows = np.concatenate([side.rows for side in each]).astype(np.int32)
        keys = np.concatenate([side.keys for side in each])
        sides.append(BatchSide(side=each[0].side, rows=rows, keys=keys, candidates=candidates))
    weights = np.concatenate([batch.weights for batch in parts])
    (draws,) = source._draws.values()
    rows, keys = draws._name_places((weights > 0).sum(1).astype(np.int32), (sides[0], sides[1]))
    return Batch(
        num_edges=sum(batch.num_edges for batch in parts),
        weights=weights,
        sides=(sides[0], sides[1]),
        rows=Occurrences.of(rows, draws.scratch.slot_of_row),
        keys=Occurrences.of(keys, draws.scratch.slot_of_key),
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_batches_of_both(tmp_path: Path) -> None:
    feed = write(tmp_path, with_makers=False)
    run_processes(learn_one_epoch, tmp_path)

    first, second = (torch.load(tmp_path / f"kept-{rank}") for rank in (0, 1))
    whole = FeedSource(feed, CONFIG)
    one = Trainer(FeedSplit.of(feed), CONFIG, np.random.default_rng(0), source=whole)
    for name, table in one.state.tables.items():
        table.copy_(first["start"][0][name])
    one.state.relations.table.copy_(first["start"][1])
    key = int(one.state.position.begin_epoch(lambda generator: generator.integers(1 << 62)))
    sources = [FeedSource(feed, CONFIG, rank=rank, world_size=2, buffer_edges=200) for rank in range(2)]
    counts = [source.count_steps(key, rank) for rank, source in enumerate(sources)]
    assert counts[0] != counts[1]  # 11 shards: one process has none left while the other goes on
    one._num_steps = max(counts)

    def batches(source: FeedSource) -> Iterator[Batch]:
        return (source.draw(planned, source.generator(key, step)) for step, planned in enumerate(source.plan(key)))

    with Lanes() as lanes:
        for parts in zip_longest(*map(batches, sources)):
            batch = joined([part for part in parts if part is not None], whole)
            one.state.position.add(loss=one.learn(batch, lanes), examples=batch.num_edges)
    totals = one.state.position.end_epoch()

    assert totals["examples"] == sum(feed.num_edges.values())
    for kept in (first, second):
        assert kept["row"]["loss"] == pytest.approx(totals["loss"] / totals["examples"], rel=1e-4)
        torch.testing.assert_close(kept["end"][1], one.state.relations.table, rtol=1e-3, atol=1e-4)
        for name, table in one.state.tables.items():
            torch.testing.assert_close(kept["end"][0][name], table, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(first["end"][0]["user"], first["start"][0]["user"], atol=0.05)


def train_together(rank: int, folder: Path) -> None:
    """A whole training, the same again, one that is stopped in its second epoch, and one that fails between two epochs."""
    feed = Feed.open(folder / "feed", verify=False)
    whole, again = (kge.train(feed, CONFIG) for _ in range(2))
    stop = threading.Event()

    def on_step(progress: StepProgress) -> None:
        if rank == 1 and (progress.epoch, progress.step) == (1, 6):
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        kge.train(feed, CONFIG, lifecycle=Lifecycle(checkpoint=folder / "inside", on_step=on_step, stop=stop))
    resumed = kge.train(feed, CONFIG, lifecycle=Lifecycle(checkpoint=folder / "inside", resume=True))
    for other in (again, resumed):
        assert other.metrics == whole.metrics
        for name, vectors in whole.vectors.items():
            assert torch.equal(other.vectors[name], vectors)
    stop.clear()
    with pytest.raises(KeyboardInterrupt):
        kge.train(feed, CONFIG, lifecycle=Lifecycle(checkpoint=folder / "left", on_step=on_step, stop=stop))

    def fail(row: Mapping[str, float]) -> None:
        raise RuntimeError(f"killed after epoch {row['epoch']:g}")

    with pytest.raises(RuntimeError, match="killed after epoch 1"):
        kge.train(feed, CONFIG, progress=fail, lifecycle=Lifecycle(checkpoint=folder / "between"))
    if rank == 0:
        whole.write_snapshot(folder / "snapshot", feed)
    torch.save({"metrics": whole.metrics, "loss": whole.history[-1]["loss"]}, folder / f"whole-{rank}")


def go_on_as_three(rank: int, folder: Path) -> None:
    """Resume what two processes have left, and start from what they have learned."""
    feed = Feed.open(folder / "feed", verify=False)
    with pytest.raises(CheckpointError, match=r"whose shards were dealt out to 2 processes, and there are 3: resume with 2"):
        kge.train(feed, CONFIG, lifecycle=Lifecycle(checkpoint=folder / "left", resume=True))
    resumed = kge.train(feed, CONFIG, lifecycle=Lifecycle(checkpoint=folder / "between", resume=True))
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]
    config = CONFIG.model_copy(update={"epochs": 1, "lr": 1e-9, "relation_lr": 1e-9})
    warm = WarmStart.load(folder / "snapshot", new_rows="mean")
    started = kge.train(feed, config, lifecycle=Lifecycle(warm_start=warm))
    for name, vectors in started.vectors.items():
        trained = warm.snapshot.trained(name)
        chosen = torch.ones(len(vectors), dtype=torch.bool) if trained is None else trained
        assert torch.allclose(vectors[chosen], warm.snapshot.vectors(name)[chosen], atol=1e-5)
    with pytest.raises(ValueError, match=r"pull=0.5: not for tables that are shared out to 3 processes"):
        kge.train(feed, config, lifecycle=Lifecycle(warm_start=WarmStart.load(folder / "snapshot", pull=0.5)))
    torch.save({"metrics": resumed.metrics, "loss": started.history[0]["loss"]}, folder / f"three-{rank}")


@pytest.mark.slow
def test_groups_stop_go_on_and_start_from_each_other(tmp_path: Path) -> None:
    write(tmp_path, with_makers=True)
    run_processes(train_together, tmp_path)
    run_processes(go_on_as_three, tmp_path, world_size=3)

    two = [torch.load(tmp_path / f"whole-{rank}") for rank in range(2)]
    three = [torch.load(tmp_path / f"three-{rank}") for rank in range(3)]
    assert two[0] == two[1]
    assert three[0] == three[1] == three[2]
    assert two[0]["metrics"]["filtered_mrr"] > 0.15
    assert three[0]["metrics"]["filtered_mrr"] > 0.15
    assert three[0]["loss"] < two[0]["loss"]
