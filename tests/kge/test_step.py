"""One training step against a loss written out triple by triple; each known bug of public relatives has a test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from graphdb import GraphView
from kge import KgeConfig
from kge.config import KgeValidation, ModelName
from kge.edges import RelationEdges, split_edges
from kge.trainer import Batch, Trainer
from tables.candidates import Candidates
from tables.lanes import Lanes

MODELS: tuple[ModelName, ...] = ("transe", "transr", "transra", "distmult", "complex", "rotate")


def build(view: GraphView, **options: object) -> Trainer:
    config = KgeConfig.model_validate(
        {
            "dim": 8,
            "init_scale": 0.5,
            "mask_known": True,
            "l2": 0.0,
            "validation": KgeValidation(num_edges=0),
            "num_uniform": 6,
            "num_degree": 4,
        }
        | options
    )
    generator = np.random.default_rng(config.seed)
    return Trainer(split_edges(view, config, generator), view.num_nodes, config, generator)


def relation_named(trainer: Trainer, name: str) -> RelationEdges:
    return next(relation for relation in trainer.edges if relation.name == name)


def take_step(trainer: Trainer, relation: RelationEdges, heads: np.ndarray, tails: np.ndarray) -> tuple[float, Batch]:
    batch = trainer.draw(relation, heads, tails)
    with Lanes() as lanes:
        return trainer.step(batch, lanes), batch


def spelled_out_loss(
    trainer: Trainer,
    relation: RelationEdges,
    heads: np.ndarray,
    tails: np.ndarray,
    drawn: dict[str, Candidates],
    tables: dict[str, Tensor],
    parameters: dict[str, dict[str, Tensor]],
) -> Tensor:
    """The loss by its definition: for each edge and side, its score against those of its true negatives."""
    config, model = trainer.config, trainer.model
    total = torch.zeros((), dtype=torch.float64)
    known = set(zip(relation.tails_of.left().tolist(), relation.tails_of.indices.tolist(), strict=True))
    inverse = parameters[f"{relation.name}^-1"] if config.reciprocal else None
    for head, tail in zip(heads.tolist(), tails.tolist(), strict=True):
        for side in ("head", "tail"):
            positive, scores, corrections = None, [], []
            for row, log_inclusion in zip(drawn[side].rows.tolist(), drawn[side].log_inclusion.tolist(), strict=True):
                triple = (row, tail) if side == "head" else (head, row)
                is_positive = triple == (head, tail)
                if triple in known and not is_positive and config.mask_known:
                    continue
                vectors = tables[relation.src][triple[0]][None], tables[relation.dst][triple[1]][None]
                if inverse is not None and side == "head":
                    score = model.score(vectors[1], vectors[0], inverse)
                else:
                    score = model.score(*vectors, parameters[relation.name])
                if is_positive:
                    assert positive is None, "the positive stands twice among its candidates"
                    positive = len(scores)
                scores.append(score)
                corrections.append(log_inclusion if config.logq else 0.0)
            assert positive is not None
            logits = torch.cat(scores) - torch.tensor(corrections, dtype=torch.float64)
            total = total - logits.log_softmax(0)[positive]
    return total / len(heads)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("relation_name", ["clicks", "alike"])
@pytest.mark.parametrize(
    "options", [{}, {"reciprocal": True, "l2": 0.3}, {"mask_known": False, "logq": False}], ids=["plain", "reciprocal", "raw"]
)
def test_a_step_follows_the_gradient_of_the_loss_written_out(
    view: GraphView, name: ModelName, relation_name: str, options: dict[str, object]
) -> None:
    trainer = build(view, model=name, **options)
    for values in trainer.state.relations.values.values():
        for value in values.values():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(5)) * 0.3)
    relation = relation_named(trainer, relation_name)
    tables = {key: table.double().requires_grad_() for key, table in trainer.state.tables.items()}
    parameters = {
        key: {name: value.double().requires_grad_() for name, value in values.items()}
        for key, values in trainer.state.relations.values.items()
    }
    before = {key: table.clone() for key, table in trainer.state.tables.items()}
    heads, tails = relation.train.heads[3:18], relation.train.tails[3:18]

    loss, batch = take_step(trainer, relation, heads, tails)

    drawn = {"head": batch.heads, "tail": batch.tails}
    expected = spelled_out_loss(trainer, relation, heads, tails, drawn, tables, parameters)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    lengths = tables[relation.src][heads].square().sum(1) + tables[relation.dst][tails].square().sum(1)
    (expected + trainer.config.l2 * lengths.mean()).backward()
    for key, table in tables.items():
        if table.grad is None:
            assert torch.equal(trainer.state.tables[key], before[key])
            continue
        # The first step of row-wise Adagrad: lr times the gradient over its root mean square in the row.
        scale = table.grad.square().mean(1, keepdim=True).sqrt().clamp(min=1e-10)
        moved = table.detach() - trainer.config.lr * table.grad / scale
        torch.testing.assert_close(trainer.state.tables[key].double(), moved, atol=2e-3, rtol=0)
        torch.testing.assert_close(trainer.state.optimizers[key].state.double(), scale[:, 0] ** 2, atol=1e-6, rtol=1e-3)
    for key, values in parameters.items():
        for parameter, value in values.items():
            state = trainer.state.relations.state[key][parameter]
            gradient = torch.zeros_like(value) if value.grad is None else value.grad
            torch.testing.assert_close(state.double(), gradient.square(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_relation_parameters_receive_gradient(view: GraphView, name: ModelName) -> None:
    trainer = build(view, model=name)
    relation = relation_named(trainer, "clicks")
    before = {
        key: {parameter: value.clone() for parameter, value in values.items()}
        for key, values in trainer.state.relations.values.items()
    }

    for _ in range(2):  # TransRA's left factor has no gradient while its right factor is zero
        take_step(trainer, relation, relation.train.heads, relation.train.tails)

    for key, values in trainer.state.relations.values.items():
        for parameter, value in values.items():
            assert torch.equal(value, before[key][parameter]) == (key != "clicks"), (key, parameter)


def test_both_sides_are_corrupted_with_nodes_of_the_relations_types_only(view: GraphView) -> None:
    trainer = build(view, model="distmult", num_uniform=40, num_degree=0)
    relation = relation_named(trainer, "made_by")
    before = {key: table.clone() for key, table in trainer.state.tables.items()}

    take_step(trainer, relation, relation.train.heads[:2], relation.train.tails[:2])

    moved = {key: (table != before[key]).any(1) for key, table in trainer.state.tables.items()}
    assert not moved["user"].any(), "a pin-advertiser batch drew a user"
    assert moved["pin"][2:].sum() > 5, "no head was replaced"
    assert moved["advertiser"][torch.from_numpy(relation.train.tails[2:])].any(), "no tail was replaced"


def test_known_edges_are_never_pushed_apart(view: GraphView) -> None:
    """All pins are candidates, and of one user's pins only the batch's own is its positive."""
    trainer = build(view, model="distmult", num_uniform=40)
    relation = relation_named(trainer, "clicks")
    head, tail = relation.train.heads[:1], relation.train.tails[:1]
    answers = set(relation.tails_of.row(int(head[0])))
    candidates = trainer._samplers["clicks"]["tail"].draw(tail, np.random.default_rng(0), queries=head, known=relation.tails_of)

    assert candidates.hits is not None
    assert len(answers) == 7
    assert set(candidates.rows[candidates.hits.slots]) == answers

    others = torch.tensor(sorted(answers - {int(tail[0])}))
    before = trainer.state.tables["pin"].clone()
    take_step(trainer, relation, head, tail)
    moved = (trainer.state.tables["pin"] != before).any(1)
    assert moved.sum() > 20
    assert not moved[others].any()


def test_relation_weight_zero_leaves_a_relation_out_and_an_unknown_name_is_refused(view: GraphView) -> None:
    assert [relation.name for relation in build(view, relation_weights={"alike": 0.0}).edges] == [
        "clicks",
        "made_by",
    ]
    with pytest.raises(ValueError, match=r"relation_weights names \['likes'\], but the view has the relations"):
        build(view, relation_weights={"likes": 1.0})


def test_a_cap_gives_each_relation_at_most_so_many_edges_an_epoch(view: GraphView) -> None:
    trainer = build(view, max_edges_per_relation=30, batch_size=16)
    seen = {relation.name: 0 for relation in trainer.edges}

    plan = trainer._plan(trainer.state.position.generator)
    for batch in trainer._batches(plan):
        seen[batch.relation.name] += len(batch)

    assert seen == {"clicks": 30, "made_by": 30, "alike": 30}
