"""Between two releases, no answer is torn or mixed: each is of one version, both halves of it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from serving import (
    LookupClient,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    Release,
    VersionNotLoadedError,
    publish,
)
from tables import ArtifactWriter, IdMap

IDS = 500
FEATURES = ("user", "pin")
DIM = 4


class Witness(torch.nn.Module):
    """Scores 1/2 if every row is of its own release and of the id that the dense features name; else near 0 or 1.

    A row is (release, id, 0, 0), with ids small enough to be exact in float32.
    """

    def __init__(self, number: int):
        super().__init__()
        self.register_buffer("number", torch.tensor(float(number)))

    def forward(self, dense: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        wrong = (embeddings[:, :, 0] - self.number).abs() + (embeddings[:, :, 1] - dense).abs()
        return wrong.amax(dim=1, keepdim=True) * 100 + torch.zeros(2)


def write_release(folder: Path, number: int, export) -> Release:
    id_map = IdMap.exact(list(range(IDS)))
    weights = torch.zeros(IDS + 1, DIM)
    weights[:, 0] = number
    weights[:, 1] = torch.arange(IDS + 1)
    with ArtifactWriter(folder / f"model-{number}", kind="ranking-model") as writer:
        (writer.directory / "id_maps").mkdir()
        id_map.save(writer.directory / "id_maps", "ids")
        save_file({"weights": weights}, writer.directory / "rows.safetensors")
        export(Witness(number), writer.directory / "upper.pt2", len(FEATURES), len(FEATURES), DIM)
        writer.manifest.update(
            name=f"witness-{number}",
            dense_features=[f"{feature}_id" for feature in FEATURES],
            dim=DIM,
            tables=[
                {"name": feature, "feature": feature, "node_type": feature, "facet": None, "rows": IDS + 1, "dim": DIM,
                 "vectors": "rows.safetensors", "id_map": "ids"}
                for feature in FEATURES
            ],
            upper="upper.pt2",
            tasks=["ctr", "cvr"],
            parents=[],
        )  # fmt: skip
    return publish(folder / f"model-{number}", folder / f"release-{number}", precision="fp32")


@pytest.fixture(scope="module")
def releases(tmp_path_factory, export_upper):
    folder = tmp_path_factory.mktemp("witnesses")
    return {release.version: (number, release) for number in (1, 2) if (release := write_release(folder, number, export_upper))}


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
