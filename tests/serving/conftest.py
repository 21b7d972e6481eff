"""A small trained model as ranking writes it, its release, and an offline scorer to compare with."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from multifacet.artifacts import ArtifactWriter
from multifacet.serving import (
    AsyncLookupClient,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    Release,
    ServingError,
    connect_lookup,
    publish,
)
from multifacet.serving.client.lookups import LookupConnection
from multifacet.tables import IdMap, decode, encode

DENSE = ("age_days", "price", "hour")
DIM = 16
USERS, PINS = 40, 300
ADVERTISERS = tuple(f"brand-{number}é" for number in range(12))
# name, feature, id map; two tables share a map, and the advertiser's ids are strings
TABLES = (
    ("user_kge", "user", "user"),
    ("user_contrastive", "user", "user"),
    ("pin_kge", "pin", "pin"),
    ("pin_contrastive", "pin", "pin_hashed"),
    ("advertiser_kge", "advertiser", "advertiser"),
)


class Upper(torch.nn.Module):
    """Normalises dense features, lets user and pin slots multiply, and scores."""

    def __init__(self, num_dense: int, num_tables: int, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.randn(num_dense))
        self.hidden = torch.nn.Linear(num_dense + num_tables * dim + dim, 24)
        self.out = torch.nn.Linear(24, 2)

    def forward(self, dense: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        product = embeddings[:, 0] * embeddings[:, -1]
        inputs = torch.cat([dense - self.mean, embeddings.flatten(1), product], dim=1)
        return self.out(torch.relu(self.hidden(inputs)))


def export(module: torch.nn.Module, path: Path, num_dense: int, num_tables: int, dim: int) -> None:
    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(3, num_dense), torch.zeros(3, num_tables, dim))
    program = torch.export.export(module.eval(), example, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, path)


@dataclass(frozen=True)
class TrainedModel:
    path: Path
    upper: torch.nn.Module
    weights: dict[str, torch.Tensor]
    id_maps: dict[str, IdMap]

    def score(self, ids: dict[str, Any], dense: np.ndarray, precision: str = "int4") -> np.ndarray:
        """Offline: encode and decode each row, run the module that was exported."""
        slots = []
        for name, feature, id_map in TABLES:
            rows = torch.from_numpy(self.id_maps[id_map].rows(ids[feature])).long()
            vectors = self.weights[name][rows]
            slots.append(decode(encode(vectors, precision), DIM, precision))
        with torch.inference_mode():
            return self.upper(torch.from_numpy(dense), torch.stack(slots, dim=1)).sigmoid().numpy()


def write_model(path: Path, *, seed: int) -> TrainedModel:
    generator = torch.Generator().manual_seed(seed)
    id_maps = {
        "user": IdMap.exact(list(range(1000, 1000 + USERS))),
        "pin": IdMap.exact([7 * number - 500 for number in range(PINS)]),
        "pin_hashed": IdMap.hashed(64, id_type="int64", seed=3),
        "advertiser": IdMap.exact(list(ADVERTISERS)),
    }
    weights = {name: torch.randn(id_maps[id_map].num_rows, DIM, generator=generator) for name, _, id_map in TABLES}
    return save_model(path, id_maps, weights, make_upper(generator))


def make_upper(generator: torch.Generator) -> Upper:
    upper = Upper(len(DENSE), len(TABLES), DIM)
    with torch.no_grad():
        for parameter in (*upper.parameters(), upper.mean):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        upper.hidden.weight[:, : len(DENSE)] *= 4
    return upper


def save_model(path: Path, id_maps: dict[str, IdMap], weights: dict[str, torch.Tensor], upper: Upper) -> TrainedModel:
    with ArtifactWriter(path, kind="ranking-model") as writer:
        for folder in ("vectors", "id_maps"):
            (writer.directory / folder).mkdir()
        for name, tensor in weights.items():
            save_file({"weights": tensor}, writer.directory / "vectors" / f"{name}.safetensors")
        for name, id_map in id_maps.items():
            id_map.save(writer.directory / "id_maps", name)
        export(upper, writer.directory / "upper.pt2", len(DENSE), len(TABLES), DIM)
        writer.manifest.update(
            name="both",
            dense_features=list(DENSE),
            dim=DIM,
            tables=[
                {
                    "name": name,
                    "feature": feature,
                    "node_type": feature,
                    "facet": name.partition("_")[2],
                    "rows": id_maps[id_map].num_rows,
                    "dim": DIM,
                    "vectors": f"vectors/{name}.safetensors",
                    "id_map": id_map,
                }
                for name, feature, id_map in TABLES
            ],
            upper="upper.pt2",
            tasks=["ctr", "cvr"],
            parents=["0" * 64],
            config={},
            metrics={"ctr_auc": 0.75},
        )
    return TrainedModel(path, upper, weights, id_maps)


@pytest.fixture(scope="session")
def export_upper() -> Callable[..., None]:
    return export


@pytest.fixture(scope="session")
def change_model() -> Callable[..., TrainedModel]:
    """Writes the model after more training: some rows moved, pins added and dropped, another upper model."""

    def change(
        model: TrainedModel,
        path: Path,
        *,
        seed: int,
        share: float = 0.1,
        added: Sequence[int] = (),
        dropped: Sequence[int] = (),
    ) -> TrainedModel:
        generator = torch.Generator().manual_seed(seed)
        pins = model.id_maps["pin"]
        rows = np.arange(pins.num_rows - 1)
        ids = np.empty(len(rows), np.int64)
        ids[pins.rows(pins.known_ids(rows))] = pins.known_ids(rows)
        kept = np.flatnonzero(~np.isin(ids, dropped))
        id_maps = model.id_maps | {"pin": IdMap.exact(np.concatenate([ids[kept], np.array(added, np.int64)]))}
        weights = {}
        for name, _, id_map in TABLES:
            table = model.weights[name].clone()
            moved = torch.rand(len(table), generator=generator) < share
            table[moved] += torch.randn(int(moved.sum()), DIM, generator=generator)
            if id_map == "pin":
                table = torch.cat([table[kept], torch.randn(len(added), DIM, generator=generator), table[-1:]])
            weights[name] = table
        return save_model(path, id_maps, weights, make_upper(generator))

    return change


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return write_model(tmp_path_factory.mktemp("model") / "model", seed=1)


@pytest.fixture(scope="session")
def release(model: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return publish(model.path, tmp_path_factory.mktemp("release") / "release")


@pytest.fixture(scope="session")
def other_release(model: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return publish(model.path, tmp_path_factory.mktemp("other") / "release", precision="int8")


@pytest.fixture(scope="session")
def request_of() -> Callable[..., tuple[dict[str, int], dict[str, Any], np.ndarray]]:
    """Builds request_ids, candidate_ids and dense of a request; one in ten pins is unknown."""

    def build(num_candidates: int = 50, seed: int = 0) -> tuple[dict[str, int], dict[str, Any], np.ndarray]:
        generator = np.random.default_rng(seed)
        pins = 7 * generator.integers(0, PINS, num_candidates) - 500
        pins[::10] += 1  # not a multiple: unknown to the exact map
        advertisers = [ADVERTISERS[index] for index in generator.integers(0, len(ADVERTISERS), num_candidates)]
        dense = generator.normal(size=(num_candidates, len(DENSE))).astype(np.float32)
        return {"user": 1007}, {"pin": pins, "advertiser": advertisers}, dense

    return build


@pytest.fixture
def all_ids() -> Callable[[dict[str, int], dict[str, Any], int], dict[str, Any]]:
    def expand(request_ids: dict[str, int], candidate_ids: dict[str, Any], num: int) -> dict[str, Any]:
        return {**{feature: [value] * num for feature, value in request_ids.items()}, **candidate_ids}

    return expand


class FromAsync(LookupConnection):
    """An asynchronous client on an event loop of its own, asked as the synchronous ones are."""

    def __init__(self, address: str, **fields: Any):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._client = self._run(self._connect(address, **fields)).result()
        self.address, self.timeout_s = self._client.address, self._client.timeout_s

    @property
    def server(self) -> str:
        return self._client.server

    def start(self, version: str, ids: Any, *, timeout_s: float | None = None, request_id: str = "") -> Any:
        return _Pending(self._run(self._client.lookup(version, ids, timeout_s=timeout_s, request_id=request_id)))

    def describe(self, *, timeout_s: float | None = None) -> Any:
        return self._run(self._client.describe(timeout_s=timeout_s)).result()

    def counters(self) -> Any:
        return self._client.counters()

    def close(self) -> None:
        self._run(self._client.close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _connect(address: str, **fields: Any) -> AsyncLookupClient:
        return AsyncLookupClient(address, **fields)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


class _Pending:
    def __init__(self, future: concurrent.futures.Future[Any]):
        self._future = future
        self._given_up = False
        self.elapsed_us = 0
        self._started = time.monotonic()

    def cancel(self) -> None:
        self._given_up = True  # the answer may have been there
        self._future.cancel()

    def result(self) -> Any:
        if self._given_up:
            raise ServingError("CANCELLED")
        try:
            answer = self._future.result()
        except concurrent.futures.CancelledError as error:
            raise ServingError("CANCELLED") from error
        self.elapsed_us = int((time.monotonic() - self._started) * 1e6)
        return answer


class Transport:
    """One way to ask a lookup server, for the tests that hold for all of them."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.folder = folder

    def config(self, **fields: Any) -> LookupConfig:
        """A configuration that takes requests this way."""
        if self.name in {"framed-unix", "framed-async"}:
            fields.setdefault("framed_listen", f"unix:{self.folder / uuid.uuid4().hex[:8]}.sock")
        elif self.name == "framed-tcp":
            fields.setdefault("framed_listen", "127.0.0.1:0")
        return LookupConfig(**fields)

    def address(self, server: LookupServer) -> str:
        """Where the server takes requests this way."""
        return server.address if self.name.startswith("grpc") else server.framed_address

    def connect(self, server: LookupServer, **fields: Any) -> LookupConnection:
        """A client that asks this way."""
        return self.make(self.address(server), **{"timeout_s": 10, **fields})

    def make(self, address: str, **fields: Any) -> LookupConnection:
        """A client of any list of servers that asks this way."""
        return (FromAsync if self.name.endswith("-async") else connect_lookup)(address, **fields)


