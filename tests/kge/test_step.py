"""One training step against the loss written out triple by triple; each known bug of public relatives has a test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from multifacet.graphdb import GraphView
from multifacet.kge import KgeConfig
from multifacet.kge.batch import Batch
from multifacet.kge.config import KgeValidation, ModelName
from multifacet.kge.gradients import drop
from multifacet.kge.relations import Inverse
from multifacet.kge.schedule import step_seed
from multifacet.kge.trainer import Trainer
from multifacet.kge.training import split_view
from multifacet.tables.lanes import Lanes

MODELS: tuple[ModelName, ...] = ("transe", "transr", "transra", "distmult", "complex", "rotate")
DISTANCES = [(name, "squared") for name in MODELS] + [
    (name, distance) for name in ("transe", "transra", "rotate") for distance in ("l1", "l2")
]


def build(view: GraphView, **options: object) -> Trainer:
    config = KgeConfig.model_validate(
        {
            "dim": 8,
            "init_scale": 0.5,
            "l2": 0.0,
            "validation": KgeValidation(num_edges=0),
            "batch_size": 20,
            "chunk_size": 10,
            "num_uniform": 6,
            "num_degree": 4,
        }
        | options
    )
    generator = np.random.default_rng(config.seed)
    return Trainer(split_view(view, config, generator), config, generator)


def draw(trainer: Trainer, relation: str, heads: slice = slice(None), *, pool: int | None = None) -> Batch:
    """Draw a batch of some of the triples of a relation, or of a pair of node types, chunk after chunk."""
    source = trainer.source
    numbers = [source._pools[index].relations for index in range(len(source._pools))]
    number = trainer.split.train.relation_names.index(relation)
    index = next(index for index, relations in enumerate(numbers) if number in relations) if pool is None else pool
    positions = np.flatnonzero(numbers[index] == number)[heads]
    bounds = np.array([*range(0, len(positions), source.chunk_size), len(positions)])
    return source.draw(index, positions, bounds, trainer.state.position.generator)


def take_step(trainer: Trainer, batch: Batch) -> float:
    with Lanes() as lanes:
        return trainer.learn(batch, lanes)


def spread_relations(trainer: Trainer) -> None:
    """Move the relations' parameters away from those that change nothing."""
    table = trainer.state.relations.table
    table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(5)) * 0.3)


def row_of_type(trainer: Trainer, row: int) -> tuple[str, int]:
    for node_type, table in trainer.state.tables.items():
        if row < len(table):
            return node_type, row
        row -= len(table)
    raise AssertionError


