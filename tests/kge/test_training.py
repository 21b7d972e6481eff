"""Whole trainings on a planted graph."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multifacet import kge
from multifacet.graphdb import GraphView
from multifacet.kge import KgeConfig, KgeValidation, TripleSet, TripleSplit
from multifacet.kge.batch import Batch
from multifacet.kge.config import ModelName
from multifacet.kge.trainer import Trainer
from multifacet.kge.training import split_view
from multifacet.tables.checkpoint import CheckpointError
from multifacet.tables.lanes import Lanes
from multifacet.tables.snapshot import Snapshot
from multifacet.tables.training import Lifecycle, StepProgress
from multifacet.tables.warmstart import WarmStart

MODELS: tuple[ModelName, ...] = ("transe", "transr", "transra", "distmult", "complex", "rotate")
SMALL = {
    "dim": 16,
    "epochs": 25,
    "batch_size": 64,
    "chunk_size": 32,
    "num_uniform": 8,
    "num_degree": 8,
    "lr": 0.1,
    "validation": KgeValidation(num_edges=60, max_fraction=0.1, every=25),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_model_learns_the_planted_graph(view: GraphView, name: ModelName) -> None:
    result = kge.train(view, KgeConfig.model_validate(SMALL | {"model": name}))

    # A random order of 40 has a mean reciprocal rank of 0.11; 8 pins that are alike leave one or two to be mistaken for.
    assert result.metrics["filtered_mrr/clicks"] > 0.4
    assert result.metrics["filtered_mrr/alike"] > 0.5
    assert result.metrics["filtered_mrr"] > 0.5
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    users = torch.arange(40)
    own, other = users // 8 * 8, (users // 8 * 8 + 8) % 40
    predictor = result.predictor()
    assert (predictor.score("clicks", users, own) > predictor.score("clicks", users, other)).float().mean() > 0.95


def test_the_same_seed_gives_the_same_bits_and_another_does_not(view: GraphView) -> None:
    configs = [KgeConfig.model_validate(SMALL | {"epochs": 2, "seed": seed}) for seed in (3, 3, 4)]
    first, second, third = (kge.train(view, config) for config in configs)

    for node_type, vectors in first.vectors.items():
        assert torch.equal(vectors, second.vectors[node_type])
        assert not torch.equal(vectors, third.vectors[node_type])
    assert first.metrics == second.metrics


def test_history_progress_and_snapshot_agree(view: GraphView, tmp_path: Path) -> None:
    rows: list[Mapping[str, float]] = []
    config = KgeConfig.model_validate(
        SMALL | {"epochs": 3, "validation": KgeValidation(num_edges=60, max_fraction=0.1, every=2)}
    )
    result = kge.train(view, config, progress=rows.append)

    assert rows == result.history
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert ["filtered_mrr" in row for row in rows] == [False, True, True]
    snapshot = result.write_snapshot(tmp_path / "kge", view)
    again = kge.train(view, config).write_snapshot(tmp_path / "again", view)
    assert again.fingerprint == snapshot.fingerprint
    loaded = Snapshot.load(tmp_path / "kge")
    assert loaded.facet == "kge"
    assert set(loaded.node_types) == {"user", "pin", "advertiser"}
    for node_type, vectors in result.vectors.items():
        assert vectors.shape == (view.num_nodes[node_type], 16)
        assert torch.equal(loaded.vectors(node_type), vectors)
        assert loaded.ids(node_type).equals(view.node_ids(node_type))
    assert loaded.manifest["parents"] == [view.fingerprint]
    assert loaded.manifest["config"]["dim"] == 16


@pytest.mark.parametrize("choose", ["random", "latest"])
def test_held_out_edges_are_not_in_training(view: GraphView, choose: str) -> None:
    validation = KgeValidation.model_validate({"num_edges": 60, "max_fraction": 0.1, "choose": choose})
    split = split_view(view, KgeConfig(validation=validation), np.random.default_rng(0))
    held_of, train_of = split.valid.edges(), split.train.edges()
    for relation, held_edges in held_of.items():
        held = set(zip(held_edges.heads.tolist(), held_edges.tails.tolist(), strict=True))
        train = set(zip(train_of[relation].heads.tolist(), train_of[relation].tails.tolist(), strict=True))
        assert len(held) == min(20, view.num_edges[relation] // 10)
        assert not held & train
        # A pair is held out in both directions.
        reverse = {(tail, head) for head, tail in held} - held if relation == "alike" else set()
        assert not reverse & train
        assert len(held) + len(reverse) + len(train) == view.num_edges[relation]


def test_latest_holds_out_the_newest_edges(view: GraphView) -> None:
    validation = KgeValidation(num_edges=20, max_fraction=0.1, choose="latest", relations=("clicks",))
    split = split_view(view, KgeConfig(validation=validation), np.random.default_rng(0))
    clicks = view.edges("clicks")
    assert clicks.time is not None
    times = {(int(src), int(dst)): int(time) for src, dst, time in zip(clicks.src, clicks.dst, clicks.time, strict=True)}

    assert [len(edges) for edges in split.valid.edges().values()] == [20, 0, 0]
    held, train = split.valid.edges()["clicks"], split.train.edges()["clicks"]
    newest_train = max(times[pair] for pair in zip(train.heads.tolist(), train.tails.tolist(), strict=True))
    oldest_held = min(times[pair] for pair in zip(held.heads.tolist(), held.tails.tolist(), strict=True))
    assert oldest_held >= newest_train


def test_a_loss_that_is_not_finite_stops_the_training(view: GraphView) -> None:
    config = KgeConfig.model_validate(SMALL | {"model": "transe", "init_scale": 1e20, "epochs": 1})
    with pytest.raises(ValueError, match=r"not finite|is (nan|inf)"):
        kge.train(view, config)


def test_a_result_refuses_the_snapshot_of_another_view(view: GraphView, tmp_path: Path) -> None:
    result = kge.train(view, KgeConfig.model_validate(SMALL | {"epochs": 1}))
    result.vectors["pin"] = result.vectors["pin"][:-1]
    with pytest.raises(ValueError, match="table 'pin' has 39 rows, but the view has 40"):
        result.write_snapshot(tmp_path / "kge", view)


def test_early_stopping_gives_the_tables_of_the_best_validation(view: GraphView) -> None:
    validation = KgeValidation(num_edges=60, max_fraction=0.1, every=1, patience=2)
    config = KgeConfig.model_validate(SMALL | {"model": "distmult", "epochs": 60, "lr": 2.0, "validation": validation})
    result = kge.train(view, config)

    values = [row["filtered_mrr"] for row in result.history]
    best = int(np.argmax(values))
    assert len(values) == best + 3 < 60
    assert result.metrics["filtered_mrr"] == values[best]
    shorter = config.model_copy(update={"epochs": best + 1, "validation": validation.model_copy(update={"patience": None})})
    for node_type, vectors in kge.train(view, shorter).vectors.items():
        assert torch.equal(vectors, result.vectors[node_type])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rates_rise_and_fall_as_scheduled(view: GraphView, schedule: str) -> None:
    config = KgeConfig.model_validate(SMALL | {"epochs": 2, "lr_schedule": schedule, "warmup": 0.25})
    trainer = Trainer(split_view(view, config, np.random.default_rng(0)), config, np.random.default_rng(0))
    rates: list[float] = []
    step = trainer.step

    def record(batch: Batch, lanes: Lanes, *, lr: float, relation_lr: float, seed: int) -> float:
        rates.append(lr)
        assert relation_lr / config.relation_lr == pytest.approx(lr / config.lr)
        return step(batch, lanes, lr=lr, relation_lr=relation_lr, seed=seed)

    trainer.step = record  # type: ignore[assignment]
    trainer.run_epoch()
    trainer.run_epoch()

    peak = int(np.argmax(rates))
    assert rates[0] == 0.0
    assert max(rates) <= config.lr
    assert 0.2 < peak / len(rates) < 0.35
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert rates[-1] == config.lr if schedule == "constant" else rates[-1] < 0.2 * config.lr


def text_split(folder: Path, *, tail: str = "b") -> TripleSplit:
    folder.mkdir()
    lines = [f"{head}\tr\t{chr(ord('a') + (number + 1) % 6)}" for number, head in enumerate("abcdef")]
    (folder / "train").write_text("\n".join([*lines, f"e\tr\t{tail}"]) + "\n")
    return TripleSplit.from_files(train=folder / "train")


@pytest.mark.parametrize("full", [False, True])
def test_a_split_goes_on_only_with_its_own_triples(tmp_path: Path, full: bool) -> None:
    config = KgeConfig.model_validate(
        {"model": "distmult", "dim": 4, "epochs": 3, "batch_size": 4, "full_softmax": {} if full else None}
        | ({} if full else {"chunk_size": 2, "num_uniform": 2, "num_degree": 0})
    )
    split = text_split(tmp_path / "one")
    life = Lifecycle(checkpoint=tmp_path / "state", every_seconds=0.0)
    whole = kge.train_triples(split, config, lifecycle=life)

    again = Lifecycle(checkpoint=tmp_path / "state", resume=True)
    resumed = kge.train_triples(text_split(tmp_path / "same"), config, lifecycle=again)
    assert torch.equal(resumed.vectors["entity"], whole.vectors["entity"])
    other = text_split(tmp_path / "other", tail="c")  # as many triples, entities and relations
    assert repr(other) == repr(split)
    with pytest.raises(CheckpointError, match="window"):
        kge.train_triples(other, config, lifecycle=again)


def test_a_split_starts_from_a_snapshot_by_its_ids(view: GraphView, tmp_path: Path) -> None:
    config = KgeConfig.model_validate(SMALL | {"model": "distmult", "epochs": 1})
    old = kge.train(view, config)
    old.write_snapshot(tmp_path / "old", view)
    life = Lifecycle(warm_start=WarmStart.load(tmp_path / "old", pull=1e6))
    triples = TripleSet.from_view(view, ids=True)
    empty = triples.take(slice(0))
    held_still = kge.train_triples(
        TripleSplit(train=triples, valid=empty, test=empty), config.model_copy(update={"lr": 1e-9}), lifecycle=life
    )

    for node_type, vectors in old.vectors.items():
        torch.testing.assert_close(held_still.vectors[node_type], vectors, atol=1e-4, rtol=0)
    nameless = replace(triples, ids={})
    split = TripleSplit(train=nameless, valid=nameless.take(slice(0)), test=nameless.take(slice(0)))
    with pytest.raises(ValueError, match="external ids"):
        kge.train_triples(split, config, lifecycle=life)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_tables_learn_what_fp32_does_and_resume_to_the_same_bits(
    view: GraphView, tmp_path: Path, dtype: str
) -> None:
    settings = SMALL | {"epochs": 4, "validation": KgeValidation(num_edges=60, max_fraction=0.1)}
    config = KgeConfig.model_validate(settings | {"table_dtype": dtype, "model": "complex", "dropout": 0.1})
    fp32 = kge.train(view, config.model_copy(update={"table_dtype": "fp32"}))
    whole = kge.train(view, config)
    stop = threading.Event()

    def on_step(progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == (1, 5):
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        kge.train(view, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", on_step=on_step, stop=stop))
    resumed = kge.train(view, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", resume=True))

    assert whole.metrics["filtered_mrr"] == pytest.approx(fp32.metrics["filtered_mrr"], abs=0.05)
    assert whole.metrics["loss"] == pytest.approx(fp32.metrics["loss"], rel=0.01)
    rounded = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for node_type, vectors in whole.vectors.items():
        assert vectors.dtype == torch.float32
        assert torch.equal(vectors.to(rounded).float(), vectors)
        assert not torch.equal(vectors, fp32.vectors[node_type])
        assert torch.equal(resumed.vectors[node_type], vectors)


def test_half_precision_tables_start_from_a_snapshot_but_are_not_pulled(view: GraphView, tmp_path: Path) -> None:
    config = KgeConfig.model_validate(SMALL | {"epochs": 1})
    kge.train(view, config).write_snapshot(tmp_path / "old", view)
    half = config.model_copy(update={"table_dtype": "fp16"})
    trainer = Trainer(split_view(view, half, np.random.default_rng(0)), half, np.random.default_rng(0))

    trainer.warm_start(WarmStart.load(tmp_path / "old"), view.node_ids)

    old = Snapshot.load(tmp_path / "old")
    for node_type, table in trainer.state.tables.items():
        assert torch.equal(table, old.vectors(node_type).half())
    with pytest.raises(ValueError, match="the pull towards older rows is for FP32 tables"):
        trainer.warm_start(WarmStart.load(tmp_path / "old", pull=0.1), view.node_ids)
