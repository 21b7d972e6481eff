"""Filtered, constrained and sampled ranks of many relations, with PyKEEN and a count one by one as oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pykeen.constants import TARGET_TO_INDEX
from pykeen.evaluation import RankBasedEvaluator

from multifacet.kge import (
    EdgeList,
    KgeConfig,
    LinkPredictor,
    TripleSet,
    build_model,
    evaluate,
    evaluate_constrained,
    evaluate_sampled,
)
from multifacet.kge.config import Distance, ModelName
from multifacet.kge.evaluation import known_pairs
from multifacet.kge.ranks import SeenEnds, rank_edges
from multifacet.kge.relations import RelationParameters

NUM_ENTITIES, NUM_RELATIONS = 23, 3
MODELS: tuple[ModelName, ...] = ("transe", "transr", "transra", "distmult", "complex", "rotate")


def draw_triples(num_triples: int, seed: int) -> TripleSet:
    random = np.random.default_rng(seed)
    cells = random.permutation(NUM_ENTITIES * NUM_RELATIONS * NUM_ENTITIES)[:num_triples]
    names = tuple(f"r{number}" for number in range(NUM_RELATIONS))
    return TripleSet(
        heads=(cells // (NUM_RELATIONS * NUM_ENTITIES)).astype(np.int32),
        relations=(cells // NUM_ENTITIES % NUM_RELATIONS).astype(np.int32),
        tails=(cells % NUM_ENTITIES).astype(np.int32),
        relation_names=names,
        ends=dict.fromkeys(names, ("entity", "entity")),
        num_nodes={"entity": NUM_ENTITIES},
    )


def make_predictor(
    name: ModelName, triples: TripleSet, *, reciprocal: bool = False, seed: int = 0, distance: Distance = "squared"
) -> LinkPredictor:
    """Entities of a few coordinates each, so that some scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    config = KgeConfig(model=name, dim=4, rank=2, distance=distance)
    model = build_model(config)
    relations = RelationParameters(model, triples.relation_names, reciprocal=reciprocal, generator=generator)
    vectors = {"entity": torch.randint(-2, 3, (NUM_ENTITIES, 4), generator=generator).float()}
    return LinkPredictor(model=model, vectors=vectors, relations=relations, ends=triples.ends)


