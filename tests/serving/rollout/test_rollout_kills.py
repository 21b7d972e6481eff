"""The short form of the benchmark `rollout_kills`: commands alone end a rollout under kills and lost disks."""

from __future__ import annotations

import pytest

from benchmarks.harness.kills import Deployment

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_rollouts_under_kills_and_lost_disks_end_in_a_served_version(tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("k")) as deployment:
        runs = [deployment.run(number) for number in (6, 8, 9, 13, 23)]
        tally = deployment.asker.stop()
    assert [run.fault for run in runs] == [""] * len(runs), runs
    assert any("disk" in victim for run in runs for victim in run.killed)
    assert tally.mixed == 0