def spelled_out_objective(
    trainer: Trainer, batch: Batch, tables: dict[str, Tensor], parameters: dict[str, dict[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The loss and the objective by their definitions: each edge's score against those of its true negatives."""
    config, model, triples = trainer.config, trainer.model, trainer.split.train
    known = set(zip(triples.heads.tolist(), triples.relations.tolist(), triples.tails.tolist(), strict=True))
    total, objective = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for position, side in enumerate(batch.sides):
        seed = 2 * step_seed(config.seed, trainer.state.position) + position
        for chunk, edge in zip(*np.nonzero(batch.weights), strict=True):
            kept = np.ones((1, config.dim), dtype=np.float32)
            drop(kept, np.float32(config.dropout), seed, chunk * batch.weights.shape[1] + edge)
            number = int(side.keys[chunk, edge]) % len(triples.relation_names)
            name = triples.relation_names[number]
            known_type, known_row = row_of_type(trainer, int(side.known[chunk, edge]))
            fixed = tables[known_type][known_row]
            scores, corrections, positive = [], [], None
            for slot, bias in enumerate(side.candidates.bias[chunk].tolist()):
                if np.isneginf(bias):
                    continue
                node_type, row = row_of_type(trainer, int(side.candidates.rows[chunk, slot]))
                assert node_type == triples.ends[name][0 if side.side == "head" else 1]
                is_positive = slot == side.candidates.targets[chunk, edge]
                triple = (row, number, known_row) if side.side == "head" else (known_row, number, row)
                if config.mask_known and triple in known and not is_positive:
                    continue
                vectors = (tables[node_type][row][None], fixed[None])
                if side.side == "tail":
                    vectors = vectors[::-1]
                if config.dropout:
                    key, asked = trainer.state.relations.query(name, side.side)
                    score = (model.translate(fixed[None], parameters[key], asked) * torch.from_numpy(kept)) @ tables[node_type][
                        row
                    ]
                elif config.reciprocal and side.side == "head":
                    score = model.score(vectors[1], vectors[0], parameters[Inverse(name)])
                else:
                    score = model.score(*vectors, parameters[name])
                if is_positive:
                    assert positive is None, "the positive stands twice among its candidates"
                    assert triple in known
                    positive = len(scores)
                scores.append(score)
                corrections.append(bias)
            assert positive is not None
            logits = torch.cat(scores) + torch.tensor(corrections, dtype=torch.float64)
            loss = row_loss(config, logits, positive)
            total = total + loss
            cubes = fixed.view(2, -1).square().sum(0).pow(1.5) if model.has_complex_entities else fixed.abs().pow(3)
            penalty = config.l2 * fixed.square().sum() + config.n3 * cubes.sum()
            objective = objective + (loss + penalty) * float(batch.weights[chunk, edge])
    return total, objective


def row_loss(config: KgeConfig, logits: Tensor, positive: int) -> Tensor:
    negatives = torch.cat([logits[:positive], logits[positive + 1 :]])
    if config.loss == "softmax":
        return -logits.log_softmax(0)[positive]
    if config.loss == "margin":
        return (config.margin - logits[positive] + negatives).clamp(min=0).mean()
    shares = torch.full_like(negatives, 1 / len(negatives))
    if config.loss == "self_adversarial":
        shares = (negatives.detach() * config.adversarial_temperature).softmax(0)
    margin = config.margin or 0.0
    return softplus(-logits[positive] - margin) + (shares * softplus(negatives + margin)).sum()


def check_step(trainer: Trainer, batch: Batch) -> None:
    """Hold a step to autograd in float64: the loss, each row's gradient and move, each relation parameter's gradient."""
    tables = {key: table.double().requires_grad_() for key, table in trainer.state.tables.items()}
    parameters = {
        key: {name: value.double().requires_grad_() for name, value in values.items()}
        for key, values in trainer.state.relations.values.items()
    }
    before = {key: table.clone() for key, table in trainer.state.tables.items()}

    loss = take_step(trainer, batch)

    expected, objective = spelled_out_objective(trainer, batch, tables, parameters)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    objective.backward()
    for key, table in tables.items():
        if table.grad is None:
            assert torch.equal(trainer.state.tables[key], before[key])
            continue
        # The first step of row-wise Adagrad: lr times the gradient over its root mean square in the row.
        squares = table.grad.square().mean(1)
        torch.testing.assert_close(trainer.state.optimizers[key].state.double(), squares, atol=1e-9, rtol=1e-3)
        scale = squares.sqrt()[:, None].clamp(min=1e-10)
        moved = table.detach() - trainer.config.lr * table.grad / scale
        clear = scale[:, 0] > 1e-6  # a gradient of rounding alone has no direction
        torch.testing.assert_close(trainer.state.tables[key].double()[clear], moved[clear], atol=2e-3, rtol=0)
    for key, values in parameters.items():
        for name, value in values.items():
            shape = value.shape
            position = list(trainer.state.relations.values).index(key)
            offset = sum(other.numel() for other in list(values.values())[: list(values).index(name)])
            state = trainer.state.relations.state[position, offset : offset + value.numel()].view(shape)
            gradient = torch.zeros_like(value) if value.grad is None else value.grad
            torch.testing.assert_close(state.double(), gradient.square(), atol=1e-8, rtol=2e-3)


@pytest.mark.parametrize(("name", "distance"), DISTANCES)
@pytest.mark.parametrize("relation", ["clicks", "alike"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reciprocal": True, "l2": 0.3, "n3": 0.2, "mask_known": True},
        {"logq": False, "relation_weights": {"clicks": 0.5}},
    ],
    ids=["plain", "reciprocal", "raw"],
)
def test_a_step_follows_the_gradient_of_the_loss_written_out(
    view: GraphView, name: ModelName, distance: str, relation: str, options: dict[str, object]
) -> None:
    trainer = build(view, model=name, distance=distance, **options)
    spread_relations(trainer)
    # One full chunk and a partial one.
    check_step(trainer, draw(trainer, relation, slice(3, 18)))


@pytest.mark.parametrize("name", ["distmult", "rotate", "transra"])
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "logistic", "margin": 0.7},
        {"loss": "margin", "margin": 2.0, "mask_known": True},
        {"loss": "self_adversarial", "margin": 1.0, "adversarial_temperature": 0.6, "reciprocal": True},
    ],
    ids=lambda options: str(options["loss"]),
)
def test_each_loss_is_the_one_that_it_says(view: GraphView, name: ModelName, options: dict[str, object]) -> None:
    trainer = build(view, model=name, **options)
    spread_relations(trainer)
    check_step(trainer, draw(trainer, "clicks", slice(3, 18)))


