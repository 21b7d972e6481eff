"""What published recipes ask for: penalties by definition, dropout by part, plateaus, and the mean of the last epochs."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multifacet.graphdb import GraphView
from multifacet.kge import (
    FullSoftmaxConfig,
    KgeConfig,
    KgeValidation,
    PlateauConfig,
    TripleSet,
    TripleSplit,
    train,
    train_triples,
)
from multifacet.kge.full.trainer import FullTrainer
from multifacet.kge.models.registry import build_model
from multifacet.kge.models.relations import RelationParameters
from multifacet.kge.sampled.schedule import count_plateaus, step_factor
from multifacet.training import Lifecycle, Position, StepProgress

NUM_NODES = 7


def small_split() -> TripleSplit:
    generator = np.random.default_rng(4)
    pairs = generator.permutation(2 * NUM_NODES * NUM_NODES)[:30]
    triples = TripleSet(
        heads=(pairs % NUM_NODES).astype(np.int32),
        relations=(pairs // NUM_NODES**2).astype(np.int32),
        tails=(pairs // NUM_NODES % NUM_NODES).astype(np.int32),
        relation_names=("likes", "knows"),
        ends=dict.fromkeys(("likes", "knows"), ("node", "node")),
        num_nodes={"node": NUM_NODES},
    )
    return TripleSplit(train=triples, valid=triples.take(slice(0)), test=triples.take(slice(0)))


def trainer_of(objective: FullSoftmaxConfig, **fields: Any) -> FullTrainer:
    fields = {"model": "complex", "dim": 4, "reciprocal": True, "batch_size": 1000, "l2": 0.0, "init_scale": 0.5} | fields
    trainer = FullTrainer(small_split(), KgeConfig(full_softmax=objective, **fields), np.random.default_rng(0))
    trainer.to_double()
    return trainer


def moduli_cubed(rows: torch.Tensor) -> torch.Tensor:
    real, imaginary = rows.chunk(2, dim=-1)
    return (real.square() + imaginary.square()) ** 1.5


@pytest.mark.parametrize("penalize", ["uses", "tables"])
def test_penalties_are_those_of_their_definitions(penalize: str) -> None:
    plain = trainer_of(FullSoftmaxConfig())
    objective = FullSoftmaxConfig(penalize=penalize, relation_l2=0.3, relation_n3=0.0)  # type: ignore[arg-type]
    penalised = trainer_of(objective, l2=0.2, n3=0.7)
    table = plain.state.tables["node"].clone().requires_grad_()
    relations = plain.relation_table.clone().requires_grad_()
    train = plain.split.train
    if penalize == "tables":
        total = 0.1 * table.square().sum() + 0.35 * moduli_cubed(table).sum() + 0.15 * relations.square().sum()
    else:
        total = table.new_zeros(())
        for head, relation, tail in zip(train.heads, train.relations, train.tails, strict=True):
            # An example a side, the head's by the inverse relation; the objective is the mean over them.
            for known, answer, key in ((head, tail, relation), (tail, head, relation + 2)):
                for row in (table[known], table[answer]):
                    total = total + 0.1 * row.square().sum() + 0.35 * moduli_cubed(row).sum()
                total = total + 0.15 * relations[key].square().sum()
        total = total / (2 * len(train))
    by_table, by_relation = torch.autograd.grad(total, (table, relations))
    before, after = plain.differentiate(plain.all_queries()), penalised.differentiate(penalised.all_queries())
    torch.testing.assert_close(after.tables["node"] - before.tables["node"], by_table)
    torch.testing.assert_close(after.relations - before.relations, by_relation)


@pytest.mark.parametrize("field", ["entity_dropout", "relation_dropout"])
def test_dropout_of_a_part_keeps_the_mean_of_scores_and_draws_from_the_generator(field: str) -> None:
    off, on = trainer_of(FullSoftmaxConfig()), trainer_of(FullSoftmaxConfig(**{field: 0.4}))  # type: ignore[arg-type]
    without = off.differentiate(off.all_queries())
    first, second = on.differentiate(on.all_queries()), on.differentiate(on.all_queries())
    again = trainer_of(FullSoftmaxConfig(**{field: 0.4}))  # type: ignore[arg-type]
    assert torch.equal(again.differentiate(again.all_queries()).relations, first.relations)
    assert not torch.equal(first.relations, second.relations)
    assert not torch.allclose(first.relations, without.relations)
    # Numbers that are dropped are 0, the others longer, so that a dropped table has the same mean.
    if field == "entity_dropout":
        from multifacet.kge.full.objective import _drop  # noqa: PLC0415

        dropped = _drop(torch.ones(200, 100), 0.4, np.random.default_rng(0))
        assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
        assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)


def test_relation_dropout_is_of_diagonals() -> None:
    with pytest.raises(ValueError, match="relation_dropout drops numbers of diagonals, and transe has none"):
        KgeConfig(model="transe", full_softmax=FullSoftmaxConfig(relation_dropout=0.1))


def test_relations_begin_as_short_as_entities_if_asked_and_of_both_signs_with_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    config = KgeConfig(model="complex", dim=2000, relation_init="entities", init_scale=1e-3)
    table = RelationParameters(build_model(config), ("r",), reciprocal=True, generator=generator).table
    assert float(table.std()) == pytest.approx(1e-3, rel=0.05)
    adam = FullSoftmaxConfig(optimizer="adam")
    assert KgeConfig().first_relations == "identity"
    assert KgeConfig(full_softmax=FullSoftmaxConfig()).first_relations == "identity"
    assert KgeConfig(full_softmax=adam).first_relations == "signs"
    assert KgeConfig(model="transe", full_softmax=adam).first_relations == "identity"
    asked = KgeConfig(full_softmax=adam, relation_init="identity")
    assert KgeConfig.model_validate(asked.model_dump()).first_relations == "identity"


def test_younger_options_are_not_written_where_they_are_off() -> None:
    document = KgeConfig(full_softmax=FullSoftmaxConfig()).model_dump(mode="json")
    assert not {"plateau", "average_epochs", "relation_init", "preset"} & document.keys()
    assert (
        not {"entity_dropout", "relation_dropout", "penalize", "relation_l2", "relation_n3"} & document["full_softmax"].keys()
    )
    # A penalty of zero is not the entities' one.
    assert FullSoftmaxConfig(relation_l2=0.0).model_dump()["relation_l2"] == 0.0


def test_a_plateau_lowers_the_rates_of_the_next_steps() -> None:
    assert count_plateaus([0.1, 0.2, 0.3], patience=1) == 0
    assert count_plateaus([0.3, 0.2, 0.2, 0.1], patience=1) == 3
    assert count_plateaus([0.3, 0.2, 0.2, 0.4, 0.3], patience=2) == 1
    config = KgeConfig(epochs=10, plateau=PlateauConfig(factor=0.5, patience=1), validation={"every": 1})  # type: ignore[arg-type]
    history = [{"filtered_mrr": value} for value in (0.3, 0.2, 0.1)]
    position = Position(generator=np.random.default_rng(0), history=history)
    assert step_factor(config, position, 5) == 0.25
    assert step_factor(config.model_copy(update={"lr_schedule": "linear"}), replace(position, epoch=5), 5) == 0.125


def test_a_plateau_changes_a_training_and_needs_something_to_validate_on(view: GraphView) -> None:
    base = KgeConfig(model="distmult", dim=8, epochs=6, batch_size=64, lr=0.5, validation=KgeValidation(num_edges=60, every=1))
    plain, lowered = (train(view, config) for config in (base, base.model_copy(update={"plateau": PlateauConfig(factor=1e-6)})))
    mrrs = [row["filtered_mrr"] for row in plain.history]
    first = next(place for place in range(1, len(mrrs)) if mrrs[place] <= max(mrrs[:place])) + 1
    assert lowered.history[first - 1]["filtered_mrr"] == mrrs[first - 1]  # the same until validation stopped rising
    assert lowered.history[-1]["filtered_mrr"] == pytest.approx(mrrs[first - 1], abs=1e-3)  # and still from there on
    with pytest.raises(ValueError, match="nothing is held out"):
        train_triples(small_split(), KgeConfig(dim=4, plateau=PlateauConfig()))


@pytest.mark.parametrize("objective", [None, FullSoftmaxConfig()], ids=["sampled", "full"])
def test_the_mean_of_the_last_epochs_is_given_out_also_after_a_stop(
    objective: FullSoftmaxConfig | None, view: GraphView, tmp_path: Path
) -> None:
    base = KgeConfig(
        model="complex", dim=4, epochs=4, batch_size=32, full_softmax=objective, validation=KgeValidation(num_edges=60, every=4)
    )
    if objective is None:
        base = base.model_copy(update={"chunk_size": 32})
    # With constant rates a shorter run is the beginning of a longer one.
    ends = [train(view, base.model_copy(update={"epochs": epochs})) for epochs in (2, 3, 4)]
    config = base.model_copy(update={"average_epochs": 3})
    mean = train(view, config)
    for name, vectors in mean.vectors.items():
        expected = torch.stack([end.vectors[name] for end in ends]).mean(0)
        torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)
    expected = torch.stack([end.relations.table for end in ends]).mean(0)
    torch.testing.assert_close(mean.relations.table, expected, rtol=1e-5, atol=1e-6)
    assert mean.metrics["filtered_mrr"] != ends[-1].metrics["filtered_mrr"]

    stop = threading.Event()

    def in_the_last_epoch(progress: StepProgress) -> None:
        if progress.epoch == 3:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        train(view, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", on_step=in_the_last_epoch, stop=stop))
    resumed = train(view, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", resume=True))
    assert all(torch.equal(vectors, mean.vectors[name]) for name, vectors in resumed.vectors.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"average_epochs": 5, "epochs": 4}, "average_epochs=5 are more than there are"),
        ({"average_epochs": 2, "validation": {"patience": 1}}, "both say which tables"),
        ({"average_epochs": 2, "table_dtype": "bf16"}, "not table_dtype='bf16'"),
        ({"average_epochs": 2, "partitions": 4}, "not for tables in partitions"),
        ({"plateau": {}, "partitions": 4}, "not for tables in partitions"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KgeConfig(**fields)
