"""Alert rules and the dashboard ask for metrics that the servers really export, with labels that these have."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from multifacet.serving.ranker.freshness import Freshness

DOCS = Path(__file__).parents[3] / "docs" / "monitoring"
#: What Prometheus adds, or a rule makes.
OWN_LABELS = {"instance", "job", "le"}


def alerts() -> dict[str, str]:
    document = yaml.safe_load((DOCS / "alerts.yml").read_text())
    return {rule["alert"]: rule["expr"] for group in document["groups"] for rule in group["rules"]}


def panels() -> dict[str, str]:
    document = json.loads((DOCS / "dashboard.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in document["panels"] for target in panel["targets"]
    }


@pytest.fixture
def exported(ranker_server: Any, lookup_server: Any, ranker_client: Any, request_of: Callable[..., Any]) -> dict[str, set[str]]:
    """Name of each sample that is exported after a request -> the names of its labels."""
    user, candidates, dense = request_of()
    ranker_client.rank(user, candidates, dense=dense)
    found: dict[str, set[str]] = defaultdict(set)
    for server in (ranker_server, lookup_server):
        for family in text_string_to_metric_families(generate_latest(server.metrics.registry).decode()):
            for sample in family.samples:
                found[sample.name] |= set(sample.labels)
    # The tests' release does not say of which time it is: these are exported for one that does.
    freshness = Freshness()
    freshness.scored("v")
    for name in freshness.gauges("v", "2026-11-29T00:00:00"):
        found[f"multifacet_ranker_{name}"] |= set()
    return found


def test_every_metric_that_is_asked_for_is_exported(exported: dict[str, set[str]]) -> None:
    counted = {"multifacet_ranker_events_total"}  # has a sample once something happened to a request
    for where, expression in {**alerts(), **panels()}.items():
        names = set(re.findall(r"multifacet_\w+", expression))
        assert names, where
        assert names - counted <= exported.keys(), where
        labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression))
        for clause in re.findall(r"\bby \(([^)]*)\)", expression):
            labels |= {label.strip() for label in clause.split(",")}
        known = set().union(*(exported.get(name, {"event"}) for name in names)) | OWN_LABELS
        assert labels <= known, where


def test_phases_that_are_named_are_recorded(exported: dict[str, set[str]], ranker_server: Any) -> None:
    text = generate_latest(ranker_server.metrics.registry).decode()
    for expression in {**alerts(), **panels()}.values():
        for phase in re.findall(r'phase="(\w+)"', expression):
            assert f'multifacet_ranker_phase_seconds_sum{{phase="{phase}"}}' in text


def test_a_metric_that_does_not_exist_would_be_found(exported: dict[str, set[str]]) -> None:
    assert "multifacet_ranker_no_such_thing" not in exported
    assert len(alerts()) >= 7
    assert len(panels()) >= 12


def test_every_alert_says_a_cause_and_what_mends_it() -> None:
    for group in yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert {"summary", "cause", "mend"} == set(rule["annotations"]), rule["alert"]
