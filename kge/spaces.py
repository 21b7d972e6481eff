"""Where a search looks: spaces of the presets' fields, and the recipes that it begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from multifacet.kge.presets import MOST_ENTITIES, PRESETS
from multifacet.training import Choice, Family, Range, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multifacet.kge.statistics import GraphStatistics
    from multifacet.training import Space

__all__ = ["families_for", "recipes_of", "space_of"]

_DIMS: Final = Choice((64, 128, 256, 512, 1024))
_DROPOUTS: Final = Choice((0.0, 0.05, 0.1, 0.2, 0.3, 0.5))

_ADAGRAD: Final[Space] = {
    "lr": Range(low=0.01, high=3.0),
    "relation_lr_factor": Range(low=0.1, high=2.0),
    "init_scale": Range(low=1e-3, high=0.3),
    "relation_init": Choice(("entities", "signs", "identity")),
    "n3": Range(low=1e-4, high=0.5),
    "batch_size": Choice((100, 250, 500, 1000, 2000)),
    "dim": _DIMS,
    "lr_schedule": Choice(("constant", "linear")),
    "full_softmax.relation_prediction": Choice((0.0, 0.05, 0.25, 1.0, 4.0)),
    "full_softmax.dropout": _DROPOUTS,
    "full_softmax.answers_compete": Choice((True, False)),
}
_ADAM: Final[Space] = {
    "lr": Range(low=1e-4, high=0.03),
    "relation_lr_factor": Range(low=0.1, high=2.0),
    "init_scale": Range(low=1e-3, high=0.3),
    "relation_init": Choice(("signs", "entities")),
    "n3": Range(low=1e-5, high=0.1),
    "batch_size": Choice((100, 250, 500, 1024)),
    "dim": _DIMS,
    "lr_schedule": Choice(("constant", "linear")),
    "full_softmax.dropout": _DROPOUTS,
    "full_softmax.relation_dropout": Choice((0.0, 0.05, 0.1, 0.2)),
    "full_softmax.relation_prediction": Choice((0.0, 0.25, 1.0)),
}
_PRODUCT: Final[Space] = {
    "lr": Range(low=0.02, high=2.0),
    "relation_lr_factor": Range(low=0.1, high=2.0),
    "init_scale": Range(low=1e-3, high=0.5),
    "relation_init": Choice(("identity", "signs", "entities")),
    "n3": Range(low=1e-4, high=0.5),
    "num_uniform": Range(low=128, high=2048, whole=True, least=1),
    "batch_size": Choice((250, 500, 1000)),
    "dim": _DIMS,
    "dropout": _DROPOUTS,
}
_DISTANCE: Final[Space] = {
    "lr": Range(low=0.03, high=3.0),
    "relation_lr_factor": Range(low=0.05, high=2.0),
    "init_scale": Range(low=3e-3, high=1.0),
    "l2": Range(low=1e-4, high=0.2),
    "num_uniform": Range(low=64, high=1024, whole=True, least=1),
    "mask_known": Choice((True, False)),
    "dim": _DIMS,
}
_MARGIN: Final[Space] = _DISTANCE | {
    "margin": Range(low=1.0, high=24.0),
    "adversarial_temperature": Choice((0.5, 1.0)),
}
_SPACES: Final[dict[str, Space]] = {
    "complex-full": _ADAGRAD,
    "complex-adam": _ADAM,
    "distmult-full": _ADAGRAD,
    "complex-sampled": _PRODUCT,
    "transe": _DISTANCE,
    "rotate": _MARGIN,
}
# Values of the spaces' fields that people have found good; what one leaves out is the preset's.
_BASE: Final = {"full_softmax.dropout": 0.0, "full_softmax.answers_compete": True, "lr_schedule": "constant"}
_ADAGRAD_RECIPES: Final = {
    # ComplEx-N3 with relation prediction (Chen et al., AKBC 2021): of many relations, and of few.
    "many relations": _BASE
    | {
        "lr": 0.1,
        "relation_lr_factor": 1.0,
        "init_scale": 1e-3,
        "relation_init": "entities",
        "n3": 0.1,
        "batch_size": 1000,
        "dim": 512,
        "full_softmax.relation_prediction": 4.0,
    },
    "few relations": _BASE
    | {
        "lr": 0.1,
        "relation_lr_factor": 1.0,
        "init_scale": 1e-3,
        "relation_init": "entities",
        "n3": 0.2,
        "batch_size": 100,
        "dim": 512,
        "full_softmax.relation_prediction": 0.05,
    },
    "dense": _BASE
    | {
        "lr": 0.1,
        "relation_lr_factor": 1.0,
        "init_scale": 1e-3,
        "relation_init": "entities",
        "n3": 0.02,
        "batch_size": 250,
        "dim": 1024,
        "full_softmax.relation_prediction": 0.25,
    },
    # What short trainings of this engine ended with.
    "short": _BASE
    | {
        "lr": 0.3,
        "relation_lr_factor": 1.0,
        "init_scale": 0.01,
        "relation_init": "identity",
        "n3": 0.1,
        "batch_size": 1000,
        "dim": 512,
        "lr_schedule": "linear",
        "full_softmax.relation_prediction": 1.0,
    },
    "symmetric": _BASE
    | {
        "lr": 0.5,
        "relation_lr_factor": 0.2,
        "init_scale": 0.01,
        "relation_init": "signs",
        "n3": 0.2,
        "batch_size": 250,
        "dim": 512,
        "lr_schedule": "linear",
        "full_softmax.relation_prediction": 0.0,
    },
}
_ADAM_RECIPE: Final = {
    "lr": 1e-3,
    "relation_lr_factor": 1.0,
    "init_scale": 0.03,
    "relation_init": "signs",
    "n3": 1e-5,
    "batch_size": 1024,
    "dim": 512,
    "lr_schedule": "constant",
    "full_softmax.dropout": 0.1,
    "full_softmax.relation_dropout": 0.05,
    "full_softmax.relation_prediction": 0.0,
}


def space_of(preset: str) -> Space:
    """Give the space around a preset, with ranges of two to four decades."""
    return dict(_SPACES.get(preset, _ADAGRAD))


def recipes_of(families: Mapping[str, Family], statistics: GraphStatistics) -> list[Recipe]:
    """Give what a search of some families begins with, in the order in which a graph like this one suggests it.

    Args:
        families: what is searched, by the presets' names.
        statistics: of the triples to learn from.
    """
    order = _adagrad_order(statistics)
    found: list[Recipe] = []
    for name, family in families.items():
        if _SPACES.get(name) is _ADAGRAD:
            found += [_recipe(name, family, _ADAGRAD_RECIPES[kind]) for kind in order]
        elif name == "complex-adam":
            found.append(_recipe(name, family, _ADAM_RECIPE))
        elif name in PRESETS:
            found.append(_recipe(name, family, {}))
    # The first of each family before the second of any: a small budget should have seen them all.
    places: dict[str, int] = {}
    ranked = []
    for recipe in found:
        places[recipe.family] = places.get(recipe.family, -1) + 1
        ranked.append((places[recipe.family], recipe))
    return [recipe for _, recipe in sorted(ranked, key=lambda pair: pair[0])]


def families_for(statistics: GraphStatistics, models: set[str]) -> list[str]:
    """Give the presets whose spaces are worth a look on a graph, of some models."""
    if statistics.most_entities > MOST_ENTITIES:
        wanted = ["complex-sampled", "transe", "rotate"]
    else:
        wanted = ["complex-full", "complex-adam", "distmult-full", "rotate", "transe"]
    if len(models) > 1 and "distmult-full" in wanted:
        wanted.remove("distmult-full")  # ComplEx can be what it is
    return [name for name in wanted if PRESETS[name]["model"] in models]


def _adagrad_order(statistics: GraphStatistics) -> list[str]:
    if statistics.density > 15 and statistics.most_entities < 2000:
        return ["dense", "many relations", "few relations", "symmetric", "short"]
    if statistics.num_relations < 50:
        first = ["symmetric", "few relations"] if statistics.symmetric > 0.3 else ["few relations", "symmetric"]
        return [*first, "many relations", "short", "dense"]
    return ["many relations", "short", "few relations", "dense", "symmetric"]


def _recipe(name: str, family: Family, values: Mapping[str, Any]) -> Recipe:
    preset = PRESETS.get(name, {})
    return Recipe(family=name, values={part: values.get(part, _of_preset(preset, part)) for part in family.space})


def _of_preset(preset: Mapping[str, Any], name: str) -> Any:
    if name == "relation_lr_factor":
        return preset["relation_lr"] / preset["lr"]
    value: Any = preset
    for part in name.split("."):
        value = value.get(part) if value is not None else None
    if value is None:
        return {"dropout": 0.0, "mask_known": False, "n3": 1e-4, "lr_schedule": "constant"}.get(name)
    return value
