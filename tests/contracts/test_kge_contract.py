from __future__ import annotations

import numpy as np
import pytest
import torch

from multifacet import kge
from multifacet.kge import EdgeList, KgeConfig, LinkPredictor, TripleSet, TripleSplit
from multifacet.kge.evaluation.ranks import SeenEnds
from multifacet.training import Lifecycle

from .contract import Case, missing_functions

CONFIG = KgeConfig(dim=4, epochs=1, batch_size=8, chunk_size=8, num_uniform=2, num_degree=0, validation={"num_edges": 0})
ROWS = [(f"u{number % 5}", "buys", f"p{number % 7}") for number in range(35)]
SPLIT = kge.read_split(ROWS[:30], ROWS[30:])
EMPTY = TripleSplit(train=SPLIT.train.take(slice(0)), valid=SPLIT.train.take(slice(0)), test=SPLIT.train.take(slice(0)))
RESULT = kge.train_triples(SPLIT, CONFIG)
PREDICTOR = RESULT.predictor()
KNOWN = kge.known_pairs(*SPLIT)


def edges(heads: object, tails: object) -> dict[str, EdgeList]:
    return {"buys": EdgeList(heads=np.asarray(heads), tails=np.asarray(tails))}


def broken() -> LinkPredictor:
    vectors = {"entity": torch.full_like(PREDICTOR.vectors["entity"], torch.nan)}
    return LinkPredictor(model=PREDICTOR.model, vectors=vectors, relations=PREDICTOR.relations, ends=PREDICTOR.ends)


def triples(**fields: object) -> TripleSet:
    given = {"heads": np.int32([0]), "relations": np.int32([0]), "tails": np.int32([0]), "relation_names": ("r",)}
    given |= {"ends": {"r": ("a", "a")}, "num_nodes": {"a": 2}}
    return TripleSet(**(given | fields))


