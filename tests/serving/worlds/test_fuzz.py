"""Bytes of others, changed at random: taken, or refused in our own words. The benchmark `serving_fuzz` is led by coverage."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from benchmarks.harness import fuzzing

NUM_INPUTS = {"manifests": 150, "id maps": 300, "snapshots": 100}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return fuzzing.targets(tmp_path_factory.mktemp("fuzz"))


def test_every_target_is_listed_and_takes_what_is_right(made):
    assert tuple(made) == fuzzing.TARGETS
    for target in made.values():
        assert any(target.try_one(seed) for seed in target.seeds), target.name


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_changed_bytes_are_taken_or_refused_in_our_own_words(made, name):
    target, chooser = made[name], random.Random(7)
    inputs = [fuzzing.changed(chooser.choice(target.seeds), chooser) for _ in range(NUM_INPUTS.get(name, 2000))]
    refused = sum(not target.try_one(data) for data in inputs)
    assert refused


def test_what_is_no_refusal_is_a_crash():
    def read(data):
        return data[7]

    target = fuzzing.Target("short", read, (b"12345678",))
    assert target.try_one(b"12345678")
    with pytest.raises(IndexError):
        target.try_one(b"")


@pytest.mark.slow
def test_a_target_is_fuzzed_by_coverage(tmp_path):
    pytest.importorskip("atheris", reason="the group `fuzz` of pyproject.toml is not installed")
    command = [
        sys.executable,
        "-m",
        "benchmarks.harness.fuzz_coverage",
        "rank messages",
        str(tmp_path / "corpus"),
        "-runs=2000",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Done 2000 runs" in ended.stderr + ended.stdout
    assert len(list((tmp_path / "corpus").iterdir())) > 1  # inputs that reached something new
