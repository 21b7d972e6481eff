"""Sharded tables over two gloo processes on 127.0.0.1: they are the one-process tables, cut."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from multifacet.tables import RowwiseAdagrad, Snapshot, accumulate_rows
from multifacet.training import ShardedTables, plan_by_rows
from multifacet.training.sharded_tables import local_size

NUM_ROWS = {"user": 37, "pin": 53, "advertiser": 3}
DIM, LR, NUM_STEPS, SEED = 8, 0.3, 20, 5


def batch(step: int, rank: int) -> dict[str, torch.Tensor]:
    """Rows of a step; the second process learns from no advertiser."""
    generator = np.random.default_rng((step, rank))
    drawn = {
        name: torch.from_numpy(generator.choice(count, size=min(count, 12), replace=False)) for name, count in NUM_ROWS.items()
    }
    if rank == 1:
        del drawn["advertiser"]
    return drawn


def loss_of(vectors: dict[str, torch.Tensor]) -> torch.Tensor:
    """A planted pair structure: the i-th user of a batch belongs to its i-th pin; and any loss over the third type."""
    scores = vectors["user"] @ vectors["pin"].t()
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))
    if "advertiser" in vectors:
        loss = loss + (vectors["advertiser"] - 1.0).square().mean()
    return loss


def learn(rank: int, world_size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    tables = ShardedTables(NUM_ROWS, dim=DIM, lr=LR, init_scale=0.5, seed=SEED)
    tables.write_snapshot(f"{folder}/start", facet="test", node_ids=lambda name: np.arange(NUM_ROWS[name]))
    for step in range(NUM_STEPS):
        tables.backward(loss_of(tables.gather(batch(step, rank))))
    owned = {name: [[first, len(rows)] for first, rows in tables.local_rows(name)] for name in NUM_ROWS}
    torch.save(owned, f"{folder}/owned-{rank}")
    tables.write_snapshot(f"{folder}/end", facet="test", node_ids=lambda name: np.arange(NUM_ROWS[name]))
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_two_processes_learn_what_one_does_with_both_batches(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multifacet.training.sharded_tables"])
    processes = [
        context.Process(target=learn, args=(rank, 2, port, str(tmp_path))) for port in [free_port()] for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for name, count in NUM_ROWS.items():
        ranges = sorted(part for rank in (0, 1) for part in torch.load(tmp_path / f"owned-{rank}")[name])
        assert sum(size for _, size in ranges) == count
        assert all(size < count for _, size in ranges), "one process owns a whole table"

    # The reference: the same start, the mean of both processes' losses, this project's own row-wise Adagrad.
    tables = {name: Snapshot.load(tmp_path / "start").vectors(name).clone() for name in NUM_ROWS}
    optimizers = {name: RowwiseAdagrad(count, LR) for name, count in NUM_ROWS.items()}
    for step in range(NUM_STEPS):
        leaves = [{name: tables[name][rows].requires_grad_() for name, rows in batch(step, rank).items()} for rank in (0, 1)]
        torch.stack([loss_of(part) for part in leaves]).mean().backward()
        for name in NUM_ROWS:
            parts = [(batch(step, rank)[name].int(), leaf[name].grad) for rank, leaf in enumerate(leaves) if name in leaf]
            rows, gradients = accumulate_rows(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
            optimizers[name].step(tables[name], rows, gradients)
    end = Snapshot.load(tmp_path / "end")
    for name, expected in tables.items():
        # Both sum at most 24 float32 gradients a row and step, in another order: 20 steps of relative 1e-6 each.
        torch.testing.assert_close(end.vectors(name), expected, rtol=2e-5, atol=2e-5)
        assert not torch.allclose(expected, Snapshot.load(tmp_path / "start").vectors(name), atol=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end", "owned-0", "owned-1", "start"]


def test_a_missing_process_group_is_named() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        ShardedTables(NUM_ROWS, dim=DIM, lr=LR, init_scale=0.5, seed=SEED)


@pytest.fixture
def sixteen_processes() -> Iterator[None]:
    """This process as the tenth of a group of sixteen that never talk."""
    dist.init_process_group("fake", store=FakeStore(), rank=9, world_size=16)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("per_host", "last"), [(8, "cuda:7"), (16, "cuda:15"), (1, "cuda:0")])
def test_a_process_has_a_device_of_its_own_host(
    sixteen_processes: None, monkeypatch: pytest.MonkeyPatch, per_host: int, last: str
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_host))
    config = EmbeddingConfig(name="user", embedding_dim=DIM, num_embeddings=160, feature_names=["user"])
    collection = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    shards = plan_by_rows(collection, ["user"], "cuda")["user"].sharding_spec.shards
    assert [shard.shard_offsets[0] for shard in shards] == list(range(0, 160, 10))
    devices = [str(shard.placement.device()) for shard in shards]
    assert devices == [f"cuda:{rank % per_host}" for rank in range(16)]
    assert devices[-1] == last


def test_hosts_of_unequal_sizes_are_refused(sixteen_processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "6")
    with pytest.raises(ValueError, match="LOCAL_WORLD_SIZE is 6 and there are 16 processes"):
        local_size()
