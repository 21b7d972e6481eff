"""The examples in the docstrings run."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "multifacet"
MODULES = sorted(
    ".".join(("multifacet", room.name, *file.relative_to(room).with_suffix("").parts))
    for room in PACKAGE.iterdir()
    if room.is_dir()
    for file in room.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_say(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_all_of_them_were_found():
    assert len(MODULES) > 40
