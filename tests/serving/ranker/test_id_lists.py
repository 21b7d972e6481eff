"""Features of several ids are served with the scores that they have offline: as lists of a candidate, or of the request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from multifacet import ranking
from multifacet.ranking import LabelledColumns, RankingConfig, RankingResult, make_id_maps, make_model, read_examples
from multifacet.ranking.export.export import ExportedModel
from multifacet.serving import (
    AsyncRankerClient,
    InvalidRequestError,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    Release,
    publish,
)
from multifacet.serving.load.workload import rank_request
from multifacet.serving.protocol import ranker_pb2, ranker_pb2_grpc
from multifacet.serving.release.manifest import ReleaseManifest
from multifacet.serving.wire.packing import pack_id_lists, pack_rank
from multifacet.tables import IdMap

NUM, LENGTH = 40, 5
WORDS = [f"tag {number}" for number in range(30)]
FEATURES = ("tags", "user", "interests", "pin", "country")  # lists before, between and behind the others


def make_log() -> pa.Table:
    generator = np.random.default_rng(0)
    tags = [generator.choice(WORDS, number % 9).tolist() for number in range(NUM)]  # 0 to 8: longer than are read, too
    return pa.table(
        {
            "user": ["ann"] * NUM,
            "pin": generator.integers(0, 20, NUM),
            "country": [("de", "fr")[number % 2] for number in range(NUM)],
            "tags": tags,
            "interests": [[7, 9, 7, 1]] * NUM,
            "clicked": generator.integers(0, 2, NUM),
            "price": generator.random(NUM).astype(np.float32),
        }
    )


LOG = make_log()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    columns = LabelledColumns(
        user="user",
        pin="pin",
        dense=("price",),
        features={name: name for name in ("tags", "interests", "country")},
        max_list_length=LENGTH,
    )
    rows = read_examples(LOG, columns)
    config = RankingConfig(features=FEATURES, facets=("own", "other"), pretrained_facets=(), dim=8, hidden=(16,), dropout=0.0)
    maps = make_id_maps((), rows.take(np.arange(NUM // 2)), config)  # ids of the other half are unknown
    torch.manual_seed(3)
    ranker = make_model(config, maps, num_dense=1, list_lengths={"tags": LENGTH, "interests": LENGTH})
    for spec in ranker.specs:
        ranker.table(spec.name).normal_()
    result = RankingResult(
        model=ranker,
        id_maps=maps,
        config=config,
        dense_names=("price",),
        history=[],
        metrics={},
        coverage=None,  # type: ignore[arg-type]  # nothing was initialised
        parents=("0" * 64,),
    )
    path = tmp_path_factory.mktemp("lists") / "model"
    ranking.export_model(path, result)
    return ranking.load_model(path)


@pytest.fixture(scope="module")
def rows() -> ranking.Examples:
    columns = LabelledColumns(
        user="user",
        pin="pin",
        dense=("price",),
        features={name: name for name in ("tags", "interests", "country")},
        max_list_length=LENGTH,
    )
    return read_examples(LOG, columns)


@pytest.fixture(scope="module")
def release(model: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return publish(model.artifact.path, tmp_path_factory.mktemp("release") / "r", precision="int4")


@pytest.fixture(scope="module")
def ranker(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Any:
    frames = f"unix:{tmp_path_factory.mktemp('frames')}/f.sock"
    with LookupServer(LookupConfig(releases=(release.path,), framed_listen=frames)) as lookup:
        config = RankerConfig(releases=(release.path,), lookup=f"framed:{frames}", batch_max_candidates=200, max_sequence_ids=9)
        assert lookup.address
        with RankerServer(config) as server:
            yield server


def request(places: Any = slice(None)) -> dict[str, Any]:
    some = {name: LOG[name].to_pylist()[places] for name in ("pin", "country", "tags")}
    dense = LOG["price"].to_numpy()[places, None]
    return {"request_ids": {"user": "ann", "interests": [7, 9, 7, 1]}, "candidate_ids": some, "dense": dense}


def assert_close(scores: Any, expected: Any) -> None:
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


def test_scores_are_those_offline(ranker: RankerServer, model: ExportedModel, rows: ranking.Examples) -> None:
    offline = model.score(rows, "int4")
    with RankerClient(ranker.address, timeout_s=10) as client:
        answer = client.rank(**request())
        assert_close(np.stack([answer.ctr, answer.cvr], 1), offline)
        for place in range(NUM):  # each alone, among them one whose list is empty
            assert_close(client.rank(**request(slice(place, place + 1))).ctr, offline[place : place + 1, 0])
        # The lists are read: without them, the scores are others.
        given = request()
        given["candidate_ids"]["tags"] = [[]] * NUM
        assert np.abs(client.rank(**given).ctr - offline[:, 0]).max() > 1e-3
        given = request()
        given["request_ids"]["interests"] = []
        assert np.abs(client.rank(**given).ctr - offline[:, 0]).max() > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_shards_score_as_offline(precision: Any, model: ExportedModel, rows: ranking.Examples, tmp_path: Path) -> None:
    split = publish(model.artifact.path, tmp_path / "split", precision=precision, shards=2)
    halves = [LookupServer(LookupConfig(releases=(split.path,), shard=shard)) for shard in range(2)]
    with halves[0], halves[1]:
        config = RankerConfig(releases=(split.path,), lookup="|".join(half.address for half in halves))
        with RankerServer(config) as server, RankerClient(server.address, timeout_s=10) as client:
            assert_close(client.rank(**request()).ctr, model.score(rows, precision)[:, 0])


def test_requests_of_a_batch_keep_their_own_lists(ranker: RankerServer, model: ExportedModel, rows: ranking.Examples) -> None:
    offline = model.score(rows, "int4")[:, 0]

    async def main() -> list[Any]:
        async with AsyncRankerClient(ranker.address, timeout_s=10) as client:
            return await asyncio.gather(*(client.rank(**request(slice(start, start + 8))) for start in range(0, NUM, 8)))

    for number, answer in enumerate(asyncio.run(main())):
        assert_close(answer.ctr, offline[8 * number : 8 * number + 8])


def test_lists_of_arrow_and_numpy_are_lists_too(ranker: RankerServer, model: ExportedModel, rows: ranking.Examples) -> None:
    offline = model.score(rows, "int4")[:, 0]
    given = request()
    for tags in (LOG["tags"], LOG["tags"].to_pandas(), [np.array(each, object) for each in LOG["tags"].to_pylist()]):
        given["candidate_ids"]["tags"] = tags
        given["request_ids"]["interests"] = np.array([7, 9, 7, 1])
        with RankerClient(ranker.address, timeout_s=10) as client:
            assert_close(client.rank(**given).ctr, offline)
    square = pack_rank({}, {"tags": np.array([[1, 2], [3, 4]])}, np.zeros((2, 1)), version="", request_id="")
    assert list(square.candidate_lists[0].lengths) == [2, 2]


def test_a_ranker_and_its_release_say_which_features_have_lists(ranker: RankerServer, release: Release) -> None:
    with RankerClient(ranker.address, timeout_s=10) as client:
        described = client.describe().versions[0].id_features
        lengths = {"tags": LENGTH, "user": 0, "interests": LENGTH, "pin": 0, "country": 0}
        assert {feature.feature: feature.list_length for feature in described} == lengths
        assert release.manifest.list_lengths == {"tags": LENGTH, "interests": LENGTH}
        draw = rank_request(release, client, num_candidates=9, exponent=1.0, seed=0)
        assert len(draw()().ctr) == 9  # type: ignore[attr-defined]
        nothing = {"pin": [], "country": [], "tags": []}
        assert len(client.rank({"user": "ann", "interests": []}, nothing, dense=np.zeros((0, 1))).ctr) == 0


def test_what_is_no_list_is_refused_with_its_reason(ranker: RankerServer) -> None:
    with RankerClient(ranker.address, timeout_s=10) as client:
        for feature, value, reason in (
            ("tags", ["red"] * NUM, "'tags' came with one id: version .* has lists of up to 5 ids"),
            ("pin", [[1]] * NUM, "'pin' came with lists of ids: version .* has one id"),
            ("tags", [["red"]] * (NUM - 1), "39 ids in 39 lists of 39 together: expected 40 lists"),
            ("tags", [[1]] * NUM, "'tags' are int64, but .* has string"),
            ("tags", [["red"] * 10] + [["red"]] * (NUM - 1), "has 10 ids: at most 9 are accepted; the first 5 are read"),
            ("tags", [["red"]] * (NUM - 1) + ["red"], "number 39 is 'red': expected a list"),
            ("tags", [["red"]] * (NUM - 1) + [None], "number 39 is None: expected a list"),
            ("tags", [["red"]] * (NUM - 1) + [[7]], "hold integers and strings"),
            ("tags", [[None]] * NUM, "expected integers or strings"),
            ("tags", [["red", float("nan")]] * NUM, "expected integers or strings"),
            ("pin", [1] * (NUM - 1) + [[1]], "some lists and some not"),
        ):
            given = request()
            given["candidate_ids"][feature] = value
            with pytest.raises(InvalidRequestError, match=reason):
                client.rank(**given)
        given = request()
        del given["candidate_ids"]["tags"]
        with pytest.raises(InvalidRequestError, match=r"missing \['tags'\]"):
            client.rank(**given)


def test_lengths_that_lie_are_refused(ranker: RankerServer) -> None:
    given = request()
    tags = given["candidate_ids"].pop("tags")
    message = pack_rank(**given, version="", request_id="")
    lists = pack_id_lists("tags", tags)
    with grpc.insecure_channel(ranker.address) as channel:
        stub = ranker_pb2_grpc.RankerStub(channel)  # type: ignore[no-untyped-call]
        for lengths in ([2**32 - 1] * NUM, [*lists.lengths[:-1], lists.lengths[-1] + 1], []):
            wrong = ranker_pb2.RankRequest.FromString(message.SerializeToString())
            wrong.candidate_lists.append(ranker_pb2.FeatureIdLists(ids=lists.ids, lengths=lengths))
            with pytest.raises(grpc.RpcError, match="together: expected 40 lists") as refused:
                stub.Rank(wrong, timeout=5)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_a_model_of_lists_alone_is_served_also_when_all_are_empty(tmp_path: Path) -> None:
    class Upper(torch.nn.Module):
        def forward(self, dense: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
            return torch.stack([embeddings.sum((1, 2)) + dense[:, 0], dense[:, 0]], 1)

    ranking.write_model(
        tmp_path / "m",
        Upper(),
        {"tags": torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.5, 0.5]])},
        {"tags": IdMap.exact(["a", "b"])},
        dense_names=("x",),
        list_lengths={"tags": 3},
    )
    release = publish(tmp_path / "m", tmp_path / "r", precision="fp32")
    with LookupServer(LookupConfig(releases=(release.path,))) as lookup:
        config = RankerConfig(releases=(release.path,), lookup=lookup.address)
        with RankerServer(config) as server, RankerClient(server.address, timeout_s=10) as client:
            lists = [["a", "b"], [], ["z"], ["a", "a", "b", "b"]]
            answer = client.rank({}, {"tags": lists}, dense=np.zeros((4, 1), np.float32))
            logits = torch.tensor([5.0, 0.0, 1.0, (3 + 3 + 7) / 3])
            np.testing.assert_allclose(answer.ctr, logits.sigmoid(), rtol=1e-6)
            answer = client.rank({}, {"tags": [[], []]}, dense=np.ones((2, 1), np.float32))
            np.testing.assert_allclose(answer.ctr, torch.ones(2).sigmoid(), rtol=1e-6)


def test_manifests_whose_lists_contradict_each_other_are_refused(release: Release) -> None:
    described = release.manifest.model_dump()
    described["tables"][0]["list_length"] = 2
    with pytest.raises(ValidationError, match="several list lengths"):
        ReleaseManifest.model_validate(described)


def test_a_model_of_lists_and_a_sequence_is_served_with_its_offline_scores(tmp_path: Path) -> None:
    """Slots of single ids, of lists and of the pooled sequence each come to their place."""
    recent = [3, 1, 4, 1, 5]
    columns = LabelledColumns(
        user="user", pin="pin", dense=("price",), features={"tags": "tags"}, max_list_length=LENGTH, recent_pins="recent"
    )
    rows = read_examples(LOG.append_column("recent", pa.array([recent] * NUM)), columns)
    assert rows.recent is not None
    config = RankingConfig(
        features=("tags", "pin", "user"),
        facets=("own", "other"),
        pretrained_facets=(),
        dim=8,
        hidden=(16,),
        dropout=0.0,
        sequence="attention",
        sequence_table="separate",
    )
    maps = make_id_maps((), rows, config)
    torch.manual_seed(4)
    ranker = make_model(config, maps, num_dense=1, num_recent=rows.recent.length, list_lengths={"tags": LENGTH})
    for spec in ranker.specs:
        ranker.table(spec.name).normal_()
    result = RankingResult(
        model=ranker,
        id_maps=maps,
        config=config,
        dense_names=("price",),
        history=[],
        metrics={},
        coverage=None,  # type: ignore[arg-type]  # nothing was initialised
        parents=("0" * 64,),
    )
    ranking.export_model(tmp_path / "m", result)
    release = publish(tmp_path / "m", tmp_path / "r", precision="fp32")
    candidates = {name: LOG[name].to_pylist() for name in ("pin", "tags")}
    with LookupServer(LookupConfig(releases=(release.path,))) as lookup:
        server_config = RankerConfig(releases=(release.path,), lookup=lookup.address)
        with RankerServer(server_config) as server, RankerClient(server.address, timeout_s=10) as client:
            dense = LOG["price"].to_numpy()[:, None]
            answer = client.rank({"user": "ann"}, candidates, dense=dense, sequences={"recent_pins": recent})
    np.testing.assert_allclose(answer.ctr, ranking.load_model(tmp_path / "m").score(rows)[:, 0], rtol=1e-5, atol=1e-6)
