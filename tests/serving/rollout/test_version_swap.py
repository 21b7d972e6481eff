"""Between two releases, no answer is torn or mixed: each is of one version, both halves of it."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

from benchmarks.harness.witness import IDS, write_witness
from multifacet.artifacts import ArtifactError
from multifacet.serving import (
    LookupClient,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    VersionNotLoadedError,
)


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("witnesses")
    written = {number: write_witness(folder / f"release-{number}", number) for number in (1, 2)}
    return {release.version: (number, release) for number, release in written.items()}


def test_rows_are_of_the_version_asked_for_while_versions_come_and_go(releases):
    (first, (_, first_release)), (second, (_, second_release)) = releases.items()
    answered = dict.fromkeys(releases, 0)
    refused = dict.fromkeys(releases, 0)
    faults: list[object] = []
    done = threading.Event()

    def ask(version: str, seed: int) -> None:
        generator = np.random.default_rng(seed)
        with LookupClient(server.address, timeout_s=5) as client:
            while not done.is_set():
                ids = generator.integers(0, IDS, 40)
                try:
                    answer = client.lookup(version, {"user": ids, "pin": ids[::-1].copy()})
                except VersionNotLoadedError:
                    refused[version] += 1
                    continue
                answered[version] += 1
                for feature, expected in (("user", ids), ("pin", ids[::-1])):
                    rows = answer.tables[feature].rows.view("<f4")
                    if answer.version != version or set(rows[:, 0]) != {releases[version][0]}:
                        faults.append(("version", version, rows))
                    if not np.array_equal(rows[:, 1], expected):
                        faults.append(("id", expected, rows))

    with LookupServer(LookupConfig(releases=(first_release.path,))) as server:
        askers = [threading.Thread(target=ask, args=(version, seed)) for seed, version in enumerate(releases)]
        for asker in askers:
            asker.start()
        for _ in range(12):
            server.load(second_release.path)
            done.wait(0.03)
            server.retire(first)
            done.wait(0.03)
            server.load(first_release.path)
            done.wait(0.03)
            server.retire(second)
        done.set()
        for asker in askers:
            asker.join()
    assert faults == []
    assert all(answered.values()), answered
    assert all(refused.values()), refused  # each was away for a while, and never replaced by the other


def test_scores_are_of_one_version_both_halves_while_the_current_one_moves(releases):
    (first, (_, first_release)), (second, (_, second_release)) = releases.items()
    versions_seen: set[str] = set()
    faults: list[object] = []
    done = threading.Event()

    def ask(seed: int) -> None:
        generator = np.random.default_rng(seed)
        with RankerClient(ranker.address, timeout_s=5) as client:
            while not done.is_set():
                pins = generator.integers(0, IDS, 9)
                dense = np.stack([np.full(9, 77), pins], axis=1)
                answer = client.rank({"user": 77}, {"pin": pins}, dense=dense)
                versions_seen.add(answer.version)
                if not (answer.ctr == 0.5).all() or not (answer.cvr == 0.5).all():
                    faults.append(answer)

    with LookupServer(LookupConfig(releases=(first_release.path, second_release.path))) as lookup:
        config = RankerConfig(releases=(first_release.path,), lookup=lookup.address, lookup_timeout_s=10)
        with RankerServer(config) as ranker:
            ranker.load(second_release.path)
            askers = [threading.Thread(target=ask, args=(seed,)) for seed in range(2)]
            for asker in askers:
                asker.start()
            for _ in range(10):
                for version in (second, first):
                    ranker.choose(version)
                    done.wait(0.04)
            done.set()
            for asker in askers:
                asker.join()
            mixed = np.zeros((1, 2), np.float32)
            with RankerClient(ranker.address, timeout_s=10) as client:  # the witness does tell: rows of another id
                assert client.rank({"user": 1}, {"pin": [0]}, dense=mixed).ctr[0] == 1.0
    assert faults == []
    assert versions_seen == {first, second}


@pytest.mark.parametrize("way", ["start", "load"])
def test_a_release_that_takes_the_place_of_another_while_it_is_opened_is_not_served_as_that_one(
    releases, tmp_path, monkeypatch, way
):
    (first, (_, first_release)), (second, (_, second_release)) = releases.items()
    folder = tmp_path / "release"
    shutil.copytree(first_release.path, folder)
    opened = LookupServer._open

    def replace_and_open(server, path):  # as a publisher does that replaces a release, at the worst moment
        if path == folder and not (tmp_path / "aside").exists():
            folder.rename(tmp_path / "aside")
            shutil.copytree(second_release.path, folder)
        return opened(server, path)

    monkeypatch.setattr(LookupServer, "_open", replace_and_open)
    if way == "start":
        with pytest.raises(ArtifactError, match="took its place while it was opened"):
            LookupServer(LookupConfig(releases=(folder,)))
    else:
        with LookupServer(LookupConfig(releases=(second_release.path,))) as server:
            with pytest.raises(ArtifactError, match="took its place while it was opened"):
                server.load(folder)
            assert server.versions == (second,)
            server.load(first_release.path)
            with LookupClient(server.address, timeout_s=5) as client:
                rows = client.lookup(first, {"user": np.arange(3), "pin": np.arange(3)}).tables["user"].rows.view("<f4")
            assert set(rows[:, 0]) == {releases[first][0]}
