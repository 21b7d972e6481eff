"""From an event's time to the first score that knows of it: counted by the ranker, told by the rollout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from multifacet.serving import ReleaseFreshness
from multifacet.serving.core.document import State
from multifacet.serving.core.limits import Limits
from multifacet.serving.ranker.freshness import Freshness, unix_seconds
from multifacet.serving.release.release import Release

UNTIL = "2026-11-29T00:00:00"


def test_the_first_score_counts() -> None:
    now = [unix_seconds(UNTIL) + 600.0]
    freshness = Freshness(lambda: now[0])
    assert freshness.gauges("v1", None) == {}
    assert list(freshness.gauges("v1", UNTIL)) == ["knows_until_timestamp_seconds"]
    freshness.scored("v1")
    now[0] += 3600.0
    freshness.scored("v1")
    freshness.scored("v2")
    numbers = {name: value for name, (_, value) in freshness.gauges("v1", UNTIL).items()}
    assert numbers == {"knows_until_timestamp_seconds": unix_seconds(UNTIL), "first_score_delay_seconds": 600.0}
    assert freshness.gauges("v2", UNTIL)["first_score_delay_seconds"][1] == 4200.0


def test_times_have_zones_or_are_utc() -> None:
    assert unix_seconds("2026-11-29T02:00:00+02:00") == unix_seconds(UNTIL)


def write_state(folder: Path, release: Release, lines: list[dict[str, Any]], **fields: Any) -> State:
    state = State(
        number=2,
        old_version="old",
        old_path=folder,
        new_version=release.version,
        new_path=release.path,
        rankers=("a:1",),
        lookups=("b:1",),
        limits=Limits(),
        **fields,
    )
    (folder / "audit.jsonl").write_text("".join(json.dumps({"rollout": 2, **line}) + "\n" for line in lines))
    return state


@pytest.fixture
def release(model: Any, tmp_path: Path) -> Release:
    """A release that says until when it knows."""
    from multifacet.serving.release import publisher  # noqa: PLC0415 - only here

    knowing = publisher.ModelLineage(knows_until=UNTIL)
    given = publisher.ModelManifest.model_validate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            publisher.ModelManifest, "model_validate", lambda found: given(found).model_copy(update={"lineage": knowing})
        )
        return publisher.publish(model.path, tmp_path / "release")


def test_a_rollout_tells_how_long_events_waited(release: Release, tmp_path: Path) -> None:
    folder = tmp_path / "rollout"
    folder.mkdir()
    lines = [
        {"time": "2026-11-29T05:00:00+00:00", "step": "switched", "event": "begun"},
        {"time": "2026-11-29T06:00:00+00:00", "step": "switched", "event": "done"},
        {"time": "2026-11-29T07:00:00+00:00", "step": "retired", "event": "done"},
    ]
    state = write_state(folder, release, lines, done="retired")
    found = ReleaseFreshness.of(folder, state, clock=lambda: unix_seconds("2026-11-30T00:00:00"))
    assert found is not None
    assert (found.version, found.knows_until, found.delay_s, found.age_s) == (release.version, UNTIL, 21_600.0, 86_400.0)
    assert (
        str(found)
        == "knows of events until 2026-11-29T00:00:00 UTC, 1 day, 0:00:00 ago, which waited 6:00:00 for the first score"
    )


def test_before_the_switch_the_old_release_serves(release: Release, tmp_path: Path) -> None:
    folder = tmp_path / "rollout"
    folder.mkdir()
    assert ReleaseFreshness.of(folder, write_state(folder, release, [], done="shadowed")) is None  # the old one is not there


def test_releases_without_times_keep_their_version(model: Any, tmp_path: Path) -> None:
    from multifacet.serving import publish  # noqa: PLC0415 - only here

    plain = publish(model.path, tmp_path / "plain")
    assert "knows_until" not in json.loads((plain.path / "manifest.json").read_text())
    assert plain.manifest.knows_until is None
