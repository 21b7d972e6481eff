"""What is asked of every public function: bad input gets our own error, said by a `raise` of ours, or a documented value."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("kge", "contrastive", "ranking", "training", "tables", "graphdb", "serving", "artifacts", "inputs")

#: The kinds of bad input; a function's cases name the kind that each is of.
SITUATIONS = ("wrong type", "nan", "empty", "unknown", "duplicated", "mismatched")


class Case:
    """One call with bad input.

    Args:
        function: Name of the public function.
        situation: One of `SITUATIONS`.
        call: Makes the call.
        message: What the error must say; None where the call gives a value.
        gives: What must hold of the value.
    """

    def __init__(
        self,
        function: str,
        situation: str,
        call: Callable[[], Any],
        message: str | None = None,
        gives: Callable[[Any], bool] | None = None,
    ) -> None:
        assert situation in SITUATIONS
        assert (message is None) != (gives is None)
        self.function, self.situation, self.call, self.message, self.gives = function, situation, call, message, gives

    def __repr__(self) -> str:
        return f"{self.function}-{self.situation}"

    def run(self) -> None:
        """Make the call, and hold its answer against the contract."""
        if self.message is None:
            assert self.gives is not None
            assert self.gives(self.call())
            return
        with pytest.raises((ValueError, TypeError, KeyError, OSError), match=self.message) as caught:
            self.call()
        place = traceback.extract_tb(caught.tb)[-1]
        file = Path(place.filename).resolve()  # a room in multifacet/ is a link to its folder
        assert file.is_relative_to(ROOT), f"raised in {file}"
        assert file.relative_to(ROOT).parts[0] in ROOMS, f"raised in {file}"
        line = linecache.getline(place.filename, place.lineno or 0).strip()
        assert line.startswith("raise "), f"not raised, but met: {place.filename}:{place.lineno}: {line}"


def missing_functions(face: Any, cases: list[Case], left_out: Mapping[str, str]) -> set[str]:
    """Give the public functions that no case calls and none explains."""
    functions = {
        name
        for name in face.__all__
        if callable(value := getattr(face, name)) and not isinstance(value, type) and not name[0].isupper()
    }
    return functions - {case.function for case in cases} - set(left_out)