def all_scores(predictor: LinkPredictor, relation: str, known: int, side: str) -> np.ndarray:
    """Score every entity for one query, by the same products as the ranking: equal scores must stay equal."""
    candidates = predictor.candidates(relation, side)  # type: ignore[arg-type]
    queries = torch.tensor([known])
    return predictor.score_candidates(relation, queries, candidates, side).numpy()[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reciprocal", [False, True])
def test_metrics_equal_pykeen(name: ModelName, reciprocal: bool) -> None:
    everything = draw_triples(300, seed=3)
    tested = everything.take(slice(200, 260))
    # Random coordinates: what PyKEEN calls equal depends on the last bit of a float32 product otherwise.
    predictor = make_predictor(name, everything, reciprocal=reciprocal)
    predictor.vectors["entity"].add_(torch.rand(NUM_ENTITIES, 4, generator=torch.Generator().manual_seed(1)))
    evaluator = RankBasedEvaluator()
    mapped = torch.from_numpy(np.stack([tested.heads, tested.relations, tested.tails], axis=1)).long()
    known = torch.from_numpy(np.stack([everything.heads, everything.relations, everything.tails], axis=1)).long()
    for target in ("head", "tail"):
        scores = torch.stack(
            [
                torch.from_numpy(all_scores(predictor, f"r{relation}", int(tail if target == "head" else head), target))
                for head, relation, tail in mapped.tolist()
            ]
        )
        true_scores = scores.gather(1, mapped[:, [TARGET_TO_INDEX[target]]])
        keep = torch.ones_like(scores, dtype=torch.bool)
        others = [0, 1, 2]
        others.remove(TARGET_TO_INDEX[target])
        for row, triple in enumerate(mapped):
            alike = known[(known[:, others] == triple[others]).all(dim=1)]
            keep[row, alike[:, TARGET_TO_INDEX[target]]] = False
        filtered = scores.masked_fill(~keep, float("nan")).scatter(1, mapped[:, [TARGET_TO_INDEX[target]]], true_scores)
        evaluator.process_scores_(mapped, target, filtered, true_scores)  # type: ignore[arg-type]
    expected = evaluator.finalize()

    metrics = evaluate(predictor, tested.edges(), known_pairs(everything))

    for own, theirs in (
        ("filtered_mrr", "inverse_harmonic_mean_rank"),
        ("filtered_mean_rank", "arithmetic_mean_rank"),
        ("filtered_hits@1", "hits_at_1"),
        ("filtered_hits@3", "hits_at_3"),
        ("filtered_hits@10", "hits_at_10"),
    ):
        assert metrics[own] == pytest.approx(expected.get_metric(f"both.realistic.{theirs}"), abs=1e-6), own
    for side in ("head", "tail"):
        mrr = expected.get_metric(f"{side}.realistic.inverse_harmonic_mean_rank")
        assert metrics[f"filtered_mrr_of_side/{side}"] == pytest.approx(mrr, abs=1e-6)


@given(
    name=st.sampled_from(MODELS),
    num_tested=st.integers(1, 40),
    num_known=st.integers(0, 200),
    block=st.sampled_from([1, 5 * NUM_ENTITIES, 1 << 22]),
    constrained=st.booleans(),
    distance=st.sampled_from(["squared", "l2", "l1"]),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_ranks_equal_those_counted_one_by_one(
    name: ModelName, num_tested: int, num_known: int, block: int, constrained: bool, distance: Distance, seed: int
) -> None:
    everything = draw_triples(num_tested + num_known, seed)
    tested, trained = everything.take(slice(num_tested)), everything.take(slice(num_tested, None))
    if name in {"distmult", "complex"}:
        distance = "squared"
    predictor = make_predictor(name, everything, seed=seed, distance=distance)
    if name in {"distmult", "transe"}:  # whole numbers: ties, and no rounding anywhere
        for values in predictor.relations.values.values():
            for value in values.values():
                value.copy_(torch.randint(-1, 2, value.shape, generator=torch.Generator().manual_seed(seed)))
    seen = SeenEnds.of(trained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multifacet.kge.ranks._BLOCK_ELEMENTS", block)
        patch.setattr("multifacet.kge.ranks._EFFICIENT_ROWS", 1)
        ranks = rank_edges(predictor, tested.edges(), known_pairs(everything), constraint=seen if constrained else None)

    facts = set(zip(everything.heads.tolist(), everything.relations.tolist(), everything.tails.tolist(), strict=True))
    for number, (relation, edges) in enumerate(tested.edges().items()):
        for place, (head, tail) in enumerate(zip(edges.heads.tolist(), edges.tails.tolist(), strict=True)):
            for side, answer, known, allowed, rank in (
                (
                    "head",
                    head,
                    {h for h, r, t in facts if (r, t) == (number, tail)},
                    seen[relation].heads,
                    ranks[relation].heads,
                ),
                (
                    "tail",
                    tail,
                    {t for h, r, t in facts if (h, r) == (head, number)},
                    seen[relation].tails,
                    ranks[relation].tails,
                ),
            ):
                scores = all_scores(predictor, relation, tail if side == "head" else head, side).astype(np.float64)
                rivals = set(allowed.tolist()) if constrained else set(range(NUM_ENTITIES))
                rest = scores[sorted(rivals - known - {answer})]
                # Another product may round the last bits otherwise: a near tie may then be none, or the other way.
                near = 1e-4 * max(1.0, np.abs(scores).max())
                assert 1 + (rest > scores[answer] + near).sum() <= rank[place] <= 1 + (rest >= scores[answer] - near).sum()
                if name in {"distmult", "transe"}:
                    expected = 1 + (rest > scores[answer]).sum() + 0.5 * (rest == scores[answer]).sum()
                    assert rank[place] == expected


def test_constrained_metrics_have_names_of_their_own_and_are_no_worse() -> None:
    everything = draw_triples(200, seed=5)
    tested = everything.take(slice(50))
    predictor = make_predictor("complex", everything)
    known = known_pairs(everything)
    full = evaluate(predictor, tested.edges(), known)
    constrained = evaluate_constrained(predictor, tested.edges(), known, SeenEnds.of(everything.take(slice(50, 90))))
    assert set(full) & set(constrained) == set()
    assert constrained["constrained_mrr"] > full["filtered_mrr"]


def test_sampled_metrics_have_names_of_their_own_and_near_the_expected_rank() -> None:
    everything = draw_triples(150, seed=6)
    tested = everything.take(slice(60))
    predictor = make_predictor("transra", everything)
    known = known_pairs(everything)
    num_sampled = 400
    sampled = evaluate_sampled(predictor, tested.edges(), known, num_sampled=num_sampled, generator=np.random.default_rng(0))
    ranks = rank_edges(predictor, tested.edges(), known)
    # A draw beats an answer of filtered rank r with chance (r - 1) / num_entities.
    expected = 1 + num_sampled * (np.concatenate([part.both() for part in ranks.values()]) - 1) / NUM_ENTITIES
    assert sampled["sampled400_mean_rank"] == pytest.approx(expected.mean(), rel=0.05)
    assert set(sampled) & set(evaluate(predictor, tested.edges(), known)) == set()
    with pytest.raises(ValueError, match="num_sampled"):
        evaluate_sampled(predictor, tested.edges(), known, num_sampled=0, generator=np.random.default_rng(0))


def test_no_edges_give_no_metrics() -> None:
    nothing = EdgeList(heads=np.empty(0, np.int32), tails=np.empty(0, np.int32))
    everything = draw_triples(5, seed=0)
    assert evaluate(make_predictor("distmult", everything), {"r0": nothing}, known_pairs(everything)) == {}