@pytest.mark.parametrize("options", [{}, {"reciprocal": True, "n3": 0.2, "mask_known": True}], ids=["plain", "reciprocal"])
@pytest.mark.parametrize("name", ["distmult", "complex"])
def test_dropout_takes_numbers_of_the_queries_in_the_loss_and_in_its_gradient(
    view: GraphView, name: ModelName, options: dict[str, object]
) -> None:
    trainer = build(view, model=name, dropout=0.4, **options)
    spread_relations(trainer)
    check_step(trainer, draw(trainer, "clicks", slice(3, 18)))


def test_dropout_keeps_the_mean_and_differs_by_query_and_by_seed() -> None:
    first, second = np.ones((2, 2000, 64), dtype=np.float32)
    drop(first, np.float32(0.3), 8, 0)
    drop(second, np.float32(0.3), 9, 0)
    for dropped in (first, second):
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
        assert (dropped == 0).mean() == pytest.approx(0.3, abs=5 * (0.21 / dropped.size) ** 0.5)
        assert np.abs((dropped == 0).mean(0) - 0.3).max() < 5 * (0.21 / len(dropped)) ** 0.5, "a column is dropped too often"
    assert ((first == 0) == (second == 0)).mean() == pytest.approx(0.58, abs=0.01)
    assert len(np.unique(first == 0, axis=0)) == 2000
    later = np.ones((1, 64), dtype=np.float32)
    drop(later, np.float32(0.3), 8, 1999)
    np.testing.assert_array_equal(later[0], first[1999])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_step_on_half_precision_rows_has_the_gradient_of_fp32_at_the_same_rows(view: GraphView, dtype: str) -> None:
    half, whole = build(view, model="complex", table_dtype=dtype), build(view, model="complex")
    for name, table in whole.state.tables.items():
        assert torch.equal(table.to(half.state.tables[name].dtype), half.state.tables[name]), "another start"
        table.copy_(half.state.tables[name])
    batch = draw(whole, "clicks", slice(3, 18))

    assert take_step(half, batch) == take_step(whole, batch)

    for name, optimizer in whole.state.optimizers.items():
        assert torch.equal(half.state.optimizers[name].state, optimizer.state)
        moved, expected = half.state.tables[name], whole.state.tables[name]
        away = (moved.float() - expected).abs()
        assert bool((away <= torch.finfo(moved.dtype).eps * expected.abs() + 2.0**-24).all()), "further than a neighbour"
        assert bool((away > 0).any()) == (name != "advertiser")


@pytest.mark.parametrize("name", MODELS)
def test_relation_parameters_receive_gradient(view: GraphView, name: ModelName) -> None:
    trainer = build(view, model=name)
    before = {
        key: {parameter: value.clone() for parameter, value in values.items()}
        for key, values in trainer.state.relations.values.items()
    }

    for _ in range(2):  # TransRA's left factor has no gradient while its right factor is zero
        take_step(trainer, draw(trainer, "clicks", slice(20)))

    for key, values in trainer.state.relations.values.items():
        for parameter, value in values.items():
            assert torch.equal(value, before[key][parameter]) == (key != "clicks"), (key, parameter)


def test_both_sides_are_corrupted_with_nodes_of_the_relations_types_only(view: GraphView) -> None:
    trainer = build(view, model="distmult", num_uniform=20, num_degree=0, chunk_size=2)
    before = {key: table.clone() for key, table in trainer.state.tables.items()}
    batch = draw(trainer, "made_by", slice(2))

    take_step(trainer, batch)

    moved = {key: (table != before[key]).any(1) for key, table in trainer.state.tables.items()}
    own_pins, own_advertisers = (batch.sides[0].known - 40)[0], (batch.sides[1].known - 80)[0]
    assert not moved["user"].any(), "a pin-advertiser batch drew a user"
    moved["pin"][own_pins] = False
    moved["advertiser"][own_advertisers] = False
    assert moved["pin"].sum() > 5, "no head was replaced"
    assert moved["advertiser"].any(), "no tail was replaced"


