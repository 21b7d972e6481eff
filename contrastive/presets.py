"""Configurations by name, and where a search of them looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from multifacet.training import Choice, Range, Space

__all__ = ["PRESETS", "RECIPES", "SPACES", "PresetName"]

PresetName = Literal["history", "bilateral", "tables"]

#: Name -> fields. What a user gives beside a preset replaces its fields.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "history": {
        "history": 1.0,
        "batch_size": 8192,
        "positives_per_query": 16,
        "num_uniform": 4096,
        "num_degree": 0,
        "optimizer": "adam",
        "momentum": 0.0,
        "lr": 0.03,
        "lr_schedule": "cosine",
        "init_scale": 0.01,
        "epochs": 20,
        "popularity_power": 0.05,
    },
    "bilateral": {
        "loss": "bilateral",
        "negative_weight": 1.2,
        "temperature": 0.08,
        "in_batch": False,
        "batch_size": 1024,
        "num_uniform": 1024,
        "num_degree": 0,
        "optimizer": "lazy_adam",
        "lr": 2e-3,
        "lr_schedule": "cosine",
        "init_scale": 0.005,
        "query_dropout": 0.1,
        "epochs": 20,
    },
    "tables": {"optimizer": "adagrad", "num_degree": 256, "epochs": 8},
}
assert set(PRESETS) == set(get_args(PresetName))  # noqa: S101 - the two are stated side by side

_SHARED: Final[Space] = {
    "temperature": Range(low=0.03, high=0.5),
    "init_scale": Range(low=1e-3, high=0.5),
    "num_uniform": Range(low=128, high=8192, whole=True, least=1),
    "popularity_power": Choice((0.0, 0.05, 0.1, 0.2)),
    "smoothing": Choice((0.0, 0.5, 1.0)),
    "query_dropout": Choice((0.0, 0.1, 0.2, 0.4)),
}
#: Name of a preset -> the space around it, of two to four decades a range.
SPACES: Final[Mapping[str, Space]] = {
    "history": _SHARED
    | {
        "lr": Range(low=1e-3, high=0.3),
        "history": Choice((0.5, 0.8, 1.0)),
        "batch_size": Choice((1024, 2048, 8192)),
        "positives_per_query": Choice((1, 4, 16)),
        "logq": Choice((True, False)),
    },
    "bilateral": _SHARED
    | {
        "lr": Range(low=1e-4, high=0.1),
        "negative_weight": Range(low=0.5, high=2.0, least=0.05, most=20.0),
        "history": Choice((0.0, 0.5, 1.0)),
        "batch_size": Choice((512, 1024, 2048)),
        "in_batch": Choice((False, True)),
    },
    "tables": _SHARED
    | {
        "lr": Range(low=1e-2, high=3.0),
        "history": Choice((0.0, 0.5, 1.0)),
        "batch_size": Choice((512, 1024, 4096)),
        "num_degree": Choice((0, 256, 1024)),
        "logq": Choice((True, False)),
    },
}
#: Where a search begins: name of a preset -> values of its space.
RECIPES: Final[Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "history": (
        {
            "temperature": 0.1,
            "init_scale": 0.01,
            "num_uniform": 4096,
            "popularity_power": 0.05,
            "smoothing": 0.0,
            "query_dropout": 0.0,
            "lr": 0.03,
            "history": 1.0,
            "batch_size": 8192,
            "positives_per_query": 16,
            "logq": True,
        },
    ),
    "bilateral": (
        {
            "temperature": 0.08,
            "init_scale": 0.005,
            "num_uniform": 1024,
            "popularity_power": 0.0,
            "smoothing": 0.0,
            "query_dropout": 0.1,
            "lr": 1e-3,
            "negative_weight": 1.2,
            "history": 0.0,
            "batch_size": 1024,
            "in_batch": False,
        },
        {
            "temperature": 0.1,
            "init_scale": 0.01,
            "num_uniform": 2048,
            "popularity_power": 0.0,
            "smoothing": 0.0,
            "query_dropout": 0.1,
            "lr": 3e-3,
            "negative_weight": 1.0,
            "history": 1.0,
            "batch_size": 2048,
            "in_batch": False,
        },
    ),
    "tables": (
        {
            "temperature": 0.1,
            "init_scale": 0.1,
            "num_uniform": 1024,
            "popularity_power": 0.0,
            "smoothing": 0.0,
            "query_dropout": 0.0,
            "lr": 0.1,
            "history": 0.5,
            "batch_size": 1024,
            "num_degree": 256,
            "logq": True,
        },
    ),
}
