"""Calls with one argument spoilt: each public callable is called well, and then with every argument wrong in every way."""

from __future__ import annotations

import copy
import linecache
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .contract import ROOMS, ROOT

OUR_ERRORS = (ValueError, TypeError, KeyError, OSError)


class Stranger:
    """Of no type that anything expects."""

    def __repr__(self) -> str:
        return "Stranger()"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that is right.

    Attributes:
        function: What is called.
        arguments: Its arguments, all by name but those in `positional`.
        positional: Names of arguments that are given by position, in order.
        open_to_all: Arguments that take anything, such as ids of several kinds.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    positional: tuple[str, ...] = ()
    open_to_all: frozenset[str] = field(default=frozenset())

    def run(self, **changed: Any) -> Any:
        """Make the call, with some arguments changed."""
        given = {**self.arguments, **changed}
        values = [given.pop(name) for name in self.positional]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.function(*values, **given)


@dataclass(frozen=True)
class Mutation:
    """One argument that is wrong in one way."""

    situation: str
    argument: str
    value: Any

    def __str__(self) -> str:
        return f"{self.argument}, {self.situation}"


def mutations(call: Call) -> Iterator[Mutation]:
    """Give each argument's ways to be wrong."""
    for name, value in call.arguments.items():
        if name not in call.open_to_all:
            yield Mutation("wrong type", name, Stranger())
            for other in (*_other_kinds(value), *_with_a_stranger(value)):
                yield Mutation("wrong type", name, other)
        for situation, spoil in _SPOILERS.items():
            spoilt = spoil(value)
            if spoilt is not None:
                yield Mutation(situation, name, spoilt)


def _other_kinds(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return ["maybe"]
    if isinstance(value, int | float):
        return ["seven", [7]]
    if isinstance(value, str):
        return [7]
    if isinstance(value, Path):
        return [7]
    if isinstance(value, np.ndarray | torch.Tensor):
        return ["text", 7]
    return [7]


def _with_a_stranger(value: Any) -> list[Any]:
    """Put something strange in the place of the first part of a mapping or sequence."""
    if isinstance(value, dict) and value:
        return [value | {next(iter(value)): Stranger()}]
    if isinstance(value, list | tuple) and value:
        return [type(value)([Stranger(), *value[1:]])]
    return []


def _nan(value: Any) -> Any:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float("nan")
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
        return _with(value, float("nan"))
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
        return _with(value, np.nan)
    return None


def _with(value: Any, element: Any) -> Any:
    changed = copy.deepcopy(value)
    changed.reshape(-1)[len(changed) // 2] = element
    return changed


def _empty(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value[:0] if value.ndim else None
    if isinstance(value, pa.Array | pa.Table):
        return value[:0]
    if isinstance(value, list | tuple | dict):
        return type(value)()
    return "" if isinstance(value, str) else None


def _shorter(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value[:-1] if value.ndim and len(value) > 1 else None
    if isinstance(value, pa.Array | pa.Table | list | tuple):
        return value[:-1] if len(value) > 1 else None
    return None


def _duplicated(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim and len(value) > 1:
        changed = copy.deepcopy(value)
        changed[1] = changed[0]
        return changed
    if isinstance(value, pa.Array) and len(value) > 1:
        return pa.array([value[0].as_py(), value[0].as_py(), *value[2:].to_pylist()], value.type)
    return [value[0], *value] if isinstance(value, list) and value else None


def _unknown(value: Any) -> Any:
    if isinstance(value, str):
        return "no such thing"
    if isinstance(value, np.ndarray) and value.dtype.kind == "i":
        return (value + 100_000).astype(value.dtype)
    if isinstance(value, bool):
        return None
    return -1 if isinstance(value, int) else None


_SPOILERS: dict[str, Callable[[Any], Any]] = {
    "nan": _nan,
    "empty": _empty,
    "mismatched": _shorter,
    "duplicated": _duplicated,
    "unknown": _unknown,
}


def faults(calls: Mapping[str, Call]) -> list[str]:
    """Make all wrong calls; say which were answered neither by a value nor by our own words, or took a wrong type."""
    found = []
    for name, call in calls.items():
        call.run()
        for mutation in mutations(call):
            where = f"{name}({mutation} = {str(mutation.value)[:40]!r})"
            try:
                call.run(**{mutation.argument: mutation.value})
            except OUR_ERRORS as error:
                fault = _foreign(error)
                if fault:
                    found.append(f"{where}: {fault}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                found.append(f"{where}: {type(error).__name__}: {str(error)[:80]}")
            else:
                if mutation.situation == "wrong type":
                    found.append(f"{where}: taken")
    return found


def _foreign(error: BaseException) -> str:
    """Say where an error comes from that no `raise` of ours has raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(place.filename, place.lineno or 0).strip()
    path = Path(place.filename).resolve()  # a room may be reached by a link
    if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ROOMS and line.startswith("raise"):
        return ""
    return f"{path.name}:{place.lineno}: {line[:60]} -> {type(error).__name__}: {str(error)[:60]}"


def public_callables(face: Any) -> set[str]:
    """Give the names in a room's `__all__` that can be called; not type aliases."""
    return {name for name in face.__all__ if isinstance(value := getattr(face, name), type) or _is_function(value)}


def _is_function(value: Any) -> bool:
    return callable(value) and hasattr(value, "__code__")
