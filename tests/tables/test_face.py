"""The room's face."""

import importlib
from typing import get_args

import pytest


def test_the_room_exports_its_names_lazily_and_no_others():
    tables = importlib.import_module("multifacet.tables")
    aliases = {"Precision", "Rounding", "Similarity"}  # of Literals, which have no name of their own
    named = {*tables.__all__} - aliases
    assert {getattr(tables, name).__name__ for name in named} == named
    assert all(get_args(getattr(tables, name)) for name in aliases)
    assert set(tables.__all__) <= set(dir(tables))
    with pytest.raises(AttributeError, match="Nothing"):
        _ = tables.Nothing
