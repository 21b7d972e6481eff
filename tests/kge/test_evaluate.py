"""Filtered ranks against ranks counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multifacet.kge import EdgeList, KgeConfig, LinkPredictor, build_model, evaluate
from multifacet.kge.ranks import rank_edges
from multifacet.kge.relations import Inverse, RelationParameters
from multifacet.tables.pairs import PairIndex

NUM_USERS, NUM_PINS = 13, 17


def predictor(*, reciprocal: bool = False, integers: bool = True) -> LinkPredictor:
    """Vectors of small integers, so that many scores are equal."""
    generator = torch.Generator().manual_seed(2)
    model = build_model(KgeConfig(model="distmult", dim=4))
    relations = RelationParameters(model, ["clicks"], reciprocal=reciprocal, generator=generator)
    for key, values in relations.values.items():
        values["diagonal"] = torch.full((4,), 2.0 if isinstance(key, Inverse) else 1.0)
    vectors = {
        "user": torch.randint(-1, 2, (NUM_USERS, 4), generator=generator).float(),
        "pin": torch.randint(-1, 2, (NUM_PINS, 4), generator=generator).float(),
    }
    if not integers:
        vectors = {key: table + torch.rand(table.shape, generator=generator) for key, table in vectors.items()}
    return LinkPredictor(model=model, vectors=vectors, relations=relations, ends={"clicks": ("user", "pin")})


def edges(num_edges: int, seed: int) -> EdgeList:
    pairs = np.random.default_rng(seed).permutation(NUM_USERS * NUM_PINS)[:num_edges]
    return EdgeList(heads=(pairs // NUM_PINS).astype(np.int32), tails=(pairs % NUM_PINS).astype(np.int32))


def counted_rank(scores: list[float], answer: int, known: set[int]) -> float:
    others = [score for row, score in enumerate(scores) if row != answer and row not in known]
    best = 1 + sum(score > scores[answer] for score in others)
    worst = best + sum(score == scores[answer] for score in others)
    return (best + worst) / 2


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("reciprocal", [True, False])
@pytest.mark.parametrize("answers_are_known", [True, False])
def test_ranks_equal_those_counted_one_by_one(
    integers: bool, reciprocal: bool, answers_are_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multifacet.kge.ranks._BLOCK_ELEMENTS", 3 * NUM_PINS)  # several blocks
    monkeypatch.setattr("multifacet.kge.ranks._EFFICIENT_ROWS", 1)
    tested, trained = edges(40, 7), edges(90, 8)
    heads, tails = trained.heads, trained.tails
    if answers_are_known:
        heads, tails = np.concatenate([heads, tested.heads]), np.concatenate([tails, tested.tails])
    known = PairIndex(heads, tails, num_left=NUM_USERS, num_right=NUM_PINS)
    model = predictor(reciprocal=reciprocal, integers=integers)
    users, pins = model.vectors["user"], model.vectors["pin"]

    ranks_of_clicks = rank_edges(model, {"clicks": tested}, {"clicks": known})["clicks"]
    head_ranks, tail_ranks = ranks_of_clicks.heads, ranks_of_clicks.tails

    pairs = set(zip(heads.tolist(), tails.tolist(), strict=True))
    factor = 2.0 if reciprocal else 1.0
    for edge, (head, tail) in enumerate(zip(tested.heads.tolist(), tested.tails.tolist(), strict=True)):
        scores = (pins @ users[head]).tolist()
        assert tail_ranks[edge] == counted_rank(scores, tail, {t for h, t in pairs if h == head})
        scores = ((users * factor) @ pins[tail]).tolist()
        assert head_ranks[edge] == counted_rank(scores, head, {h for h, t in pairs if t == tail})

    metrics = evaluate(model, {"clicks": tested}, {"clicks": known})
    ranks = np.concatenate([head_ranks, tail_ranks])
    assert metrics["filtered_mrr"] == pytest.approx((1 / ranks).mean())
    assert metrics["filtered_mrr/clicks"] == metrics["filtered_mrr"]
    assert metrics["filtered_hits@3"] == (ranks <= 3).mean()


def test_all_scores_equal_give_the_middle_rank() -> None:
    model = predictor()
    for table in model.vectors.values():
        table.zero_()
    nothing = PairIndex(*np.zeros((2, 0), dtype=np.int32), num_left=NUM_USERS, num_right=NUM_PINS)

    ranks = rank_edges(model, {"clicks": edges(5, 1)}, {"clicks": nothing})["clicks"]

    assert set(ranks.heads) == {(1 + NUM_USERS) / 2}
    assert set(ranks.tails) == {(1 + NUM_PINS) / 2}


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    model = predictor()
    model.vectors["pin"][3] = float("nan")
    nothing = PairIndex(*np.zeros((2, 0), dtype=np.int32), num_left=NUM_USERS, num_right=NUM_PINS)

    with pytest.raises(ValueError, match="relation 'clicks', head query of row 3: a score is not a number"):
        rank_edges(model, {"clicks": EdgeList(heads=np.int32([1]), tails=np.int32([3]))}, {"clicks": nothing})


def test_an_unknown_relation_is_named() -> None:
    with pytest.raises(KeyError, match=r"unknown relation 'buys'; this model has \['clicks'\]"):
        predictor().score("buys", torch.tensor([0]), torch.tensor([0]))
