"""Training against all entities: its gradients against autograd, triple by triple, and what it learns."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from multifacet.graphdb import GraphView
from multifacet.kge import KgeConfig, KgeValidation, TripleSet, TripleSplit, evaluate, known_pairs, train
from multifacet.kge.config import ModelName, RelationInit
from multifacet.kge.full.trainer import FullTrainer
from multifacet.kge.full_config import FullSoftmaxConfig
from multifacet.kge.training import split_view
from multifacet.training import CheckpointError, Lifecycle, StepProgress, WarmStart

MODELS: tuple[ModelName, ...] = ("transe", "transr", "transra", "distmult", "complex", "rotate")
NUM_USERS, NUM_PINS = 6, 5


def small_split() -> TripleSplit:
    """Two relations, of users to pins and of pins to pins."""
    random = np.random.default_rng(4)
    clicks = random.permutation(NUM_USERS * NUM_PINS)[:14]
    alike = random.permutation(NUM_PINS * NUM_PINS)[:9]
    train = TripleSet(
        heads=np.concatenate([clicks // NUM_PINS, alike // NUM_PINS]).astype(np.int32),
        relations=np.repeat(np.int32([0, 1]), [14, 9]),
        tails=np.concatenate([clicks % NUM_PINS, alike % NUM_PINS]).astype(np.int32),
        relation_names=("clicks", "alike"),
        ends={"clicks": ("user", "pin"), "alike": ("pin", "pin")},
        num_nodes={"user": NUM_USERS, "pin": NUM_PINS},
    )
    return TripleSplit(train=train, valid=train.take(slice(0)), test=train.take(slice(0)))


def full_trainer(split: TripleSplit, config: KgeConfig) -> FullTrainer:
    return FullTrainer(split, config, np.random.default_rng(config.seed))


def build(
    name: ModelName,
    objective: FullSoftmaxConfig,
    *,
    reciprocal: bool,
    l2: float = 0.0,
    n3: float = 0.0,
    batch_size: int = 1000,
) -> FullTrainer:
    config = KgeConfig(
        model=name,
        dim=4,
        rank=2,
        reciprocal=reciprocal,
        batch_size=batch_size,
        l2=l2,
        n3=n3,
        init_scale=0.5,
        relation_weights={"alike": 0.5},
        full_softmax=objective,
    )
    return full_trainer(small_split(), config)


def objective_by_definition(trainer: FullTrainer, tables: dict[str, torch.Tensor], relations: torch.Tensor) -> torch.Tensor:
    """The whole objective of one step over everything, written out triple by triple."""
    config, objective, model = trainer.config, trainer.objective, trainer.model
    train = trainer.split.train
    facts = list(zip(train.heads.tolist(), train.relations.tolist(), train.tails.tolist(), strict=True))
    total, num_examples = relations.new_zeros(()), 0.0
    seen_queries = set()
    for (head, relation, tail), side in itertools.product(facts, ("tail", "head")):
        src, dst = train.ends[train.relation_names[relation]]
        known, answer = (head, tail) if side == "tail" else (tail, head)
        known_type, asked_type = (src, dst) if side == "tail" else (dst, src)
        key = relation + 2 if config.reciprocal and side == "head" else relation
        model_side = "tail" if config.reciprocal else side
        parameters = trainer._objective.parameters(relations[key])
        query = model.translate(model.project(tables[known_type][known][None], parameters), parameters, model_side)
        candidates = model.project(tables[asked_type], parameters)
        scores = -(query - candidates).square().sum(-1) if model.is_distance else (candidates @ query[0])
        siblings = {
            (t if side == "tail" else h) for h, r, t in facts if r == relation and (h if side == "tail" else t) == known
        }
        weight = config.relation_weights.get(train.relation_names[relation], 1.0)
        if objective.weigh == "queries":
            weight /= len(siblings)
        kept = [row for row in range(len(candidates)) if objective.answers_compete or row == answer or row not in siblings]
        log_partition = scores[kept].logsumexp(0)
        smoothing = objective.label_smoothing
        total = total + weight * (log_partition - (1 - smoothing) * scores[answer] - smoothing * scores.mean())
        for vector in (
            tables[known_type][known],
            tables[asked_type][answer],
            *(() if model.is_distance else (relations[key],)),
        ):
            cubes = vector.abs() ** 3
            if model.has_complex_entities:
                real, imaginary = vector.chunk(2)
                cubes = (real.square() + imaginary.square()) ** 1.5
            total = total + weight * (config.l2 / 2 * vector.square().sum() + config.n3 / 2 * cubes.sum())
        if objective.relation_prediction and model_side == "tail":
            keys = [
                k
                for k in range(len(relations))
                if (train.ends[train.relation_names[k % 2]] if k < 2 else train.ends[train.relation_names[k % 2]][::-1])
                == (known_type, asked_type)
            ]
            by_relation = torch.stack(
                [
                    model.score(
                        tables[known_type][known][None],
                        tables[asked_type][answer][None],
                        trainer._objective.parameters(relations[k]),
                    )[0]
                    for k in keys
                ]
            )
            total = total + objective.relation_prediction * weight * (by_relation.logsumexp(0) - by_relation[keys.index(key)])
        seen_queries.add((relation, side, known))
        num_examples += 1
    return total / (num_examples if objective.weigh == "triples" else len(seen_queries))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize(
    "objective",
    [
        FullSoftmaxConfig(label_smoothing=0.2),
        FullSoftmaxConfig(weigh="queries", answers_compete=False),
        FullSoftmaxConfig(relation_prediction=0.7),
    ],
    ids=["smoothed", "apart", "relations"],
)
def test_gradients_equal_autograd_triple_by_triple(name: ModelName, reciprocal: bool, objective: FullSoftmaxConfig) -> None:
    if objective.relation_prediction and name in {"transr", "transra"}:
        with pytest.raises(ValueError, match="relation prediction"):
            build(name, objective, reciprocal=reciprocal)
        return
    trainer = build(name, objective, reciprocal=reciprocal, l2=0.1, n3=0.3 if objective.label_smoothing else 0.0)
    trainer.to_double()
    tables = {key: table.clone().requires_grad_() for key, table in trainer.state.tables.items()}
    relations = trainer.relation_table.clone().requires_grad_()
    by_definition = torch.autograd.grad(objective_by_definition(trainer, tables, relations), [*tables.values(), relations])

    gradients = trainer.differentiate(trainer.all_queries())

    for own, autograd in zip([*(gradients.tables[key] for key in tables), gradients.relations], by_definition, strict=True):
        torch.testing.assert_close(own, autograd, rtol=1e-7, atol=1e-9)
    assert all(autograd.abs().max() > 1e-4 for autograd in by_definition)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "products"), [*((name, "fp32") for name in MODELS), ("distmult", "bf16"), ("complex", "bf16")]
)
def test_learns_the_planted_graph(name: ModelName, products: Literal["fp32", "bf16"], view: GraphView) -> None:
    split = TripleSet.from_view(view).hold_out(KgeValidation(num_edges=60), np.random.default_rng(0))
    objective = FullSoftmaxConfig(optimizer="adam", answers_compete=False, products=products)
    config = KgeConfig(
        model=name, dim=8, rank=2, reciprocal=True, batch_size=80, epochs=15, lr=0.03, relation_lr=0.03, full_softmax=objective
    )
    trainer = full_trainer(split, config)
    losses = [trainer.run_epoch()["loss"] for _ in range(config.epochs)]
    metrics = evaluate(trainer.predictor(), split.valid.edges(), known_pairs(*split))
    assert losses[-1] < 0.6 * losses[0]
    assert metrics["filtered_mrr"] > 0.6, metrics


def test_the_same_seed_gives_the_same_vectors_and_another_does_not() -> None:
    def train(seed: int) -> torch.Tensor:
        objective = FullSoftmaxConfig(dropout=0.2)
        config = KgeConfig(model="complex", dim=4, batch_size=7, reciprocal=True, seed=seed, n3=0.1, full_softmax=objective)
        trainer = full_trainer(small_split(), config)
        for _ in range(2):
            trainer.run_epoch()
        return trainer.state.tables["pin"]

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_stops_early_and_keeps_the_best(view: GraphView) -> None:
    config = KgeConfig(
        model="distmult",
        dim=8,
        epochs=40,
        batch_size=20,
        lr=0.5,
        l2=0.0,
        validation=KgeValidation(num_edges=60, every=1, patience=2),
        full_softmax=FullSoftmaxConfig(),
    )
    result = train(view, config)
    mrrs = [row["filtered_mrr"] for row in result.history]
    assert len(mrrs) < 40
    assert max(mrrs) == result.metrics["filtered_mrr"] == max(mrrs[:-2])
    split = split_view(view, config, np.random.default_rng(0))
    again = evaluate(result.predictor(), split.valid.edges(), known_pairs(*split))
    assert again["filtered_mrr"] == pytest.approx(max(mrrs))


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_stopped_training_goes_on_to_the_same_bits(
    optimizer: Literal["adagrad", "adam"], view: GraphView, tmp_path: Path
) -> None:
    config = KgeConfig(
        model="complex",
        dim=4,
        batch_size=32,
        epochs=4,
        lr_schedule="cosine",
        warmup=0.2,
        validation=KgeValidation(num_edges=60, every=1, patience=3),
        full_softmax=FullSoftmaxConfig(optimizer=optimizer, dropout=0.2),
    )
    whole = train(view, config)

    stop, num_steps = threading.Event(), 0

    def count(progress: StepProgress) -> None:
        nonlocal num_steps
        num_steps += 1
        if progress.epoch == 2 and progress.step == 3:
            stop.set()

    life = Lifecycle(checkpoint=tmp_path / "state", on_step=count, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        train(view, config, lifecycle=life)
    stopped_after = num_steps
    resumed = train(view, config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", resume=True, on_step=count))

    assert 0 < stopped_after < num_steps
    assert resumed.metrics == whole.metrics
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    for node_type, vectors in whole.vectors.items():
        assert torch.equal(resumed.vectors[node_type], vectors)
    for name, value in whole.relations.to_tensors().items():
        assert torch.equal(resumed.relations.to_tensors()[name], value)
    with pytest.raises(CheckpointError, match=r"config\.lr"):
        train(view, config.model_copy(update={"lr": 0.3}), lifecycle=Lifecycle(checkpoint=tmp_path / "state", resume=True))


def test_starts_from_a_snapshot_with_its_squares(view: GraphView, tmp_path: Path) -> None:
    config = KgeConfig(model="distmult", dim=4, batch_size=64, epochs=3, full_softmax=FullSoftmaxConfig())
    first = train(view, config)
    first.write_snapshot(tmp_path / "first", view)
    warm = FullTrainer(split_view(view, config, np.random.default_rng(0)), config, np.random.default_rng(0))
    warm.warm_start(WarmStart.load(tmp_path / "first"), view.node_ids)

    for node_type, vectors in first.vectors.items():
        assert torch.equal(warm.state.tables[node_type], vectors)
        torch.testing.assert_close(warm.state.row_squares()[node_type], first.adagrad[node_type])
    assert torch.equal(warm.state.relations.table, first.relations.table)
    assert torch.equal(warm.state.relation_optimizer.state["squares"], first.relations.state)
    assert float(first.relations.state.max()) > 0
    with pytest.raises(ValueError, match=r"pull=0\.1"):
        warm.warm_start(WarmStart.load(tmp_path / "first", pull=0.1), view.node_ids)
    adam = config.model_copy(update={"full_softmax": FullSoftmaxConfig(optimizer="adam")})
    with pytest.raises(ValueError, match="keep_state=0"):
        train(view, adam, lifecycle=Lifecycle(warm_start=WarmStart.load(tmp_path / "first")))


@pytest.mark.parametrize(
    "option",
    [
        {"chunk_size": 100},
        {"num_uniform": 3},
        {"num_degree": 3},
        {"degree_power": 0.5},
        {"mask_known": True},
        {"loss": "logistic"},
        {"logq": False},
        {"model": "transe", "distance": "l2"},
        {"max_edges_per_relation": 7},
        {"distinct_edges": False},
    ],
    ids=lambda option: list(option)[-1],
)
def test_options_of_sampled_negatives_are_refused_by_name(option: dict[str, Any]) -> None:
    KgeConfig.model_validate(option)
    with pytest.raises(ValueError, match=f"{list(option)[-1]}=.* means nothing with full_softmax"):
        KgeConfig.model_validate(option | {"full_softmax": {}})
    with pytest.raises(ValueError, match=r"transe's distances .* use fp32"):
        KgeConfig(model="transe", full_softmax=FullSoftmaxConfig(products="bf16"))
    # What was written out of a configuration, defaults and all, is read again.
    whole = KgeConfig(full_softmax=FullSoftmaxConfig())
    assert KgeConfig.model_validate(whole.model_dump(mode="json")) == whole


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
@pytest.mark.parametrize("name", ["transr", "transra"])
def test_projections_have_a_learning_rate_of_their_own(name: ModelName, optimizer: Literal["adagrad", "adam"]) -> None:
    def first_step(projection_lr: float | None) -> torch.Tensor:
        objective = FullSoftmaxConfig(optimizer=optimizer)
        config = KgeConfig(model=name, dim=4, rank=2, relation_lr=0.1, projection_lr=projection_lr, full_softmax=objective)
        trainer = full_trainer(small_split(), config)
        trainer.relation_table.add_(torch.randn(trainer.relation_table.shape, generator=torch.Generator().manual_seed(0)))
        before = trainer.relation_table.clone()
        trainer.step(trainer.all_queries())
        return trainer.relation_table - before

    with_one_rate, with_two = first_step(None), first_step(0.02)
    num_projected = 16 if name == "transr" else 2 * 4 * 2
    torch.testing.assert_close(with_two[:, :num_projected], 0.2 * with_one_rate[:, :num_projected], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(with_two[:, num_projected:], with_one_rate[:, num_projected:])
    assert with_one_rate.abs().min() > 1e-3


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bfloat16_products_on_a_cpu_without_them_are_warned_of(
    has_instructions: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    build("distmult", FullSoftmaxConfig(products="bf16"), reciprocal=True)
    assert ("set full_softmax.products='fp32'" in caplog.text) == (not has_instructions)


@pytest.mark.parametrize("batch_size", [2, 7, 11, 1000])
def test_a_step_takes_at_most_a_batch_of_queries_and_an_epoch_each_query_once(batch_size: int) -> None:
    for name in ("distmult", "transr"):
        config = KgeConfig(model=name, dim=4, rank=2, batch_size=batch_size, reciprocal=True, full_softmax=FullSoftmaxConfig())
        trainer = full_trainer(small_split(), config)
        steps = trainer._draw_steps(np.random.default_rng(0))
        sizes = [sum(len(piece.queries) for piece in step) for step in steps]
        assert max(sizes) <= batch_size
        assert sum(sizes) == trainer.num_queries
        taken = {(id(piece.group), int(query)) for step in steps for piece in step for query in piece.queries}
        assert len(taken) == trainer.num_queries
        # Two neighbours would not have fitted in one step.
        assert all(sizes[i] + len(steps[i + 1][0].queries) > batch_size for i in range(len(steps) - 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("relation_init", "least", "most"), [("signs", 0.95, 1.0), ("identity", 0.7, 0.8)], ids=["signs", "identity"]
)
def test_a_symmetric_relation_needs_both_signs(relation_init: RelationInit, least: float, most: float) -> None:
    # Pairs of places, one way learned for all and the way back for half. By a positive diagonal a.a + b.b > 2 a.b: of each
    # pair one place is more like itself than like the other, and comes before it in the other's ranking.
    num_pairs = 300
    first = np.arange(num_pairs, dtype=np.int32) * 2
    triples = TripleSet(
        heads=np.concatenate([first, first + 1]),
        relations=np.zeros(2 * num_pairs, dtype=np.int32),
        tails=np.concatenate([first + 1, first]),
        relation_names=("is beside",),
        ends={"is beside": ("place", "place")},
        num_nodes={"place": 2 * num_pairs},
    )
    held_out = num_pairs + np.arange(num_pairs // 2)
    split = TripleSplit(
        train=triples.take(np.setdiff1d(np.arange(2 * num_pairs), held_out)),
        valid=triples.take(held_out),
        test=triples.take(slice(0)),
    )
    config = KgeConfig(
        model="distmult",
        dim=16,
        batch_size=50,
        epochs=20,
        lr=0.1,
        relation_lr=0.02,
        l2=0.0,
        relation_init=relation_init,
        full_softmax=FullSoftmaxConfig(),
    )
    trainer = full_trainer(split, config)
    for _ in range(config.epochs):
        trainer.run_epoch()
    metrics = evaluate(trainer.predictor(), split.valid.edges(), known_pairs(*split))
    assert least <= metrics["filtered_mrr"] <= most, metrics
