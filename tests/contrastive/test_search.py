"""The search of contrastive tables finds what learns and keeps to what was set."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from multifacet.contrastive import ContrastiveConfig, Positives, default_space, search, train_pairs
from multifacet.contrastive.presets import PRESETS, RECIPES, SPACES, PresetName
from multifacet.training import Choice, Range


def planted(seed: int) -> tuple[Positives, Positives]:
    """Users who like the items of their own group, and one more such item of each, held out."""
    generator = np.random.default_rng(seed)
    users = np.arange(60).repeat(9)
    items = generator.permuted(np.tile(np.arange(20), (60, 1)), axis=1)[:, :9].ravel() * 2 + users % 2
    is_last = np.arange(len(users)) % 9 == 8
    sizes = {"num_queries": 60, "num_items": 40}
    return (
        Positives.from_pairs(users[~is_last], items[~is_last], **sizes),
        Positives.from_pairs(users[is_last], items[is_last], **sizes),
    )


def test_finds_the_rate_that_learns_and_trains_it_anew() -> None:
    positives, held_out = planted(0)
    base = ContrastiveConfig(dim=8, batch_size=64, num_uniform=16, num_degree=0, epochs=27)
    found = search(positives, held_out, base, {"lr": [1e-7, 0.3, 1e-6]}, minutes=0.06, num_seeds=1)
    assert found.config.lr == 0.3
    assert found.config.validation == base.validation
    assert found.config.epochs == found.report.best.epochs <= 27
    again = train_pairs(positives, found.config.model_copy(update={"seed": found.report.finals[0].seed}), held_out=held_out)
    assert again.metrics["ndcg@20"] == found.report.finals[0].score


def test_searches_the_spaces_of_all_presets() -> None:
    positives, held_out = planted(1)
    found = search(positives, held_out, ContrastiveConfig(dim=8, epochs=9), minutes=0.05, num_seeds=0)
    assert {record.family for record in found.report.records} == set(PRESETS)
    assert found.config.dim == 8


def test_the_default_space_leaves_alone_what_was_set() -> None:
    assert set(default_space(ContrastiveConfig())) == set(PRESETS)
    assert set(default_space(ContrastiveConfig(loss="bilateral"))) == {"bilateral"}
    assert set(default_space(ContrastiveConfig(preset="history"))) == {"history"}
    assert "lr" in default_space(ContrastiveConfig(preset="history"))["history"]
    assert "lr" not in default_space(ContrastiveConfig(preset="history", lr=0.5))["history"]


@pytest.mark.parametrize("name", get_args(PresetName))
def test_presets_recipes_and_the_ends_of_spaces_are_configurations(name: PresetName) -> None:
    assert ContrastiveConfig(preset=name, dim=8).dim == 8
    assert "preset" not in ContrastiveConfig(preset=name).model_dump()
    for recipe in RECIPES[name]:
        assert recipe.keys() == SPACES[name].keys()
        ContrastiveConfig.model_validate({**PRESETS[name], **recipe})
    for field, part in SPACES[name].items():
        for value in part.values if isinstance(part, Choice) else (part.low, part.high):
            given = round(value) if isinstance(part, Range) and part.whole else value
            ContrastiveConfig.model_validate({**PRESETS[name], **RECIPES[name][0], field: given})
