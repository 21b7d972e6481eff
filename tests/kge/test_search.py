"""The search finds what learns, keeps to what was set, and goes on after a stop."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from multifacet.graphdb import GraphView
from multifacet.kge import FullSoftmaxConfig, GraphStatistics, KgeConfig, KgeValidation, TripleSet, TripleSplit, train_triples
from multifacet.kge.auto import choose_preset, recommend, resolve
from multifacet.kge.presets import PRESETS, PresetName, fill_in
from multifacet.kge.search import default_space, search
from multifacet.kge.spaces import families_for, recipes_of, space_of
from multifacet.training import Choice, Family, Lifecycle, Range, StepProgress

DENSE = GraphStatistics(
    num_entities=135, most_entities=135, num_relations=46, num_triples=5216, symmetric=0.1, inverse=0.0, skew=0.03
)
WORDS = replace(DENSE, num_entities=40_943, most_entities=40_943, num_relations=11, num_triples=86_835, symmetric=0.37)
FACTS = replace(DENSE, num_entities=14_541, most_entities=14_541, num_relations=237, num_triples=272_115)
LARGE = replace(FACTS, num_entities=5_000_000, most_entities=4_000_000)


@pytest.fixture(scope="module")
def split(view: GraphView) -> TripleSplit:
    return TripleSet.from_view(view).hold_out(KgeValidation(num_edges=60), np.random.default_rng(0))


def test_finds_the_rate_that_learns_and_trains_it_anew(split: TripleSplit) -> None:
    base = KgeConfig(model="distmult", dim=8, batch_size=80, epochs=12, full_softmax=FullSoftmaxConfig(optimizer="adam"))
    space = {"lr": [1e-6, 1e-5, 0.05, 1e-7], "full_softmax.dropout": [0.0]}
    found = search(split, base, space, minutes=0.12, num_seeds=2)
    assert found.config.lr == 0.05
    assert found.config.full_softmax is not None
    assert found.config.full_softmax.optimizer == "adam"
    assert found.config.validation == base.validation
    assert found.config.seed == base.seed
    assert found.config.epochs == found.report.best.epochs <= 12
    first = {record.values["lr"]: record.score for record in found.report.records if record.round == 0}
    assert set(first) == {1e-6, 1e-5, 0.05, 1e-7}  # a small space is tried whole
    again = train_triples(split, found.config.model_copy(update={"seed": found.report.finals[0].seed}))
    assert again.metrics["filtered_mrr"] == found.report.finals[0].score


def test_searches_the_spaces_of_several_presets(split: TripleSplit) -> None:
    base = KgeConfig(dim=8, epochs=9, batch_size=100, relation_weights={"alike": 0.5})
    found = search(split, base, minutes=0.05, num_seeds=0)
    families = {record.family for record in found.report.records}
    assert {"complex-full", "complex-adam"} <= families
    assert all(record.values.keys() == found.report.families[record.family].space.keys() for record in found.report.records)
    assert found.config.dim == 8
    assert found.config.batch_size == 100
    assert found.config.relation_weights == {"alike": 0.5}


def test_a_stopped_search_goes_on_with_its_trials(split: TripleSplit, tmp_path: Path) -> None:
    base = KgeConfig(model="distmult", dim=8, batch_size=64, chunk_size=32, epochs=9, distinct_edges=False)
    space = {"lr": [0.05, 0.1, 0.2], "l2": [0.0, 0.02]}
    stop, told = threading.Event(), []

    def on_step(progress: StepProgress) -> None:
        if len(told) == 2:
            stop.set()

    life = Lifecycle(checkpoint=tmp_path / "search", on_step=on_step, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        search(split, base, space, minutes=0.02, num_seeds=1, lifecycle=life, progress=told.append)
    assert len(told) == 2
    again = Lifecycle(checkpoint=tmp_path / "search", resume=True)
    found = search(split, base, space, minutes=0.02, num_seeds=1, lifecycle=again)
    assert list(found.report.records[:2]) == told
    assert found.config.distinct_edges is False


def test_the_default_space_leaves_alone_what_was_set() -> None:
    assert set(default_space(KgeConfig(), FACTS)) == {"complex-full", "complex-adam", "rotate", "transe"}
    assert set(default_space(KgeConfig(), LARGE)) == {"complex-sampled", "transe", "rotate"}
    assert set(default_space(KgeConfig(model="transe"), FACTS)) == {"transe"}
    assert set(default_space(KgeConfig(preset="rotate"), FACTS)) == {"rotate"}
    assert set(default_space(KgeConfig(full_softmax=FullSoftmaxConfig(optimizer="adam")), FACTS)) == {"complex-adam"}
    assert "complex-full" not in default_space(KgeConfig(num_uniform=100), FACTS)
    chosen = default_space(KgeConfig(lr=0.3, relation_lr=0.1, full_softmax=FullSoftmaxConfig(dropout=0.2)), FACTS)
    assert set(chosen) == {"complex-full"}
    assert not {"lr", "relation_lr_factor", "full_softmax.dropout"} & set(chosen["complex-full"])
    # A preset's own fields are where a search begins, not what was set.
    assert "lr" in default_space(KgeConfig(preset="complex-full"), FACTS)["complex-full"]
    assert "lr" not in default_space(KgeConfig(preset="complex-full", lr=0.7), FACTS)["complex-full"]


@pytest.mark.parametrize("statistics", [DENSE, WORDS, FACTS, LARGE], ids=["dense", "words", "facts", "large"])
def test_recipes_and_the_ends_of_spaces_are_configurations(statistics: GraphStatistics) -> None:
    names = families_for(statistics, {"complex", "transe", "rotate", "distmult"})
    families = {name: Family(settings=PRESETS[name], space=space_of(name)) for name in names}
    recipes = recipes_of(families, statistics)
    assert [recipe.family for recipe in recipes[: len(names)]] == names  # each family's first before any other
    for recipe in recipes:
        assert recipe.values.keys() == families[recipe.family].space.keys()
        configure(recipe.family, dict(recipe.values))
    for name, family in families.items():
        base = next(recipe.values for recipe in recipes if recipe.family == name)
        for field, part in family.space.items():
            ends = part.values if isinstance(part, Choice) else (part.low, part.high)
            for value in ends:
                configure(name, {**base, field: round(value) if isinstance(part, Range) and part.whole else value})


def configure(family: str, values: dict[str, object]) -> KgeConfig:
    document: dict[str, object] = {}
    for name, value in values.items():
        outer, _, inner = name.partition(".")
        if inner:
            document.setdefault(outer, {})[inner] = value  # type: ignore[index]
        else:
            document[outer] = value
    return KgeConfig.model_validate(fill_in(document, PRESETS[family]))


def test_the_recipe_of_a_graph_like_this_one_comes_first() -> None:
    def first(statistics: GraphStatistics) -> dict[str, object]:
        families = {"complex-full": Family(settings=PRESETS["complex-full"], space=space_of("complex-full"))}
        return dict(recipes_of(families, statistics)[0].values)

    assert first(FACTS)["full_softmax.relation_prediction"] == 4.0
    assert first(WORDS)["relation_init"] == "signs"
    assert first(DENSE)["n3"] == 0.02


@pytest.mark.parametrize("name", get_args(PresetName))
def test_presets_are_configurations_whose_fields_can_be_replaced(name: PresetName) -> None:
    config = KgeConfig(preset=name)
    assert config.model == PRESETS[name]["model"]
    assert KgeConfig(preset=name, lr=0.123).lr == 0.123
    assert "preset" not in config.model_dump()
    assert KgeConfig.model_validate(config.model_dump()).model_dump() == config.model_dump()


def test_a_preset_keeps_its_nested_fields_beside_given_ones() -> None:
    config = KgeConfig(preset="complex-adam", full_softmax={"dropout": 0.4})  # type: ignore[arg-type]
    assert config.full_softmax == FullSoftmaxConfig(optimizer="adam", dropout=0.4)
    assert KgeConfig(preset="complex-full", relation_lr_factor=0.5).relation_lr == pytest.approx(0.05)
    with pytest.raises(ValueError, match="preset is 'best'"):
        KgeConfig(preset="best")  # type: ignore[arg-type]


def test_auto_takes_the_preset_that_suits_the_graph(split: TripleSplit) -> None:
    assert [choose_preset(statistics) for statistics in (DENSE, WORDS, FACTS, LARGE)] == [
        "complex-dense",
        "complex-full",
        "complex-full",
        "complex-sampled",
    ]
    config = resolve(KgeConfig(preset="auto", dim=16), WORDS)
    assert (config.dim, config.relation_init) == (16, "signs")
    assert config.model_dump() == KgeConfig.model_validate(fill_in({"dim": 16}, recommend(WORDS))).model_dump()
    assert resolve(KgeConfig(dim=16), WORDS) == KgeConfig(dim=16)
    for given in ({"model": "transe"}, {"model": "distmult"}, {"model": "transra"}, {"num_uniform": 9}, {"partitions": 1}):
        chosen = resolve(KgeConfig(preset="auto", **given), FACTS)  # type: ignore[arg-type]
        assert {name: getattr(chosen, name) for name in given} == given
    assert resolve(KgeConfig(preset="auto", num_uniform=9), FACTS).full_softmax is None
    adam = resolve(KgeConfig(preset="auto", full_softmax=FullSoftmaxConfig(optimizer="adam")), FACTS)
    assert adam.lr == PRESETS["complex-adam"]["lr"]
    result = train_triples(split, KgeConfig(preset="auto", dim=16, epochs=2))
    assert result.config.full_softmax is not None
    assert result.config.epochs == 2


def test_statistics_count_what_recipes_depend_on() -> None:
    def triples(rows: list[tuple[int, int, int]], names: tuple[str, ...]) -> TripleSet:
        heads, relations, tails = (np.array(column, dtype=np.int32) for column in zip(*rows, strict=True))
        return TripleSet(
            heads=heads,
            relations=relations,
            tails=tails,
            relation_names=names,
            ends=dict.fromkeys(names, ("node", "node")),
            num_nodes={"node": 10},
        )

    rows = [(0, 0, 1), (1, 0, 0), (2, 1, 3), (3, 2, 2), (4, 3, 5), (0, 3, 5), (0, 3, 6), (0, 3, 7)]
    statistics = GraphStatistics.of(triples(rows, ("knows", "owns", "owned_by", "likes")))
    assert (statistics.num_entities, statistics.num_relations, statistics.num_triples) == (10, 4, 8)
    assert statistics.symmetric == 2 / 8
    assert statistics.inverse == 2 / 8
    assert statistics.skew == 5 / 16  # node 0 stands at 5 of 16 ends
    assert statistics.density == 0.8


def test_wrong_spaces_are_refused(split: TripleSplit) -> None:
    base = KgeConfig(full_softmax=FullSoftmaxConfig())
    with pytest.raises(ValueError, match="nonsense"):
        search(split, base, {"full_softmax.nonsense": [1]})
    with pytest.raises(ValueError, match="epochs"):
        search(split, base, {"epochs": [1, 2]})
    with pytest.raises(ValueError, match=r"no values for \['lr'\]"):
        search(split, base, {"lr": []})
    with pytest.raises(TypeError, match=r"space\['lr'\] is a float"):
        search(split, base, {"lr": 0.1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="minutes"):
        search(split, base, {"lr": [0.1]}, minutes=0.0)
    with pytest.raises(ValueError, match="valid is empty"):
        search(replace(split, valid=split.test), base, {})