@pytest.fixture(scope="session")
def make_transport(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Transport]:
    return lambda name: Transport(name, tmp_path_factory.mktemp("sockets"))


@pytest.fixture(scope="module", params=["grpc", "framed-unix", "framed-tcp"])
def transport(request: pytest.FixtureRequest, make_transport: Callable[[str], Transport]) -> Transport:
    return make_transport(request.param)


@pytest.fixture(scope="module")
def lookup_server(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LookupServer]:
    framed = f"unix:{tmp_path_factory.mktemp('framed') / 'lookup.sock'}"
    with LookupServer(LookupConfig(releases=(release.path,), framed_listen=framed)) as server:
        yield server


@pytest.fixture(scope="module")
def served(release: Release, transport: Transport) -> Iterator[LookupServer]:
    with LookupServer(transport.config(releases=(release.path,))) as server:
        yield server


@pytest.fixture(scope="module")
def lookup_client(served: LookupServer, transport: Transport) -> Iterator[LookupConnection]:
    with transport.connect(served) as client:
        yield client


@pytest.fixture(scope="module", params=["grpc", "framed"])
def ranker_server(release: Release, lookup_server: LookupServer, request: pytest.FixtureRequest) -> Iterator[RankerServer]:
    lookup = lookup_server.address if request.param == "grpc" else lookup_server.framed_address
    config = RankerConfig(releases=(release.path,), lookup=lookup, lookup_timeout_s=10, startup_timeout_s=10)
    with RankerServer(config) as server:
        yield server


@pytest.fixture(scope="module")
def ranker_client(ranker_server: RankerServer) -> Iterator[RankerClient]:
    with RankerClient(ranker_server.address, timeout_s=5) as client:
        yield client
