"""Training on tables that two gloo processes share: what one process does, by other kernels."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multifacet import kge
from multifacet.kge import KgeConfig, KgeValidation, TripleSet, TripleSplit
from multifacet.kge.sampled.trainer import Trainer
from multifacet.kge.sharded.trainer import ShardedTrainer
from multifacet.training import Lifecycle, StepProgress

from .processes import run_processes

NUM_USERS, NUM_PINS, NUM_ADVERTISERS = 60, 45, 3
BASE: dict[str, Any] = {
    "dim": 8,
    "rank": 2,
    "epochs": 2,
    "batch_size": 32,
    "chunk_size": 8,
    "num_uniform": 6,
    "num_degree": 4,
    "init_scale": 0.3,
    "lr": 0.1,
}
CASES: dict[str, dict[str, Any]] = {
    "softmax": {"model": "complex", "reciprocal": True, "n3": 0.1, "mask_known": True, "dropout": 0.3},
    "schedule": {"model": "distmult", "lr_schedule": "cosine", "warmup": 0.2, "relation_weights": {"clicks": 0.5}},
    "projected": {"model": "transra", "loss": "margin", "margin": 2.0},
    "matrices": {"model": "transr", "distance": "l2"},
    "adversarial": {"model": "rotate", "loss": "self_adversarial", "margin": 1.0, "distance": "l1"},
    "logistic": {"model": "transe", "loss": "logistic", "distance": "l1", "mask_known": True},
}


def planted() -> TripleSplit:
    """Users click pins of their own third, of which an advertiser has each; 21 batches, the last ones with a chunk too few."""
    random = np.random.default_rng(2)
    users = random.integers(0, NUM_USERS, 600)
    pins = users % 3 + 3 * random.integers(0, NUM_PINS // 3, 600)
    every = np.arange(NUM_PINS)
    triples = TripleSet(
        heads=np.concatenate([users, every]).astype(np.int32),
        relations=np.repeat(np.int32([0, 1]), [len(users), len(every)]),
        tails=np.concatenate([pins, every % 3]).astype(np.int32),
        relation_names=("clicks", "made_by"),
        ends={"clicks": ("user", "pin"), "made_by": ("pin", "advertiser")},
        num_nodes={"user": NUM_USERS, "pin": NUM_PINS, "advertiser": NUM_ADVERTISERS},
    ).distinct()
    return triples.hold_out(KgeValidation(num_edges=30, max_fraction=0.2), random)


def config_of(case: str) -> KgeConfig:
    return KgeConfig.model_validate(BASE | CASES[case])


def learn_cases(rank: int, folder: Path) -> None:
    """Keep each case's first and last tables."""
    for case in CASES:
        trainer = ShardedTrainer(planted(), config_of(case), np.random.default_rng(0), folder=folder)
        kept = {}
        for moment in ("start", "end"):
            if moment == "end":
                kept["losses"] = [trainer.run_epoch()["loss"] for _ in range(2)]
            predictor = trainer.predictor()
            vectors = {name: table.clone() for name, table in predictor.vectors.items()}
            kept[moment] = vectors, predictor.relations.table.clone()
        kept["squares"] = {name: squares.clone() for name, squares in trainer.state.row_squares().items()}
        torch.save(kept, folder / f"{case}-{rank}")


def train_whole(rank: int, folder: Path) -> None:
    """A whole training, one that is stopped in its second epoch and goes on, and what cannot be shared."""
    split, config = planted(), config_of("softmax")
    whole = kge.train_triples(split, config)
    stop = threading.Event()

    def on_step(progress: StepProgress) -> None:
        # One process alone is told to stop.
        if rank == 1 and (progress.epoch, progress.step) == (1, 4):
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        kge.train_triples(split, config, lifecycle=Lifecycle(checkpoint=folder / "state", on_step=on_step, stop=stop))
    resumed = kge.train_triples(split, config, lifecycle=Lifecycle(checkpoint=folder / "state", resume=True))
    for name, vectors in whole.vectors.items():
        assert torch.equal(resumed.vectors[name], vectors)
        assert torch.equal(resumed.adagrad[name], whole.adagrad[name])
    assert resumed.metrics == whole.metrics
    torch.save(
        {"metrics": whole.metrics, "vectors": {n: t.clone() for n, t in whole.vectors.items()}}, folder / f"whole-{rank}"
    )
    for wrong, match in (
        ({"table_dtype": "fp16"}, "table_dtype='fp16': not for tables that are shared out to 2 processes"),
        ({"validation": {"patience": 2}}, "validation.patience=2"),
        ({"batch_size": 8}, "raise batch_size"),
    ):
        with pytest.raises(ValueError, match=match):
            kge.train_triples(split, KgeConfig.model_validate(BASE | wrong))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_processes(learn_cases, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(learned: Path, case: str) -> None:
    check(learned, case)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs, where NCCL runs the same code")
def test_two_gpus_learn_what_one_process_does(tmp_path: Path) -> None:
    run_processes(learn_cases, tmp_path, backend="nccl")
    for case in CASES:
        check(tmp_path, case)


def check(learned: Path, case: str) -> None:
    """Hold what two processes have learned to an ordinary training from the same start."""
    kept = [torch.load(learned / f"{case}-{rank}") for rank in (0, 1)]
    config = config_of(case)
    one = Trainer(planted(), config, np.random.default_rng(0))
    for name, table in one.state.tables.items():
        table.copy_(kept[0]["start"][0][name])
    one.state.relations.table.copy_(kept[0]["start"][1])

    losses = [one.run_epoch()["loss"] for _ in range(2)]

    for of_rank in kept:
        # 42 steps of float32 sums in another order, each of which row-wise Adagrad scales by the root of a row's squares.
        assert of_rank["losses"] == pytest.approx(losses, rel=1e-4)
        torch.testing.assert_close(of_rank["end"][1], one.state.relations.table, rtol=1e-3, atol=1e-4)
        for name, table in one.state.tables.items():
            torch.testing.assert_close(of_rank["end"][0][name], table, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(of_rank["squares"][name], one.state.row_squares()[name], rtol=1e-3, atol=1e-7)
            assert not torch.allclose(table, of_rank["start"][0][name], atol=0.05)


@pytest.mark.slow
def test_a_group_stops_together_resumes_to_the_same_bits_and_gives_every_process_the_result(tmp_path: Path) -> None:
    run_processes(train_whole, tmp_path)

    first, second = (torch.load(tmp_path / f"whole-{rank}") for rank in (0, 1))
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["filtered_mrr"] > 0.2
    for name, table in first["vectors"].items():
        assert torch.equal(second["vectors"][name], table)
    # What a group has saved, one process can go on with: the tables are whole in a checkpoint.
    assert {path.name for path in tmp_path.iterdir()} == {"state", "whole-0", "whole-1"}