TUPLES = [("a", "r", "b")]
CASES = [
    Case("read_triples", "wrong type", lambda: kge.read_triples(7), "train is a int"),
    Case("read_triples", "nan", lambda: kge.read_triples([(0.5, "r", float("nan"))]), "ids are integers or strings"),
    Case("read_triples", "empty", lambda: kge.read_triples([]), "no triples"),
    Case("read_triples", "unknown", lambda: kge.read_triples(TUPLES, types={"s": ("a", "b")}), "types says nothing of"),
    Case("read_triples", "duplicated", lambda: kge.read_triples(TUPLES * 2), "more than once"),
    Case("read_triples", "mismatched", lambda: kge.read_triples([("a", "r")]), r"expected \(head, relation, tail\)"),
    Case("read_split", "wrong type", lambda: kge.read_split(TUPLES, 7), "valid is a int"),
    Case("read_split", "nan", lambda: kge.read_split([(float("nan"), "r", "b")]), "ids are integers or strings"),
    Case("read_split", "empty", lambda: kge.read_split(TUPLES, []), "valid has no triples"),
    Case("read_split", "unknown", lambda: kge.read_split(TUPLES, columns=("a", "b", "c"), weight="w"), "has no columns"),
    Case("read_split", "duplicated", lambda: kge.read_split(TUPLES, TUPLES), "stand in valid too"),
    Case("read_split", "mismatched", lambda: kge.read_split(TUPLES, columns=("a", "b")), "expected the names of the columns"),
    Case("train_triples", "wrong type", lambda: kge.train_triples(TUPLES, CONFIG), "split is a list; expected TripleSplit"),
    Case("train_triples", "nan", lambda: kge.train_triples(SPLIT, "complex"), "config is a str; expected KgeConfig"),
    Case("train_triples", "empty", lambda: kge.train_triples(EMPTY, CONFIG), "no triple to learn from"),
    Case("align", "wrong type", lambda: kge.align("a", "new", "old"), "new is a str; expected Snapshot"),
    Case("symmetry_of", "unknown", lambda: kge.symmetry_of("rescal"), "model is 'rescal'; expected one of"),
    Case("symmetry_of", "unknown", lambda: kge.symmetry_of("transe", "l3"), "distance is 'l3'"),
    Case("train", "wrong type", lambda: kge.train(SPLIT, CONFIG), "view is a TripleSplit; expected a graph's view"),
    Case("split_view", "wrong type", lambda: kge.split_view(SPLIT, CONFIG, None), "view is a TripleSplit; expected a graph"),
    Case("search", "wrong type", lambda: kge.search(TUPLES, CONFIG), "split is a list; expected TripleSplit"),
    Case("search", "empty", lambda: kge.search(EMPTY, CONFIG), "split.valid is empty"),
    Case("search", "nan", lambda: kge.search(SPLIT, CONFIG, {"lr": [float("nan")]}), "lr is nan"),
    Case("search", "unknown", lambda: kge.search(SPLIT, CONFIG, {"rate": [1]}), "there is no field 'rate'"),
    Case("search", "mismatched", lambda: kge.search(SPLIT, CONFIG, {"lr": []}), "has no values for"),
    Case("default_space", "wrong type", lambda: kge.default_space("complex", None), "base is a str; expected KgeConfig"),
    Case("build_model", "wrong type", lambda: kge.build_model("complex"), "config is a str; expected KgeConfig"),
    Case("known_pairs", "wrong type", lambda: kge.known_pairs(TUPLES), "triples are a list; expected TripleSet"),
    Case("known_pairs", "empty", kge.known_pairs, "there are no triples to know"),
    Case("known_pairs", "mismatched", lambda: kge.known_pairs(SPLIT.train, triples()), "count in other vocabularies"),
    Case("evaluate", "wrong type", lambda: kge.evaluate(RESULT, edges([0], [1]), KNOWN), "predictor is a KgeResult"),
    Case("evaluate", "nan", lambda: kge.evaluate(broken(), SPLIT.valid.edges(), KNOWN), "a score is not a number"),
    Case("evaluate", "empty", lambda: kge.evaluate(PREDICTOR, {}, KNOWN), gives=lambda found: found == {}),
    Case("evaluate", "unknown", lambda: kge.evaluate(PREDICTOR, {"sells": SPLIT.valid.edges()["buys"]}, KNOWN), "sells"),
    Case(
        "evaluate",
        "duplicated",
        lambda: kge.evaluate(PREDICTOR, edges([0, 0], [1, 1]), KNOWN),
        gives=lambda m: m["filtered_mrr"] > 0,
    ),
    Case("evaluate", "mismatched", lambda: kge.evaluate(PREDICTOR, edges([0, 1], [1]), KNOWN), "heads and tails"),
    Case("evaluate", "unknown", lambda: kge.evaluate(PREDICTOR, edges([0], [99]), KNOWN), "outside"),
    Case(
        "evaluate_constrained",
        "wrong type",
        lambda: kge.evaluate_constrained(RESULT, edges([0], [1]), KNOWN, SeenEnds.of(SPLIT.train)),
        "predictor is a KgeResult",
    ),
    Case(
        "evaluate_constrained",
        "empty",
        lambda: kge.evaluate_constrained(PREDICTOR, {}, KNOWN, SeenEnds.of(SPLIT.train)),
        gives=lambda found: found == {},
    ),
    Case(
        "evaluate_sampled",
        "wrong type",
        lambda: kge.evaluate_sampled(RESULT, edges([0], [1]), KNOWN, num_sampled=3, generator=np.random.default_rng(0)),
        "predictor is a KgeResult",
    ),
    Case(
        "evaluate_sampled",
        "mismatched",
        lambda: kge.evaluate_sampled(PREDICTOR, edges([0], [1, 2]), KNOWN, num_sampled=3, generator=np.random.default_rng(0)),
        "heads and tails",
    ),
    Case("train_triples", "mismatched", lambda: triples(heads=np.int32([0, 1])), "must be an int32 column as long as heads"),
    Case("train_triples", "unknown", lambda: triples(tails=np.int32([7])), "outside its vocabulary"),
    Case("train_triples", "duplicated", lambda: triples(relation_names=("r", "r")), "must be distinct"),
]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_bad_input_gets_our_own_words(case: Case) -> None:
    case.run()


def test_every_public_function_is_asked() -> None:
    elsewhere = dict.fromkeys(("model_names", "register_model"), "tests/kge/models/test_registry.py")
    assert missing_functions(kge, CASES, elsewhere) == set()
    assert Lifecycle() is not None
