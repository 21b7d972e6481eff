from __future__ import annotations

import numpy as np
import pytest
import torch

from multifacet import contrastive
from multifacet.contrastive import ContrastiveConfig, Positives
from multifacet.training import PairIndex

from .contract import Case, missing_functions

CONFIG = ContrastiveConfig(dim=4, epochs=1, batch_size=4, num_uniform=2, num_degree=0)
PAIRS = {"num_queries": 3, "num_items": 4}
NONE = Positives.from_pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), **PAIRS)
RELEVANT = PairIndex(np.array([0, 1]), np.array([1, 2]), num_left=3, num_right=4)


def tables(value: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((3, 2), value), torch.ones(4, 2)


ONE = Positives.from_pairs(np.array([0, 1]), np.array([0, 1]), **PAIRS)
OTHER = Positives.from_pairs(np.array([0, 1]), np.array([1, 0]), **PAIRS)
CASES = [
    Case("read_pairs", "wrong type", lambda: contrastive.read_pairs(7), "pairs are a int"),
    Case("read_pairs", "nan", lambda: contrastive.read_pairs([(float("nan"), 1)]), "ids are integers or strings"),
    Case("read_pairs", "empty", lambda: contrastive.read_pairs([]), "no pairs"),
    Case("read_pairs", "unknown", lambda: contrastive.read_pairs([("a", "b")], weight="n"), r"no columns \['n'\]"),
    Case(
        "read_pairs",
        "duplicated",
        lambda: contrastive.read_pairs([("a", "b")] * 2),
        gives=lambda pairs: pairs.positives.weights.tolist() == [2.0],
    ),
    Case("read_pairs", "mismatched", lambda: contrastive.read_pairs([("a",)]), r"\(query, item\) each"),
    Case("train_pairs", "wrong type", lambda: contrastive.train_pairs([("a", "b")], CONFIG), "positives is a list"),
    Case("train_pairs", "wrong type", lambda: contrastive.train_pairs(NONE, "ccl"), "config is a str"),
    Case("train_pairs", "empty", lambda: contrastive.train_pairs(NONE, CONFIG), "no positives to learn from"),
    Case(
        "train_pairs",
        "mismatched",
        lambda: Positives.from_pairs(np.array([0, 1]), np.array([0]), **PAIRS),
        "two columns of one length",
    ),
    Case("train_pairs", "unknown", lambda: Positives.from_pairs(np.array([9]), np.array([0]), **PAIRS), r"rows lie in 0\.\.2"),
    Case(
        "train_pairs",
        "nan",
        lambda: Positives.from_pairs(np.array([0]), np.array([0]), weights=np.array([np.nan]), **PAIRS),
        "edge 0 has nan",
    ),
    Case("align", "wrong type", lambda: contrastive.align("a", "new", "old"), "new is a str; expected Snapshot"),
    Case("train", "wrong type", lambda: contrastive.train(NONE, CONFIG), "view is a Positives; expected a graph's view"),
    Case(
        "split_view", "wrong type", lambda: contrastive.split_view(NONE, CONFIG), "view is a Positives; expected a graph's view"
    ),
    Case("search", "wrong type", lambda: contrastive.search([], NONE), "positives is a list; expected Positives or Pairs"),
    Case("search", "empty", lambda: contrastive.search(NONE, NONE), "held_out is empty"),
    Case("search", "duplicated", lambda: contrastive.search(ONE, ONE), "all held-out pairs are learned from as well"),
    Case("search", "unknown", lambda: contrastive.search(ONE, OTHER, CONFIG, {"rate": [1]}), "there is no field 'rate'"),
    Case(
        "default_space", "wrong type", lambda: contrastive.default_space("softmax"), "base is a str; expected ContrastiveConfig"
    ),
    Case(
        "evaluate",
        "wrong type",
        lambda: contrastive.evaluate([[1.0]], torch.ones(4, 2), relevant=RELEVANT),
        "queries is a list",
    ),
    Case("evaluate", "wrong type", lambda: contrastive.evaluate(*tables(), relevant={0: [1]}), "relevant is a dict"),
    Case("evaluate", "nan", lambda: contrastive.evaluate(*tables(float("nan")), relevant=RELEVANT), "not a number"),
    Case(
        "evaluate",
        "empty",
        lambda: contrastive.evaluate(*tables(), relevant=NONE.index()),
        gives=lambda found: found == {},
    ),
    Case(
        "evaluate", "mismatched", lambda: contrastive.evaluate(torch.ones(2, 2), torch.ones(4, 2), relevant=RELEVANT), "is of 3"
    ),
    Case(
        "evaluate",
        "mismatched",
        lambda: contrastive.evaluate(torch.ones(3, 5), torch.ones(4, 2), relevant=RELEVANT),
        "one width",
    ),
    Case("evaluate", "unknown", lambda: contrastive.evaluate(*tables(), relevant=RELEVANT, k=0), "k is 0"),
]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_bad_input_gets_our_own_words(case: Case) -> None:
    case.run()


def test_every_public_function_is_asked() -> None:
    assert missing_functions(contrastive, CASES, {}) == set()
