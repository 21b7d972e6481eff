"""Tables in partitions: what is in which bucket, that one partition is the ordinary training, and that four learn as well."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet import kge
from multifacet.kge import KgeConfig, KgeValidation, TripleSet, TripleSplit
from multifacet.kge.partitioned.buckets import EdgeBuckets, count_partitions, visit_pairs
from multifacet.kge.partitioned.trainer import PartitionedTrainer
from multifacet.kge.sampled.trainer import Trainer
from multifacet.training import Checkpoint, Lifecycle, StepProgress

NUM_GROUPS, GROUP = 200, 21


def planted(num_edges: int = 30_000) -> TripleSplit:
    """Users click pins of their own group, of which an advertiser has each; 4200 users and pins, 200 advertisers."""
    random = np.random.default_rng(1)
    users = random.integers(0, NUM_GROUPS * GROUP, num_edges)
    pins = users % NUM_GROUPS + NUM_GROUPS * random.integers(0, GROUP, num_edges)
    every = np.arange(NUM_GROUPS * GROUP)
    triples = TripleSet(
        heads=np.concatenate([users, every]).astype(np.int32),
        relations=np.repeat(np.int32([0, 1]), [num_edges, len(every)]),
        tails=np.concatenate([pins, every % NUM_GROUPS]).astype(np.int32),
        relation_names=("clicks", "made_by"),
        ends={"clicks": ("user", "pin"), "made_by": ("pin", "advertiser")},
        num_nodes={"user": NUM_GROUPS * GROUP, "pin": NUM_GROUPS * GROUP, "advertiser": NUM_GROUPS},
    ).distinct()
    return triples.hold_out(KgeValidation(num_edges=600), random)


CONFIG = KgeConfig(model="distmult", dim=16, epochs=3, batch_size=256, chunk_size=64, num_uniform=32, num_degree=16)


@given(num_partitions=st.integers(1, 9))
@settings(max_examples=9, deadline=None)
def test_every_pair_is_visited_once_and_one_partition_is_exchanged_at_a_time(num_partitions: int) -> None:
    pairs = visit_pairs(num_partitions)
    everything = {(a, b) for a in range(num_partitions) for b in range(a + 1, num_partitions)} or {(0, 0)}
    assert sorted(tuple(sorted(pair)) for pair in pairs) == sorted(everything)
    for before, after in itertools.pairwise(pairs):
        assert len(set(before) & set(after)) == 1


@pytest.mark.parametrize("num_partitions", [1, 2, 4, 5])
def test_buckets_hold_every_triple_once_by_rows_that_are_in_memory(num_partitions: int) -> None:
    triples = planted(3000).train
    buckets = EdgeBuckets.of(triples, num_partitions, seed=0, min_rows=100)
    assert buckets.partitioned == ({"user", "pin", "advertiser"} if num_partitions <= 2 else {"user", "pin"})
    rows = {name: -(-count // num_partitions) for name, count in triples.num_nodes.items()}

    def to_global(local: TripleSet, column: np.ndarray, end: int, slots: tuple[int, int]) -> list[int]:
        kinds = [local.ends[local.relation_names[number]][end] for number in local.relations]
        return [
            row % rows[kind] * num_partitions + slots[row // rows[kind]] if kind in buckets.partitioned else row
            for row, kind in zip(column.tolist(), kinds, strict=True)
        ]

    found: dict[int, list[tuple[int, int, int]]] = {0: [], 1: []}
    for pair in visit_pairs(num_partitions):
        for number, slots in enumerate((pair, pair[::-1])):
            local = buckets.local(slots)
            ends = to_global(local, local.heads, 0, slots), local.relations.tolist(), to_global(local, local.tails, 1, slots)
            found[number] += zip(*ends, strict=True)
    everything = sorted(zip(triples.heads.tolist(), triples.relations.tolist(), triples.tails.tolist(), strict=True))
    assert sorted(found[0]) == sorted(found[1]) == everything
    sizes = [buckets.size(pair) for pair in visit_pairs(num_partitions)]
    assert max(sizes) < 1.3 * len(triples) / len(sizes)


def test_the_limit_says_how_many_partitions() -> None:
    sizes = {"user": 1_000_000, "advertiser": 5}
    row_bytes = 4 * 65
    total = 1_000_005 * row_bytes / 1e9

    def count(limit: float | None) -> int:
        return count_partitions(sizes, 64, partitions=None, memory_limit_gb=limit)

    assert [count(None), count(total), count(0.81 * total), count(0.79 * total), count(0.1 * total)] == [1, 1, 5, 6, 41]
    assert count_partitions(sizes, 64, partitions=7, memory_limit_gb=None) == 7
    with pytest.raises(ValueError, match="too small"):
        count(1e-4)


def test_one_partition_gives_the_bits_of_the_ordinary_training(tmp_path: Path) -> None:
    split = planted()
    ordinary = Trainer(split, CONFIG, np.random.default_rng(0))
    one = PartitionedTrainer(split, CONFIG, np.random.default_rng(0), num_partitions=1, folder=tmp_path / "tables")
    for _ in range(2):
        left, right = ordinary.run_epoch(), one.run_epoch()
        assert (left["loss"], left["epoch"]) == (right["loss"], right["epoch"])
    vectors = one.predictor().vectors
    for node_type, table in ordinary.state.tables.items():
        assert torch.equal(vectors[node_type], table)
    for node_type, squares in ordinary.state.row_squares().items():
        assert torch.equal(one.state.row_squares()[node_type], squares)
    one.close()
    assert not (tmp_path / "tables").exists()
    assert torch.equal(vectors["user"], ordinary.state.tables["user"])


@pytest.mark.slow
def test_four_partitions_learn_what_one_does() -> None:
    split = planted()
    config = CONFIG.model_copy(update={"epochs": 12, "validation": KgeValidation(every=12)})
    whole = kge.train_triples(split, config)
    cut = kge.train_triples(split, config.model_copy(update={"partitions": 4}))

    assert whole.metrics["filtered_mrr"] > 0.1  # by chance: 0.002
    assert cut.metrics["filtered_mrr"] == pytest.approx(whole.metrics["filtered_mrr"], abs=0.01)
    assert cut.metrics["filtered_mrr"] == cut.history[-1]["filtered_mrr"]
    assert {name: table.shape for name, table in cut.vectors.items()} == {n: t.shape for n, t in whole.vectors.items()}
    # No row of the ordinary initialisation is left where its partition was never written back.
    drawn = torch.Generator().manual_seed(config.seed)
    for node_type, count in split.train.num_nodes.items():
        first = torch.empty(count, config.dim).normal_(std=config.init_scale, generator=drawn)
        ends = {"user": ("heads", 0), "pin": ("tails", 0), "advertiser": ("tails", 1)}[node_type]
        seen = np.unique(getattr(split.train, ends[0])[split.train.relations == ends[1]])
        moved = (cut.vectors[node_type] != first).any(1)
        assert bool(moved[seen].all())
        assert bool((cut.adagrad[node_type][seen] > 0).all())


@pytest.mark.parametrize("stop_at", [(0, 30), (2, 50)])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, stop_at: tuple[int, int]) -> None:
    split, config = planted(12_000), CONFIG.model_copy(update={"partitions": 4, "lr_schedule": "linear"})
    whole = kge.train_triples(split, config)
    stop = threading.Event()

    def on_step(progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == stop_at:
            stop.set()

    life = Lifecycle(checkpoint=tmp_path / "state", every_seconds=0.05, on_step=on_step, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        kge.train_triples(split, config, lifecycle=life)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    resumed = kge.train_triples(split, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", resume=True))
    assert resumed.metrics == whole.metrics
    for node_type, vectors in whole.vectors.items():
        assert torch.equal(resumed.vectors[node_type], vectors)
        assert torch.equal(resumed.adagrad[node_type], whole.adagrad[node_type])


def _train_until_killed(folder: str) -> None:
    torch.set_num_threads(1)
    life = Lifecycle(checkpoint=Path(folder) / "state", every_seconds=0.02, resume=True)
    kge.train_triples(planted(12_000), CONFIG.model_copy(update={"partitions": 4}), lifecycle=life)


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multifacet.kge.training"])
    process = context.Process(target=_train_until_killed, args=(str(tmp_path),))
    process.start()
    wait_until(lambda: (tmp_path / "state").exists() or not process.is_alive())
    time.sleep(0.1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    position = Checkpoint.load(tmp_path / "state").fields["position"]
    assert (position["epoch"], position["step"]) > (0, 0)
    config = CONFIG.model_copy(update={"partitions": 4})
    split = planted(12_000)
    resumed = kge.train_triples(split, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", resume=True))
    whole = kge.train_triples(split, config)
    for node_type, vectors in whole.vectors.items():
        assert torch.equal(resumed.vectors[node_type], vectors)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_partitions_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    for wrong, match in (
        ({"partitions": 2, "memory_limit_gb": 1.0}, "give one of them"),
        ({"partitions": 2, "max_edges_per_relation": 5}, "max_edges_per_relation"),
        ({"partitions": 2, "validation": {"patience": 1}}, "patience"),
        ({"partitions": 2, "full_softmax": {}}, "partitions=2"),
    ):
        with pytest.raises(ValueError, match=match):
            KgeConfig.model_validate(wrong)
    split = planted(3000)
    small = replace(split.train, num_nodes=dict.fromkeys(split.train.num_nodes, 4200))
    with pytest.raises(ValueError, match=r"set partitions=1"):
        PartitionedTrainer(
            TripleSplit(train=small, valid=small.take(slice(0)), test=small.take(slice(0))),
            CONFIG,
            np.random.default_rng(0),
            num_partitions=8,
            folder=tmp_path / "tables",
        )