def test_known_edges_are_never_pushed_apart(view: GraphView) -> None:
    """All pins are candidates, and of one user's pins only the batch's own is its positive."""
    trainer = build(view, model="distmult", num_uniform=60, num_degree=0, mask_known=True)
    batch = draw(trainer, "clicks", slice(1))
    user, pin = int(batch.sides[0].known[0, 0]), int(batch.sides[1].known[0, 0]) - 40
    triples = trainer.split.train.edges()["clicks"]
    others = torch.from_numpy(triples.tails[(triples.heads == user) & (triples.tails != pin)].astype(np.int64))
    before = trainer.state.tables["pin"].clone()

    take_step(trainer, batch)

    moved = (trainer.state.tables["pin"] != before).any(1)
    assert len(others) == 6
    assert moved[pin]
    assert moved.sum() > 20
    assert not moved[others].any()


def test_the_same_batches_give_the_same_bits_on_one_thread_and_on_two(view: GraphView) -> None:
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            trainer = build(view, model="transra", batch_size=100, dim=32)
            for _ in range(3):
                trainer.run_epoch()
            results.append([*trainer.state.tables.values(), trainer.state.relations.table])
    finally:
        torch.set_num_threads(threads)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_relation_weight_zero_leaves_a_relation_out_and_an_unknown_name_is_refused(view: GraphView) -> None:
    assert build(view, relation_weights={"alike": 0.0}).split.train.relation_names == ("clicks", "made_by")
    with pytest.raises(ValueError, match=r"relation_weights names \['likes'\], but the view has the relations"):
        build(view, relation_weights={"likes": 1.0})


@pytest.mark.parametrize("name", ["distmult", "transr"])
def test_an_epoch_has_each_triple_once_and_a_cap_holds_for_each_relation(view: GraphView, name: ModelName) -> None:
    for cap in (None, 30):
        trainer = build(view, model=name, max_edges_per_relation=cap)
        counts = dict.fromkeys(trainer.split.train.relation_names, 0)
        seen = set()
        generator = np.random.default_rng(3)
        for batch in trainer.source.batches(trainer.source.epoch(generator), generator):
            heads, tails = batch.sides[0].known, batch.sides[1].known
            for chunk, edge in zip(*np.nonzero(batch.weights), strict=True):
                counts[trainer.split.train.relation_names[batch.sides[0].keys[chunk, edge]]] += 1
                seen.add((heads[chunk, edge], batch.sides[0].keys[chunk, edge], tails[chunk, edge]))
            if name == "transr":
                assert all(len(set(keys)) == 1 for keys in batch.sides[0].keys.tolist())
        full = {relation: len(edges) for relation, edges in trainer.split.train.edges().items()}
        assert counts == {relation: min(size, cap or size) for relation, size in full.items()}
        assert len(seen) == sum(counts.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 1.0}, "margin means nothing to the softmax loss"),
        ({"loss": "margin", "logq": True}, "logq means nothing to the margin loss"),
        ({"model": "complex", "distance": "l1"}, "distance means nothing to complex"),
        ({"model": "rotate", "dropout": 0.1}, "rotate scores by a distance"),
        ({"table_dtype": "bf16", "partitions": 4}, "table_dtype='bf16' is not for tables in partitions"),
        ({"table_dtype": "bf16", "full_softmax": {}}, "table_dtype='bf16': means nothing with full_softmax"),
        ({"dropout": 0.1, "full_softmax": {}}, "dropout=0.1: means nothing with full_softmax"),
        ({"adversarial_temperature": 1.0, "loss": "logistic"}, "adversarial_temperature means nothing"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KgeConfig.model_validate(options)


@pytest.mark.parametrize("name", ["transr", "transra"])
def test_projections_have_a_learning_rate_of_their_own(view: GraphView, name: ModelName) -> None:
    def first_step(**options: object) -> Tensor:
        trainer = build(view, model=name, rank=2, relation_lr=0.1, **options)
        spread_relations(trainer)
        before = trainer.state.relations.table.clone()
        take_step(trainer, draw(trainer, "clicks", slice(3, 18)))
        return trainer.state.relations.table - before

    with_one_rate, with_two = first_step(), first_step(projection_lr=0.02)
    num_projected = 8 * 8 if name == "transr" else 2 * 8 * 2
    assert with_one_rate[:, :num_projected].abs().max() > 0.05
    torch.testing.assert_close(with_two[:, :num_projected], 0.2 * with_one_rate[:, :num_projected], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(with_two[:, num_projected:], with_one_rate[:, num_projected:])


def test_a_rate_of_projections_is_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"projection_lr=0\.1 is for transr and transra: transe has no projections"):
        KgeConfig(model="transe", projection_lr=0.1)
