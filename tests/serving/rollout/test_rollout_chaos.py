"""Real processes are killed in the middle of a rollout and of its rollback, and no score is ever of two versions."""

from __future__ import annotations

import json

import pytest

from benchmarks.harness.chaos import Chaos

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("deltas", [False, True], ids=["whole", "delta"])
def test_every_part_may_be_killed_during_a_rollout_and_a_rollback(deltas, tmp_path):
    with Chaos(tmp_path, seed=1, deltas=deltas) as chaos:
        first = chaos.release.version
        assert chaos.roll_out("publisher", "controller", "lookup").done == "retired"
        second = chaos.release.version
        assert bool(chaos.release.base) is deltas
        assert chaos.roll_back("ranker").done == "rolled_back"
        tally = chaos.finish()
    assert (tally.mixed, tally.lost) == (0, 0)
    assert chaos.unexplained(tally) == []
    assert set(tally.versions) == {first, second}
    assert chaos.kills["lookup"] == chaos.kills["ranker"] == 1
    assert tally.errors  # the clients did notice
    events = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    done = [event["step"] for event in events if event["event"] == "done"]
    assert done == ["ranker_loaded", "lookup_loaded", "shadowed", "switched", "retired", "rolled_back"]
