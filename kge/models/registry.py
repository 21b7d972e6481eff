"""Scoring models by their names: ours, those that a program registers, and those of installed packages."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, TypeVar

from multifacet.inputs import expect_attributes
from multifacet.kge.models.model import Model
from multifacet.kge.models.translations import Translation

if TYPE_CHECKING:
    from collections.abc import Callable

    from multifacet.kge.models.model import ModelFields

__all__ = ["build_model", "model_class", "model_names", "register_model"]

GROUP: Final = "multifacet.kge_models"
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")
_MODELS: Final[dict[str, type[Model]]] = {}

M = TypeVar("M", bound=Model)


def register_model(name: str) -> Callable[[type[M]], type[M]]:
    """Make a scoring model known by a name, for `KgeConfig.model` and snapshots: a class decorator.

    A process that trains, predicts or reads a snapshot must have registered it. An installed package does so for every
    process, the `multifacet` command's too, by an entry point of the group "multifacet.kge_models": its name, and the class.

    Args:
        name: lower-case letters, digits, "_" and "-".

    Raises:
        ValueError: if another class has the name, or it is no name.
        TypeError: if it is no scoring model, or lacks one of its methods.

    Example:
        >>> from multifacet import kge
        >>> @kge.register_model("shifted")
        ... class Shifted(kge.TransE):
        ...     pass
        >>> kge.build_model(kge.KgeConfig(model="shifted", dim=8))
        Shifted(dim=8, distance='squared')
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a model: expected lower-case letters, digits, '_' and '-'")

    def register(model: type[M]) -> type[M]:
        if not (isinstance(model, type) and issubclass(model, Model)):
            raise TypeError(f"{model!r} is registered as {name!r}, and is no subclass of kge.Model")
        if inspect.isabstract(model) or not hasattr(model, "is_distance"):
            missing = sorted(model.__abstractmethods__) or ["is_distance"]
            raise TypeError(f"{model.__name__} lacks {', '.join(missing)}: see kge.Model")
        if model.translation is not None and not isinstance(model.translation, Translation):
            raise TypeError(f"{model.__name__}.translation is {model.translation!r}: expected a Translation, or None")
        known = _MODELS.get(name)
        # A cell or a module that runs again defines the same class anew.
        if known is not None and (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
            raise ValueError(f"{name!r} is {known.__module__}.{known.__qualname__} already: choose another name")
        _MODELS[name] = model
        return model

    return register


def model_names() -> tuple[str, ...]:
    """Give the names of all models, those of installed packages among them."""
    return tuple(dict.fromkeys((*_MODELS, *sorted(point.name for point in entry_points(group=GROUP)))))


def model_class(name: str) -> type[Model]:
    """Give the class of a name.

    Raises:
        ValueError: if no model has it.
    """
    if name not in _MODELS:
        for point in entry_points(group=GROUP, name=name):
            register_model(name)(point.load())
    if name not in _MODELS:
        raise ValueError(
            f"model is {name!r}: expected one of {', '.join(model_names())}. A model of your own is registered before it is "
            "named: kge.register_model, or an entry point of an installed package"
        )
    return _MODELS[name]


def build_model(config: ModelFields) -> Model:
    """Build the model that a configuration names."""
    expect_attributes("config", config, ("model", "dim", "distance"), "KgeConfig")
    return model_class(config.model).from_config(config)
