"""The examples in the docstrings run."""

import doctest
import importlib
from typing import get_args

import pytest


@pytest.mark.parametrize("module", ["artifact", "codec", "idmap", "rounded", "rowwise", "snapshot"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"multifacet.tables.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_room_exports_its_names_lazily_and_no_others():
    tables = importlib.import_module("multifacet.tables")
    aliases = {"Precision", "Rounding"}  # of Literals, which have no name of their own
    named = {*tables.__all__} - aliases
    assert {getattr(tables, name).__name__ for name in named} == named
    assert all(get_args(getattr(tables, name)) for name in aliases)
    assert set(tables.__all__) <= set(dir(tables))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tables.Nothing
