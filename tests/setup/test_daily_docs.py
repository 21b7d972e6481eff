"""docs/daily.md names every key of a pipeline's file and every check."""

from __future__ import annotations

from pathlib import Path

import pytest

from multifacet.pipeline.daily import config

PAGE = (Path(__file__).parents[2] / "docs" / "daily.md").read_text()
SECTIONS = {
    "[store]": config.StoreSection,
    "[[load]]": config.LoadSection,
    "[facets.NAME]": config.FacetSection,
    "[ranker]": config.RankerSection,
    "[ranker.examples]": config.ExamplesSection,
    "[evaluate]": config.EvaluateSection,
    "[gates]": config.GatesSection,
    "[release]": config.ReleaseSection,
    "[rollout]": config.RolloutSection,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_told_with_its_meaning(section: str) -> None:
    table = PAGE.split(f"### `{section}`")[1].split("\n### ")[0]
    for name, field in SECTIONS[section].model_fields.items():
        assert f"| `{field.alias or name}` |" in table
        assert str(field.description) in table


def test_every_limit_stands_beside_its_check() -> None:
    checks = PAGE.split("## Gates and diagnosis")[1].split("\n## ")[0]
    for name in config.GatesSection.model_fields:
        assert f"`{name}`" in checks
