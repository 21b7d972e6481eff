"""The search finds what learns, and tells all that it tried."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from multifacet.graphdb import GraphView
from multifacet.kge import FullSoftmaxConfig, KgeConfig, KgeValidation, TripleSet, TripleSplit
from multifacet.kge.search import default_space, search
from multifacet.tables.checkpoint import CheckpointError
from multifacet.tables.training import Lifecycle, StepProgress


@pytest.fixture(scope="module")
def split(view: GraphView) -> TripleSplit:
    return TripleSet.from_view(view).hold_out(KgeValidation(num_edges=60), np.random.default_rng(0))


def test_halves_until_one_is_left_and_finds_the_one_that_learns(split: TripleSplit) -> None:
    base = KgeConfig(model="distmult", dim=8, batch_size=80, epochs=12, full_softmax=FullSoftmaxConfig(optimizer="adam"))
    space = {"lr": [1e-6, 1e-5, 0.05, 1e-7], "full_softmax.dropout": [0.0]}
    found = search(split, base, space, num_trials=4, reduction=2)
    assert [trial.config.epochs for trial in found.trials] == [3, 3, 3, 3, 6, 6, 12]
    assert found.config.lr == 0.05
    assert found.config.full_softmax is not None
    assert found.config.full_softmax.optimizer == "adam"
    assert found.config.epochs == 12
    assert found.trials[-1].filtered_mrr == max(trial.filtered_mrr for trial in found.trials if trial.config.epochs == 12)


def test_searches_sampled_trainings_too(split: TripleSplit) -> None:
    base = KgeConfig(model="transe", dim=8, batch_size=64, chunk_size=32)
    found = search(split, base, {"dim": [4, 8]}, num_trials=9, reduction=2)
    assert len(found.trials) == 3  # the whole space, once


def test_a_stopped_search_goes_on_with_its_trials(split: TripleSplit, tmp_path: Path) -> None:
    base = KgeConfig(model="distmult", dim=8, batch_size=64, chunk_size=32, epochs=4)
    space = {"lr": [0.05, 0.1, 0.2], "l2": [0.0, 0.02]}
    whole = search(split, base, space, num_trials=4, reduction=2)

    stop, steps = threading.Event(), []

    def on_step(progress: StepProgress) -> None:
        steps.append(progress)
        # In the middle of the fifth training: the second round's first.
        if len(steps) > 4 * progress.num_steps + 2:
            stop.set()

    life = Lifecycle(checkpoint=tmp_path / "search", on_step=on_step, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        search(split, base, space, num_trials=4, reduction=2, lifecycle=life)
    with pytest.raises(CheckpointError, match="did not end"):
        search(split, base, space, num_trials=4, reduction=2, lifecycle=Lifecycle(checkpoint=tmp_path / "search"))
    num_before = len(steps)
    again = Lifecycle(checkpoint=tmp_path / "search", resume=True, on_step=steps.append)
    with pytest.raises(CheckpointError, match=r"base\.lr_schedule"):
        search(split, base.model_copy(update={"lr_schedule": "linear"}), space, num_trials=4, reduction=2, lifecycle=again)
    resumed = search(split, base, space, num_trials=4, reduction=2, lifecycle=again)

    assert [trial.filtered_mrr for trial in resumed.trials] == [trial.filtered_mrr for trial in whole.trials]
    assert resumed.config == whole.config
    num_epochs = sum(trial.config.epochs for trial in whole.trials)
    assert len(steps) == num_epochs * steps[0].num_steps
    assert num_before > 4 * steps[0].num_steps


def test_the_default_space_leaves_alone_what_was_set() -> None:
    assert set(default_space(KgeConfig(lr=0.3))) == {"relation_lr_factor", "init_scale", "l2", "num_uniform", "relation_init"}
    for base in (KgeConfig(), KgeConfig(full_softmax=FullSoftmaxConfig())):
        for name, values in default_space(base).items():
            for value in values:
                KgeConfig.model_validate(base.model_dump(exclude_unset=True) | {name: value})


def test_wrong_spaces_are_refused(split: TripleSplit) -> None:
    base = KgeConfig(full_softmax=FullSoftmaxConfig())
    with pytest.raises(ValueError, match="nonsense"):
        search(split, base, {"full_softmax.nonsense": [1]})
    with pytest.raises(ValueError, match="epochs"):
        search(split, base, {"epochs": [1, 2]})
    with pytest.raises(ValueError, match=r"no values for \['lr'\]"):
        search(split, base, {"lr": []})
    with pytest.raises(ValueError, match="valid is empty"):
        search(replace(split, valid=split.test), base, {})
