"""Simulated worlds: nothing is violated, a seed is the same world every time, and bugs that are planted are found."""

from __future__ import annotations

import pytest

from benchmarks.harness.worlds import planted, simulate
from benchmarks.harness.worlds.plans import plan

# How many seeds are tried. docs/results tells which one finds each bug, and of more of them.
MOST_SEEDS = {
    "the version of a release is not looked at again once it is open": 20,
    "a delta is laid over whatever is there": 20,
    "a lease is not counted": 160,
    "a change is told before it is written": 5,
    "a change is not written at all": 5,
    "a load makes its version the current one": 5,
    "a file is renamed before it is synced": 5,
    "a folder is not synced after the rename": 5,
    "a release's files are not synced": 5,
    "a phase is skipped: lookup servers are not loaded": 5,
    "a stale report is believed": 5,
    "a rollback retires what it serves": 40,
}


@pytest.mark.slow
@pytest.mark.parametrize("block", range(3))
def test_worlds_in_which_anything_may_fail_keep_what_must_hold(block):
    endings = [simulate(seed) for seed in range(block * 100, block * 100 + 100)]
    assert [(ending.seed, ending.violation) for ending in endings if ending.violation] == []
    assert sum(ending.num_scores for ending in endings) > 1000
    assert sum(ending.num_faults for ending in endings) > 100


def test_a_seed_is_the_same_world_every_time():
    for seed in (3, 4):
        first, second = simulate(seed, traced=True), simulate(seed, traced=True)
        assert first == second
        assert len(first.trace) > 20
        assert simulate(seed).num_events == first.num_events


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST_SEEDS)
def test_worlds_find_a_planted_bug(name):
    (bug,) = (bug for bug in planted.BUGS if bug.name == name)
    found = planted.find(bug, most=MOST_SEEDS[name])
    assert found is not None
    assert simulate(found.seed).violation == ""  # the world is well without it


def test_files_are_synced_before_they_are_renamed_and_folders_behind():
    assert [step.kind for step in plan("state")] == ["write", "sync_file", "rename", "sync_folder"]
    kinds = [step.kind for step in plan("release")]
    assert kinds.index("rename") > max(place for place, kind in enumerate(kinds) if kind in {"write", "sync_file"})
    assert kinds[-1] == "sync_folder"
    assert "exchange" in [step.kind for step in plan("place")]
