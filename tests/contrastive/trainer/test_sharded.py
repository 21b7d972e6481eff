"""Training on tables that two gloo processes share: what one process does, by another statement of the losses."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from multifacet.contrastive import ContrastiveConfig, Positives, train_pairs
from multifacet.contrastive.candidates.candidates import Slots
from multifacet.contrastive.objective.differentiable import sum_losses
from multifacet.contrastive.objective.losses import LossName, ScoreLoss
from multifacet.contrastive.trainer.sharded import ShardedState, ShardedTrainer
from multifacet.contrastive.trainer.towers import Tower
from multifacet.contrastive.trainer.trainer import Trainer

NUM_USERS, NUM_PINS, NUM_ADVERTISERS = 60, 45, 6
BASE: dict[str, Any] = {
    "dim": 8,
    "epochs": 2,
    "batch_size": 32,
    "num_uniform": 8,
    "num_degree": 6,
    "init_scale": 0.3,
    "lr": 0.1,
}
CASES: dict[str, dict[str, Any]] = {
    "softmax": {"temperature": 0.3, "temperature_lr": 0.05, "queue_size": 16},
    "history": {"history": 0.6, "positives_per_query": 4, "smoothing": 0.5, "popularity_power": 0.2, "lr_schedule": "cosine"},
    "mean": {"history": 1.0, "positives_per_query": 2, "mask_known": False, "logq": False},
    "ccl": {"loss": "ccl", "margin": 0.1, "negative_weight": 5.0},
    "bpr": {"loss": "bpr", "temperature": 1.0, "similarity": "dot", "positives_per_query": 2},
}


@pytest.mark.parametrize("name", ["softmax", "ccl", "bpr"])
@pytest.mark.parametrize("masks_own", [True, False])
def test_the_differentiable_losses_are_those_of_the_kernels(name: LossName, masks_own: bool) -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((3, 7)).astype(np.float32)
    indptr, slots = np.array([0, 2, 3, 6]), np.array([1, 4, 0, 2, 2, 5], dtype=np.int32)
    masked = np.zeros((3, 7), dtype=np.bool_)
    masked[[0, 1, 2], [6, 3, 1]] = True
    if masks_own:
        masked[np.repeat(np.arange(3), np.diff(indptr)), slots] = True
    counts = masked.sum(1)
    known = Slots(indptr=np.concatenate([[0], np.cumsum(counts)]), slots=np.flatnonzero(masked).astype(np.int32) % 7)
    loss = ScoreLoss(name=name, margin=0.2, negative_weight=3.0)
    leaves = torch.from_numpy(scores).requires_grad_()

    total = sum_losses(
        loss,
        leaves,
        queries=torch.from_numpy(np.repeat(np.arange(3), np.diff(indptr))),
        targets=torch.from_numpy(slots).long(),
        masked=torch.from_numpy(masked),
    )
    total.backward()

    derivatives = scores.copy()
    positives = Slots(indptr=indptr, slots=slots)
    value = loss(derivatives, scale=1.0, bias=np.zeros(7, np.float32), targets=positives, masked=known, first=0)
    assert total.item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(leaves.grad, torch.from_numpy(derivatives), rtol=1e-4, atol=1e-5)


def planted() -> list[tuple[str, Positives]]:
    """Users like pins of their own third, of which each advertiser has half."""
    random = np.random.default_rng(2)
    users = random.integers(0, NUM_USERS, 500)
    pins = users % 3 + 3 * random.integers(0, NUM_PINS // 3, 500)
    sizes = {"pin": (pins, NUM_PINS), "advertiser": (pins % NUM_ADVERTISERS, NUM_ADVERTISERS)}
    return [
        (name, Positives.from_pairs(users, items, num_queries=NUM_USERS, num_items=count))
        for name, (items, count) in sizes.items()
    ]


def config_of(case: str) -> ContrastiveConfig:
    return ContrastiveConfig.model_validate(BASE | CASES[case])


def towers_of(config: ContrastiveConfig) -> list[Tower]:
    return [Tower(name, positives, config, share=share) for (name, positives), share in zip(planted(), (1.0, 0.5), strict=True)]


def learn_cases(rank: int, folder: Path) -> None:
    """Keep each case's first and last tables, and its vectors."""
    for case in CASES:
        config = config_of(case)
        towers = towers_of(config)
        trainer = ShardedTrainer(towers, config, np.random.default_rng(0), history=towers[0].known, folder=folder)
        kept: dict[str, Any] = {"start": _tables(trainer.state)}
        kept["losses"] = [trainer.run_epoch()["loss"] for _ in range(2)]
        kept["end"], kept["temperature"] = _tables(trainer.state), trainer.state.temperature.value
        kept["metrics"] = trainer.validate(towers[0].known, towers[0].known)
        vectors, optimizer = trainer.finish()
        kept["vectors"] = {name: table.clone() for name, table in vectors.items()}
        kept["lengths"] = {name: rows.lengths for name, rows in optimizer.items()}
        torch.save(kept, folder / f"{case}-{rank}")
    for wrong, match in (({"num_hard": 2}, "num_hard=2: not for tables"), ({"optimizer": "adam"}, "optimizer='adam'")):
        with pytest.raises(ValueError, match=match):
            train_pairs(planted()[0][1], ContrastiveConfig.model_validate(BASE | wrong))


def _tables(state: ShardedState) -> dict[str, torch.Tensor]:
    saved = state.save()
    return {name: tensor.clone() for name, tensor in saved.tensors.items()}


def enter(program: Callable[[int, Path], None], rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    program(rank, Path(folder))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multifacet.contrastive.trainer.sharded"])
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = int(bound.getsockname()[1])
    processes = [context.Process(target=enter, args=(learn_cases, rank, port, str(folder))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(learned: Path, case: str) -> None:
    kept = [torch.load(learned / f"{case}-{rank}") for rank in (0, 1)]
    config = config_of(case)
    towers = towers_of(config)
    one = Trainer(towers, config, np.random.default_rng(0))
    for name, table in one.state.tables.items():
        table.copy_(kept[0]["start"][f"table/{name}"])

    losses = [one.run_epoch()["loss"] for _ in range(2)]
    vectors, optimizer = one.finish()

    metrics = one.validate(towers[0].known, towers[0].known)
    for of_rank in kept:
        # 48 steps of float32 sums in another order, each of which row-wise Adagrad scales by the root of a row's squares.
        assert of_rank["losses"] == pytest.approx(losses, rel=1e-4)
        assert of_rank["temperature"] == pytest.approx(one.state.temperature.value, rel=1e-4)
        assert of_rank["metrics"] == pytest.approx(metrics, abs=0.02)
        saved = one.state.save().tensors
        assert of_rank["end"].keys() == saved.keys()
        for name, table in saved.items():
            torch.testing.assert_close(
                of_rank["end"][name], table, rtol=1e-3, atol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
            )
        for name, table in vectors.items():
            torch.testing.assert_close(of_rank["vectors"][name], table, rtol=1e-3, atol=2e-4)
            torch.testing.assert_close(of_rank["lengths"][name], optimizer[name].lengths, rtol=1e-3, atol=1e-4)
    moved = (one.state.tables["pin"] - kept[0]["start"]["table/pin"]).abs()
    assert moved.max() > 0.05
