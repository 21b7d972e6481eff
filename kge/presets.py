"""Configurations by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

__all__ = ["MOST_ENTITIES", "PRESETS", "PresetName", "fill_in"]

PresetName = Literal["complex-full", "complex-dense", "complex-adam", "distmult-full", "complex-sampled", "transe", "rotate"]

# Above so many candidates a query, scores against all of them cost more than they tell.
MOST_ENTITIES: Final = 60_000

_FULL: Final = {
    "reciprocal": True,
    "l2": 0.0,
    "relation_init": "entities",
    "init_scale": 1e-3,
    "lr": 0.1,
    "relation_lr": 0.1,
}
_SAMPLED: Final = {
    "reciprocal": True,
    "lr_schedule": "linear",
    "batch_size": 1000,
    "chunk_size": 250,
    "num_degree": 0,
}

#: Name -> fields. What a user gives beside a preset replaces its fields.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "complex-full": _FULL
    | {
        "model": "complex",
        "dim": 512,
        "epochs": 30,
        "batch_size": 800,
        "n3": 0.1,
        "full_softmax": {"relation_prediction": 1.0},
    },
    "complex-dense": _FULL
    | {
        "model": "complex",
        "dim": 1024,
        "epochs": 80,
        "batch_size": 250,
        "n3": 0.02,
        "full_softmax": {"relation_prediction": 0.25},
    },
    "complex-adam": {
        "model": "complex",
        "dim": 512,
        "reciprocal": True,
        "epochs": 150,
        "batch_size": 1024,
        "l2": 0.0,
        "lr": 1e-3,
        "relation_lr": 1e-3,
        "relation_init": "signs",
        "init_scale": 0.03,
        "full_softmax": {"optimizer": "adam", "dropout": 0.1},
    },
    "distmult-full": _FULL
    | {
        "model": "distmult",
        "dim": 512,
        "epochs": 30,
        "batch_size": 800,
        "n3": 0.1,
        "full_softmax": {"relation_prediction": 1.0},
    },
    "complex-sampled": _SAMPLED
    | {
        "model": "complex",
        "dim": 200,
        "epochs": 30,
        "batch_size": 500,
        "num_uniform": 1000,
        "lr": 0.5,
        "relation_lr": 0.2,
        "relation_init": "signs",
        "init_scale": 0.01,
        "l2": 0.0,
        "n3": 0.05,
    },
    "transe": _SAMPLED
    | {
        "model": "transe",
        "dim": 256,
        "distance": "l2",
        "epochs": 24,
        "num_uniform": 250,
        "mask_known": True,
        "lr": 1.0,
        "relation_lr": 1.0,
        "init_scale": 0.3,
        "l2": 0.01,
    },
    "rotate": _SAMPLED
    | {
        "model": "rotate",
        "dim": 400,
        "distance": "l2",
        "epochs": 24,
        "num_uniform": 500,
        "loss": "self_adversarial",
        "margin": 6.0,
        "adversarial_temperature": 0.5,
        "lr": 1.0,
        "relation_lr": 1.0,
        "init_scale": 0.3,
        "l2": 0.015,
    },
}
assert set(PRESETS) == set(get_args(PresetName))  # noqa: S101 - the two are stated side by side


def fill_in(given: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of a preset with those that were given in their place; nested ones one by one.

    Example:
        >>> fill_in({"dim": 8, "full_softmax": {"dropout": 0.1}}, {"dim": 512, "full_softmax": {"optimizer": "adam"}})
        {'dim': 8, 'full_softmax': {'optimizer': 'adam', 'dropout': 0.1}}
    """
    filled = {**preset, **given}
    for name, value in preset.items():
        other = given.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            filled[name] = {**value, **other}
    if "relation_lr_factor" in given:
        filled.pop("relation_lr", None)
    return filled
