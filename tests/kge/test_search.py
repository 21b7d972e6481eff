"""The search finds what learns, and tells all that it tried."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphdb import GraphView
from kge import FullSoftmaxConfig, KgeConfig, KgeValidation, TripleSet, TripleSplit
from kge.search import search


@pytest.fixture(scope="module")
def split(view: GraphView) -> TripleSplit:
    return TripleSet.from_view(view).hold_out(KgeValidation(num_edges=60), np.random.default_rng(0))


def test_halves_until_one_is_left_and_finds_the_one_that_learns(split: TripleSplit) -> None:
    base = KgeConfig(model="distmult", dim=8, batch_size=80, full_softmax=FullSoftmaxConfig(optimizer="adam"))
    space = {"lr": [1e-6, 1e-5, 0.05, 1e-7], "full_softmax.dropout": [0.0]}
    found = search(split, base, space, num_trials=4, min_epochs=3, reduction=2)
    assert [trial.config.epochs for trial in found.trials] == [3, 3, 3, 3, 6, 6, 12]
    assert found.config.lr == 0.05
    assert found.config.full_softmax is not None
    assert found.config.full_softmax.optimizer == "adam"
    assert found.config.epochs == 12
    assert found.trials[-1].filtered_mrr == max(trial.filtered_mrr for trial in found.trials if trial.config.epochs == 12)


def test_searches_sampled_trainings_too(split: TripleSplit) -> None:
    base = KgeConfig(model="transe", dim=8, batch_size=64, chunk_size=32)
    found = search(split, base, {"dim": [4, 8]}, num_trials=9, min_epochs=1, reduction=2)
    assert len(found.trials) == 3  # the whole space, once


def test_wrong_spaces_are_refused(split: TripleSplit) -> None:
    base = KgeConfig(full_softmax=FullSoftmaxConfig())
    with pytest.raises(ValueError, match="nonsense"):
        search(split, base, {"full_softmax.nonsense": [1]})
    with pytest.raises(ValueError, match="valid is empty"):
        search(replace(split, valid=split.test), base, {})
