"""A pipeline's file is refused whole, each fault by its section, before anything runs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from multifacet.inputs import ConfigurationError
from multifacet.pipeline.daily.config import Pipeline
from multifacet.pipeline.daily.reading import read_pipeline


def test_a_pipeline_is_read_with_paths_beside_its_file(shop: Pipeline) -> None:
    assert shop.store.path.is_absolute()
    assert shop.folder == shop.store.path.with_name("shop.duckdb.daily")
    assert shop.load[0].files.endswith("events/{day}.parquet")
    assert shop.facets["kge"].config(warm=False).dim == 8


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("every_days = 3", "every_dayz = 3", r"\[facets.kge\] there is no field 'every_dayz'; did you mean 'every_days'"),
        ("[gates]", "[gate]", r"no section or key \[gate\]; did you mean \[gates\]"),
        ("num_resamples = 20", 'num_resamples = "many"', r"\[evaluate\] num_resamples is 'many': expected a whole number"),
        ("train_days = 8", "train_days = 0", r"\[ranker\] train_days is 0"),
        ('model = "distmult"', 'model = "distmulti"', r"\[facets.kge\].*model"),
        ('relation = "clicks"', 'relation = "sells"', r"\[\[load\]\] 1 relation 'sells' is none of the store's \['clicks'\]"),
        ('kind = "kge"', 'kind = "kge"\nrelations = ["buys"]', r"\[facets.kge\] relations names \['buys'\]"),
        ("dim = 8, max_epochs", "dim = 16, max_epochs", r"facets.contrastive has dim=8, the ranker's tables dim=16"),
        ('time = "shown_at"\nclick', "click", r"name the column as columns.time"),
        ('schema = "schema.toml"', "", r"say what to make it from, by recipe = ... or schema"),
        (
            "[gates]",
            "[rollout]\nrankers = ['a:1']\nlookups = ['b:1']\ntoken_file = 'none'\n[gates]",
            r"token_file .* does not exist",
        ),
        (
            "[facets.kge]",
            "[facets.graph]",
            r"facets.graph: a snapshot of kind 'kge' is named so: call the section \[facets.kge\]",
        ),
        ("warm_window_days = 7", "warm_window_days = 7\nstart = 'anew'", r"warm_window_days and pull are of a warm start"),
        ("[store]", "[store]\ntimezone = 'Mars/Olympus'", r"\[store\].*no time zone"),
    ],
)
def test_faults_are_told_by_section(write_shop: Callable[..., Path], before: str, after: str, message: str) -> None:
    path = write_shop(**{before: after})
    with pytest.raises(ConfigurationError, match=message):
        read_pipeline(path)


def test_all_faults_are_told_at_once(write_shop: Callable[..., Path]) -> None:
    path = write_shop(**{"every_days = 3": "every_dayz = 3", "train_days = 8": "train_days = 0"})
    with pytest.raises(ConfigurationError, match=r"(?s)train_days is 0.*every_dayz"):
        read_pipeline(path)


def test_periods_need_their_tables(write_shop: Callable[..., Path]) -> None:
    path = write_shop()
    text = path.read_text()
    path.write_text(text[: text.index("[ranker.examples]")] + text[text.index("[gates]") :])
    with pytest.raises(ConfigurationError, match=r"\[ranker\] the store has no table 'periods'"):
        read_pipeline(path)


def test_a_facet_must_learn_what_the_ranker_reads(write_shop: Callable[..., Path]) -> None:
    path = write_shop(**{'dense = ["price"]': 'dense = ["price"]\nadvertiser = "item"'})
    schema = path.parent / "schema.toml"
    schema.write_text(schema.read_text() + '\n[nodes.advertiser]\nid_type = "string"\n')
    with pytest.raises(ConfigurationError, match=r"\[facets.contrastive\] learns no table of 'advertiser'"):
        read_pipeline(path)


def test_a_day_ends_in_its_time_zone(write_shop: Callable[..., Path]) -> None:
    pipeline = read_pipeline(write_shop(**{"[store]": '[store]\ntimezone = "America/New_York"'}))
    assert pipeline.end_of(dt.date(2025, 1, 5)) == dt.datetime(2025, 1, 6, 5)
    assert pipeline.end_of(dt.date(2025, 7, 5)) == dt.datetime(2025, 7, 6, 4)
    # Whole days back are the zone's own, across the change of the clocks.
    assert pipeline.end_of(dt.date(2025, 3, 9), days_before=1) == dt.datetime(2025, 3, 9, 5)
