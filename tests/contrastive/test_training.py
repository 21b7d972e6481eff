"""Whole trainings on a planted graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from multifacet import contrastive
from multifacet.contrastive import ComposedTower, ContrastiveConfig, ContrastiveValidation, Positives
from multifacet.contrastive.positives import read_positives
from multifacet.contrastive.towers import Tower
from multifacet.contrastive.trainer import Trainer
from multifacet.graphdb import GraphView
from multifacet.tables.lanes import Lanes
from multifacet.tables.snapshot import Snapshot

ADVERTISER = ComposedTower(node_type="advertiser", through="made_by", share=0.5)
SMALL = {
    "dim": 16,
    "epochs": 20,
    "batch_size": 32,
    "num_uniform": 8,
    "num_degree": 8,
    "queue_size": 16,
    "composed": (ADVERTISER,),
    "validation": ContrastiveValidation(num_queries=40, num_latest=3, every=20),
}


@pytest.mark.parametrize(
    ("similarity", "temperature"),
    [("cosine", 0.2), ("dot", 1.0)],
)
def test_it_learns_the_planted_groups(view: GraphView, similarity: str, temperature: float) -> None:
    options = {"similarity": similarity, "temperature": temperature}
    result = contrastive.train(view, ContrastiveConfig.model_validate(SMALL | options))

    # A user's 3 held-out pins are among the 11 of its group that it has not seen, of 112 in all.
    assert result.metrics["recall@20"] > 0.95
    assert result.metrics["ndcg@20"] > 0.3
    assert result.metrics["num_held_out"] == 120
    advertisers = [int(name.split("-")[1]) for name in view.node_ids("advertiser").to_pylist()]
    nearest = (result.vectors["user"] @ result.vectors["advertiser"].t()).argmax(1).tolist()
    assert [advertisers[row] for row in nearest] == [user // 12 for user in range(72)]


def test_cosine_rows_have_length_one_and_rows_never_touched_are_zero(view: GraphView) -> None:
    options = {"num_uniform": 0, "num_degree": 0, "epochs": 6}
    result = contrastive.train(view, ContrastiveConfig.model_validate(SMALL | options))

    lengths = result.vectors["pin"].norm(dim=1)
    torch.testing.assert_close(lengths[:-1], torch.ones(120))
    assert lengths[-1] == 0.0


def test_the_same_seed_gives_the_same_bits_and_another_does_not(view: GraphView) -> None:
    configs = [ContrastiveConfig.model_validate(SMALL | {"epochs": 2, "seed": seed}) for seed in (3, 3, 4)]
    first, second, third = (contrastive.train(view, config) for config in configs)

    for node_type, vectors in first.vectors.items():
        assert torch.equal(vectors, second.vectors[node_type])
        assert not torch.equal(vectors, third.vectors[node_type])
    assert first.metrics == second.metrics


def test_a_step_has_the_loss_written_out_example_by_example(view: GraphView) -> None:
    config = ContrastiveConfig.model_validate(SMALL | {"temperature": 0.3})
    positives = read_positives(view, config)
    tower = Tower("pin", positives, config, share=1.0)
    trainer = Trainer([tower], config, np.random.default_rng(1))
    known = set(zip(positives.queries.tolist(), positives.items.tolist(), strict=True))
    for _ in range(2):  # the second batch has a queue
        batch = tower.draw(trainer.state.position.generator)
        users = F.normalize(trainer.state.tables["user"].double())
        pins = F.normalize(trainer.state.tables["pin"].double())
        expected, targets = 0.0, batch.candidates.targets
        for number, user in enumerate(batch.queries.tolist()):
            for slot in targets.slots[targets.indptr[number] : targets.indptr[number + 1]]:
                target = int(batch.candidates.rows[slot])
                assert (user, target) in known
                logits, positive = [], None
                for row, log_inclusion in zip(
                    batch.candidates.rows.tolist(), batch.candidates.log_inclusion.tolist(), strict=True
                ):
                    if (user, row) in known and row != target:
                        continue
                    if row == target:
                        assert positive is None, "the positive stands twice among its candidates"
                        positive = len(logits)
                    logits.append(float(users[user] @ pins[row]) / 0.3 - log_inclusion)
                assert positive is not None
                expected -= float(torch.tensor(logits, dtype=torch.float64).log_softmax(0)[positive])

        with Lanes() as lanes:
            loss = trainer.step(tower, batch, lanes)
        assert loss == pytest.approx(expected / config.batch_size, rel=1e-5)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_two_lanes_give_the_gradient_of_the_whole_batch(view: GraphView, num_threads: int) -> None:
    config = ContrastiveConfig.model_validate(SMALL | {"temperature": 0.3, "mask_known": False})
    positives = read_positives(view, config)
    tower = Tower("pin", positives, config, share=1.0)
    trainer = Trainer([tower], config, np.random.default_rng(1))
    batch = tower.draw(trainer.state.position.generator)
    users = trainer.state.tables["user"].clone().requires_grad_()
    pins = trainer.state.tables["pin"].clone().requires_grad_()
    candidates = batch.candidates
    cosines = F.normalize(users[batch.queries]) @ F.normalize(pins[candidates.rows]).t()
    logits = cosines / 0.3 - torch.from_numpy(candidates.log_inclusion)
    of_query = np.repeat(np.arange(len(batch.queries)), np.diff(candidates.targets.indptr))
    F.cross_entropy(logits[of_query], torch.from_numpy(candidates.targets.slots).long()).backward()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)

    try:
        with Lanes() as lanes:
            trainer.step(tower, batch, lanes)
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)

    for name, table in (("user", users), ("pin", pins)):
        assert table.grad is not None
        state = trainer.state.optimizers[name].state
        torch.testing.assert_close(state, table.grad.square().mean(1), atol=1e-8, rtol=1e-3)


def test_composed_towers_take_their_share_of_steps(view: GraphView) -> None:
    config = ContrastiveConfig.model_validate(SMALL)
    positives = read_positives(view, config)
    towers = [Tower(name, positives, config, share=share) for name, share in (("pin", 1.0), ("ad", 0.25))]
    trainer = Trainer(towers, config, np.random.default_rng(0))

    order = [tower.node_type for tower in trainer._schedule()]

    assert order.count("pin") == 27
    assert order[:10] == ["pin", "pin", "pin", "pin", "ad"] * 2


def test_history_progress_and_snapshot_agree(view: GraphView, tmp_path: Path) -> None:
    rows: list[Mapping[str, float]] = []
    config = ContrastiveConfig.model_validate(SMALL | {"epochs": 2})
    result = contrastive.train(view, config, progress=rows.append)

    assert rows == result.history
    assert {"loss", "loss/advertiser", "seconds", "pairs_per_s", "recall@20", "ndcg@20"} <= set(rows[-1])
    snapshot = result.write_snapshot(tmp_path / "contrastive", view)
    again = contrastive.train(view, config).write_snapshot(tmp_path / "again", view)
    assert again.fingerprint == snapshot.fingerprint
    loaded = Snapshot.load(tmp_path / "contrastive")
    assert loaded.facet == "contrastive"
    assert set(loaded.node_types) == {"user", "pin", "advertiser"}
    for node_type, vectors in result.vectors.items():
        assert torch.equal(loaded.vectors(node_type), vectors)
        assert loaded.ids(node_type).equals(view.node_ids(node_type))
    assert loaded.manifest["parents"] == [view.fingerprint]


def test_two_towers_of_one_node_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['pin'\] stand more than once"):
        ContrastiveConfig(composed=(ComposedTower(node_type="pin", through="made_by"),))


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "ccl", "margin": 0.2, "negative_weight": 10.0},
        {"loss": "bpr", "temperature": 0.2, "num_hard": 2, "hard_depth": 10},
        {"temperature": 0.5, "temperature_lr": 0.05, "positives_per_query": 4},
        {"temperature": 0.2, "history": 1.0, "positives_per_query": 4, "lr_schedule": "cosine"},
        {"temperature": 0.2, "history": 0.5, "num_hard": 2},
        {"temperature": 0.2, "optimizer": "adam", "lr": 0.03},
        {"temperature": 0.2, "optimizer": "adam", "momentum": 0.0, "lr": 0.03, "popularity_power": 0.1},
    ],
    ids=["ccl", "bpr with hard negatives", "learned temperature", "all history", "half history", "adam", "no momentum"],
)
def test_every_option_learns_the_planted_groups(view: GraphView, options: dict[str, object]) -> None:
    result = contrastive.train(view, ContrastiveConfig.model_validate(SMALL | options))

    assert result.metrics["recall@20"] > 0.7  # 0.18 by chance


def test_a_history_carries_the_gradient_of_the_whole_model(view: GraphView) -> None:
    options = {"temperature": 0.3, "mask_known": False, "history": 0.7, "positives_per_query": 4, "logq": False}
    config = ContrastiveConfig.model_validate(SMALL | options)
    positives = read_positives(view, config)
    tower = Tower("pin", positives, config, share=1.0)
    trainer = Trainer([tower], config, np.random.default_rng(1))
    batch = tower.draw(trainer.state.position.generator)
    users = trainer.state.tables["user"].clone().requires_grad_()
    pins = trainer.state.tables["pin"].clone().requires_grad_()
    means = torch.stack([pins[tower.known.row(user)].mean(0) for user in batch.queries.tolist()])
    queries = F.normalize(0.3 * users[batch.queries] + 0.7 * means)
    logits = queries @ F.normalize(pins[batch.candidates.rows]).t() / 0.3
    of_query = np.repeat(np.arange(len(batch.queries)), np.diff(batch.candidates.targets.indptr))
    F.cross_entropy(logits[of_query], torch.from_numpy(batch.candidates.targets.slots).long()).backward()

    with Lanes() as lanes:
        trainer.step(tower, batch, lanes)

    for name, table in (("user", users), ("pin", pins)):
        assert table.grad is not None
        state = trainer.state.optimizers[name].state
        torch.testing.assert_close(state, table.grad.square().mean(1), atol=1e-8, rtol=1e-3)


def test_popularity_lengthens_trained_items_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    users, pins = generator.integers(0, 30, 400), (generator.random(400) ** 2 * 20).astype(np.int32)
    pairs = Positives.from_pairs(users, pins, num_queries=30, num_items=21)  # the last has no positives
    options = {"dim": 8, "epochs": 2, "batch_size": 32}
    plain, scaled = (
        contrastive.train_pairs(pairs, ContrastiveConfig.model_validate(options | {"popularity_power": power}))
        for power in (0.0, 0.3)
    )

    counts = np.bincount(pins, minlength=21)
    expected = torch.from_numpy((np.maximum(counts, counts[:20].min()) / counts[:20].mean()) ** 0.3).float()
    torch.testing.assert_close(scaled.vectors["pin"], plain.vectors["pin"] * expected[:, None])
    assert torch.equal(scaled.vectors["user"], plain.vectors["user"])
    rows = [result.vectors["pin"] * result.optimizer["pin"].lengths[:, None] for result in (plain, scaled)]
    torch.testing.assert_close(rows[0], rows[1])


def test_smoothing_adds_the_mean_of_its_queries_to_an_item_when_training_has_ended() -> None:
    generator = np.random.default_rng(0)
    users, pins = generator.integers(0, 30, 300), generator.integers(0, 20, 300)
    pairs = Positives.from_pairs(users, pins, num_queries=30, num_items=21)  # the last has no positives
    options = {"dim": 8, "epochs": 2, "batch_size": 32, "history": 1.0}
    plain, smoothed = (
        contrastive.train_pairs(pairs, ContrastiveConfig.model_validate(options | {"smoothing": weight}))
        for weight in (0.0, 0.5)
    )

    queries, items = plain.vectors["user"], plain.vectors["pin"]
    queries_of = pairs.index().transposed
    means = torch.stack([queries[queries_of.row(item)].mean(0) for item in range(20)])
    torch.testing.assert_close(smoothed.vectors["pin"][:20], F.normalize(items[:20] + 0.5 * F.normalize(means)))
    torch.testing.assert_close(smoothed.vectors["pin"][20], items[20])
    assert torch.equal(smoothed.vectors["user"], queries)


def test_options_of_another_loss_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum means nothing to Adagrad"):
        ContrastiveConfig(momentum=0.5)
    with pytest.raises(ValueError, match="popularity_power is of vectors under cosine"):
        ContrastiveConfig(popularity_power=0.5, similarity="dot")
    with pytest.raises(ValueError, match="logq means nothing to the ccl loss, only to softmax"):
        ContrastiveConfig(loss="ccl", logq=True)
    with pytest.raises(ValueError, match="it must be a multiple of that, got 100"):
        ContrastiveConfig(batch_size=100, positives_per_query=16)


def test_plain_pairs_train_like_the_view_that_holds_them(view: GraphView) -> None:
    config = ContrastiveConfig.model_validate(SMALL | {"composed": (), "epochs": 2})
    of_view = read_positives(view, config)
    pairs = Positives.from_pairs(of_view.queries, of_view.items, num_queries=72, num_items=121)

    result = contrastive.train_pairs(pairs, config, held_out=pairs)

    assert result.vectors["user"].shape == (72, 16)
    assert result.metrics["recall@20"] > 0.3
    with pytest.raises(ValueError, match="composed, relation_weights and half_life_days need a graph"):
        contrastive.train_pairs(pairs, config.model_copy(update={"half_life_days": 3.0}))
