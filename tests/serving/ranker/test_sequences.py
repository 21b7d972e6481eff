"""Models that read a user's recent pins are served with the scores that they have offline."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from multifacet.artifacts import Artifact, ArtifactError, ArtifactWriter
from multifacet.ranking import Examples, RankingResult, arm_config, export_model, load_model
from multifacet.ranking.assembly import make_model
from multifacet.ranking.examples.recent import RecentPins
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
from multifacet.serving.protocol import ids_pb2, ranker_pb2_grpc
from multifacet.serving.release.manifest import ReleaseManifest
from multifacet.serving.release.upper import check_archive
from multifacet.serving.wire.packing import pack_rank
from multifacet.tables import IdMap

LENGTH, DIM, NUM = 6, 8, 20
DENSE = ("first", "second")
KINDS = [
    ("attention", "separate", {"int4": "framed-unix", "int8": "framed-tcp"}),
    ("transformer", "shared", {"int4": "grpc", "fp16": "framed-unix"}),
]
HISTORIES = {
    "some": [11, 18, 11, -500],
    "all": [11, 18, 25, 32, 39, 46],
    "unknown": [1, 11, 2],
    "none": [],
    "more than it reads": [46, 39, 32, 25, 18, 11, 4, -3, -10],
}


@dataclass(frozen=True)
class Trained:
    """A ranker that reads a sequence, as `export_model` leaves it, with weights that nothing was trained on."""

    path: Path

    @functools.cached_property
    def loaded(self) -> ExportedModel:
        return load_model(self.path)

    def offline(self, recent: list[int], precision: str) -> np.ndarray:
        ids = np.array([recent[:LENGTH] + [0] * (LENGTH - len(recent))] * NUM, np.int64)
        counts = np.full(NUM, min(len(recent), LENGTH), np.int32)
        return self.loaded.score(replace(EXAMPLES, recent=RecentPins(pin_ids=ids, num_recent=counts)), precision)


def make_examples() -> Examples:
    generator = np.random.default_rng(0)
    pins = 7 * generator.integers(0, 90, NUM) - 500
    pins[:4] = [11, 18, 1, 46]  # of the histories, and one that is unknown
    ones = np.ones(NUM, np.float32)
    return Examples(
        user_id=np.full(NUM, 1007),
        pin_id=pins,
        advertiser_id=generator.integers(0, 12, NUM),
        context=np.zeros(NUM, np.int32),
        period=np.zeros(NUM, np.int32),
        dense=generator.normal(size=(NUM, 2)).astype(np.float32),
        ctr_label=ones,
        cvr_label=ones,
        sampling_rate=ones,
        negative_rate=ones,
        dense_names=DENSE,
        metadata={},
    )


EXAMPLES = make_examples()


def write_trained(path: Path, sequence: str, table: str) -> Trained:
    heads = {"num_attention_heads": 2} if sequence == "transformer" else {}
    fields = {} if sequence == "none" else {"sequence": sequence, "sequence_table": table}
    config = arm_config("scratch", dim=DIM, hidden=(16,), dropout=0.0, **fields, **heads)
    id_maps = {
        "user": IdMap.exact(list(range(1000, 1040))),
        "pin": IdMap.exact([7 * number - 500 for number in range(90)]),
        "advertiser": IdMap.exact(list(range(12))),
    }
    torch.manual_seed(3)
    model = make_model(config, id_maps, num_dense=len(DENSE), num_recent=LENGTH)
    with torch.no_grad():  # none of it zero, as some of a transformer is at first
        for spec in model.specs:
            model.table(spec.name).normal_()
        for parameter in model.pooling.parameters() if model.pooling is not None else ():
            parameter.normal_(0, 0.5)
    result = RankingResult(
        model=model,
        id_maps=id_maps,
        config=config,
        dense_names=DENSE,
        history=[],
        metrics={},
        coverage=None,  # type: ignore[arg-type]  # nothing was initialised
        parents=("0" * 64,),
    )
    export_model(path, result)
    return Trained(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    written: dict[tuple[str, str], Trained] = {}

    def of(sequence: str, table: str) -> Trained:
        if (sequence, table) not in written:
            path = tmp_path_factory.mktemp("trained") / "model"
            written[sequence, table] = write_trained(path, sequence, table)
        return written[sequence, table]

    return of


@pytest.fixture(scope="module")
def shared(trained, tmp_path_factory):
    """The release of a transformer over the pins' own tables."""
    return publish(trained("transformer", "shared").path, tmp_path_factory.mktemp("shared") / "release")


@contextlib.contextmanager
def serving(lookups, transport, release=None, **fields):
    """A ranker over lookup servers of these configurations, the shards of a release."""
    with contextlib.ExitStack() as running:
        servers = [running.enter_context(LookupServer(transport.config(**config))) for config in lookups]
        address = "|".join(transport.address(server) for server in servers)
        releases = (release or lookups[0]["releases"][0],)
        config = RankerConfig(releases=releases, lookup=address, lookup_timeout_s=10, startup_timeout_s=10, **fields)
        ranker = running.enter_context(RankerServer(config))
        yield ranker, running.enter_context(RankerClient(ranker.address, timeout_s=10))


CANDIDATES = {"pin": EXAMPLES.pin_id, "advertiser": EXAMPLES.advertiser_id}


def ask(client, recent, **fields):
    answer = client.rank({"user": 1007}, CANDIDATES, dense=EXAMPLES.dense, sequences={"recent_pins": recent}, **fields)
    return np.stack([answer.ctr, answer.cvr], axis=1)


def assert_close(scores, expected):
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("sequence", "table", "transports"), KINDS)
def test_scores_are_those_offline_at_every_precision(trained, sequence, table, transports, make_transport, tmp_path):
    model = trained(sequence, table)
    for precision, name in transports.items():
        transport = make_transport(name)
        release = publish(model.path, tmp_path / precision, precision=precision)
        with serving([{"releases": (release.path,)}], transport) as (_, client):
            seen = []
            for recent in HISTORIES.values():
                seen.append(ask(client, recent))
                assert_close(seen[-1], model.offline(recent, precision))
            # Each history is read: the scores differ, but for what is cut off.
            assert min(np.abs(one - seen[0]).max() for one in seen[1:]) > 1e-3
            order = HISTORIES["all"]
            moved = np.abs(ask(client, order[::-1]) - seen[1]).max()
            assert (moved > 1e-3) == (sequence == "transformer")  # which alone knows positions


@pytest.mark.parametrize(("sequence", "table"), [kind[:2] for kind in KINDS])
def test_shards_score_as_one_server(trained, sequence, table, make_transport, tmp_path):
    model = trained(sequence, table)
    release = publish(model.path, tmp_path / "split", shards=2)
    lookups = [{"releases": (release.path,), "shard": shard} for shard in range(2)]
    for name in ("grpc", "framed-unix"):
        with serving(lookups, make_transport(name)) as (_, client):
            for recent in HISTORIES.values():
                assert_close(ask(client, recent), model.offline(recent, "int4"))


def test_requests_of_a_batch_each_read_their_own_sequence(trained, shared, make_transport):
    model = trained("transformer", "shared")
    with serving([{"releases": (shared.path,)}], make_transport("framed-unix"), batch_max_candidates=200) as (ranker, _):

        async def main():
            async with AsyncRankerClient(ranker.address, timeout_s=10) as client:
                sent = [{"recent_pins": recent} for recent in HISTORIES.values()]
                return await asyncio.gather(
                    *(client.rank({"user": 1007}, CANDIDATES, dense=EXAMPLES.dense, sequences=each) for each in sent)
                )

        for answer, recent in zip(asyncio.run(main()), HISTORIES.values(), strict=True):
            assert_close(answer.ctr, model.offline(recent, "int4")[:, 0])


def test_a_shared_table_is_stored_once_and_a_separate_one_is_its_own(trained, shared, tmp_path):
    separate = publish(trained("attention", "separate").path, tmp_path / "release")
    assert [(table.name, table.reads) for table in shared.tables if "pin" in table.name] == [
        ("pin_contrastive", "both"),
        ("pin_kge", "both"),
    ]
    assert [(table.name, table.reads) for table in separate.tables if "pin" in table.name] == [
        ("pin_contrastive", "id"),
        ("recent_pins_contrastive", "sequence"),
        ("pin_kge", "id"),
        ("recent_pins_kge", "sequence"),
    ]
    for release, num_slots in ((shared, 8), (separate, 8)):
        sequence = release.manifest.sequence
        assert sequence is not None
        assert (sequence.feature, sequence.length, sequence.slots) == ("recent_pins", LENGTH, (3, 7))
        assert release.manifest.num_slots == num_slots
        assert "recent_pins=6" in repr(release)
        assert list(release.manifest.id_features) == ["user", "pin", "advertiser"]
        check_archive(release.pooling_path)


def test_an_id_of_candidates_and_sequence_is_asked_for_once(shared, make_transport, monkeypatch):
    with serving([{"releases": (shared.path,)}], make_transport("grpc")) as (ranker, client):
        asked = []
        start = ranker._requests._lookup.start
        monkeypatch.setattr(
            ranker._requests._lookup, "start", lambda version, ids, **rest: asked.append(ids) or start(version, ids, **rest)
        )
        ask(client, [11, 18, 11, 4])
        assert list(asked[0]) == ["user", "pin", "advertiser"]
        assert asked[0]["pin"].tolist() == sorted({*EXAMPLES.pin_id.tolist(), 11, 18, 4})


def test_a_ranker_says_what_sequence_a_version_reads(shared, make_transport):
    with serving([{"releases": (shared.path,)}], make_transport("grpc")) as (_, client):
        description = client.describe()
        (sequence,) = description.versions[0].sequences
        assert (sequence.feature, sequence.id_type, sequence.length) == ("recent_pins", "int64", LENGTH)
        assert description.max_sequence_ids == 1024
        answer = client.rank({"user": 1007}, CANDIDATES, dense=EXAMPLES.dense, sequences={"recent_pins": [13]})
        assert answer.phases["pooling_us"] > 0
        draw = rank_request(shared, client, num_candidates=9, exponent=1.0, seed=0)
        assert len(draw()().ctr) == 9


def test_what_is_no_sequence_is_refused_with_its_reason(shared, make_transport):
    with serving([{"releases": (shared.path,)}], make_transport("grpc"), max_sequence_ids=9) as (ranker, client):

        def rank(**fields):
            return client.rank({"user": 1007}, CANDIDATES, dense=EXAMPLES.dense, **fields)

        for sequences, reason in (
            (None, r"sequences.*missing \['recent_pins'\]"),
            ({"recent_pin": [13]}, r"unknown \['recent_pin'\]; missing"),
            ({"recent_pins": list(range(10))}, "has 10 ids: at most 9"),
            ({"recent_pins": ["13", "20"]}, "'recent_pins' are string"),
            ({"recent_pins": [float("nan")]}, "expected integers or strings"),
            ({"recent_pins": [[13]]}, r"shape \(1, 1\)"),
            ({"recent_pins": [13], "boards": [1]}, r"unknown \['boards'\]"),
        ):
            with pytest.raises(InvalidRequestError, match=reason):
                rank(sequences=sequences)
        # Neither a feature of the request nor of a candidate.
        with pytest.raises(InvalidRequestError, match=r"unknown \['recent_pins'\]"):
            client.rank({"user": 1007, "recent_pins": 13}, CANDIDATES, dense=EXAMPLES.dense)
        with grpc.insecure_channel(ranker.address) as channel:
            stub = ranker_pb2_grpc.RankerStub(channel)
            for packed, twice, reason in ((bytes(9), False, "has 9 bytes"), (bytes(8), True, "repeated ['recent_pins']")):
                message = ids_pb2.FeatureIds(feature="recent_pins", int64_ids=packed)
                request = _message()
                request.sequences.extend([message, message] if twice else [message])
                with pytest.raises(grpc.RpcError) as refused:
                    stub.Rank(request, timeout=5)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert reason in refused.value.details()
        assert len(rank(sequences={"recent_pins": [13] * 9}).ctr) == NUM
        assert (
            len(
                client.rank(
                    {"user": 1}, {"pin": [], "advertiser": []}, dense=np.zeros((0, 2)), sequences={"recent_pins": []}
                ).ctr
            )
            == 0
        )


def _message():
    return pack_rank({"user": 1007}, CANDIDATES, EXAMPLES.dense, version="", request_id="")


def test_a_version_that_reads_none_passes_a_sequence_by_and_counts_it(trained, shared, make_transport, tmp_path):
    """So that callers can send it before the first version that reads one is rolled out, and until the last one is gone."""
    plain = trained("none", "")
    old = publish(plain.path, tmp_path / "old")
    assert old.manifest.sequence is None
    assert {"sequence", "reads"}.isdisjoint(json.loads((old.path / "manifest.json").read_text()))
    lookups = [{"releases": (old.path, shared.path)}]
    recent = HISTORIES["some"]
    with serving(lookups, make_transport("framed-unix"), release=old.path) as (ranker, client):
        before = client.rank({"user": 1007}, CANDIDATES, dense=EXAMPLES.dense)
        assert_close(ask(client, recent)[:, 0], before.ctr)
        assert_close(before.ctr, plain.loaded.score(EXAMPLES, "int4")[:, 0])
        with pytest.raises(InvalidRequestError, match="has 1025 ids: at most 1024"):
            ask(client, [13] * 1025)
        ranker.load(shared.path)
        # Shadow traffic shows whether callers send it already.
        ranker.shadow(shared.version, 1.0)
        client.rank({"user": 1007}, CANDIDATES, dense=EXAMPLES.dense)
        ask(client, recent)
        ranker._shadow._worker.submit(int).result(10)  # behind both
        report = ranker.status().shadow
        assert (report.requests, report.failed) == (1, 1)
        ranker.choose(shared.version)
        assert_close(ask(client, recent), trained("transformer", "shared").offline(recent, "int4"))
        assert_close(ask(client, recent, version=old.version)[:, 0], before.ctr)
        ranker.choose(old.version)
        assert_close(ask(client, recent)[:, 0], before.ctr)


def test_scores_without_tables_are_without_the_sequence_too(shared):
    config = {"lookup_timeout_s": 0.2, "lookup_fallback": "without_tables"}
    with contextlib.ExitStack() as running:
        lookup = running.enter_context(LookupServer(LookupConfig(releases=(shared.path,))))
        ranker_config = RankerConfig(releases=(shared.path,), lookup=lookup.address, **config)
        ranker = running.enter_context(RankerServer(ranker_config))
        client = running.enter_context(RankerClient(ranker.address, timeout_s=10))
        lookup.stop(0)
        answer = client.rank({"user": 1007}, CANDIDATES, dense=EXAMPLES.dense, sequences={"recent_pins": [13]})
        assert answer.without_tables


def changed(release: Release, change) -> ReleaseManifest:
    document = release.manifest.model_dump(mode="json")
    change(document)
    return ReleaseManifest.model_validate(document)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda manifest: manifest.update(sequence=None), "read a sequence, and there is none"),
        (lambda manifest: manifest["sequence"].update(slots=[3, 3]), "each once"),
        (lambda manifest: manifest["sequence"].update(slots=[3, 8]), "expected others of 8"),
        (lambda manifest: manifest["sequence"].update(slots=[3]), "one of each a facet"),
        (lambda manifest: manifest["sequence"].update(feature="user"), "an id feature and a sequence"),
        (lambda manifest: manifest["sequence"].update(candidate_feature="user"), "expected all"),
        (lambda manifest: manifest["sequence"].update(length=0), "length"),
        (lambda manifest: manifest["tables"][1].update(reads="id"), "one of each a facet"),
    ],
)
def test_a_manifest_whose_sequence_does_not_fit_is_refused(shared, change, reason):
    assert changed(shared, lambda _: None) == shared.manifest
    with pytest.raises(ValidationError, match=reason):
        changed(shared, change)


def test_a_damaged_or_missing_pooling_is_refused_by_name(shared, tmp_path):
    shutil.copytree(shared.path, tmp_path / "copy")
    path = tmp_path / "copy/ranker/pooling.pt2"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    Release.open(tmp_path / "copy", half="lookup")
    with pytest.raises(ArtifactError, match=r"ranker/pooling\.pt2"):
        Release.open(tmp_path / "copy", half="ranker")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"ranker/pooling\.pt2"):
        Release.open(tmp_path / "copy", half="ranker")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fields: fields["sequence"].pop("request_pooling"), "train it again"),
        (lambda fields: fields["sequence"].update(request_pooling="upper.pt2"), "the pooling takes .*: expected three"),
        (lambda fields: fields["sequence"].update(length=LENGTH + 1), "pooling fails"),
        (lambda fields: fields["slots"].reverse(), "in this order|facets"),
    ],
)
def test_a_model_whose_sequence_does_not_fit_is_not_published(trained, change, reason, tmp_path):
    model = trained("transformer", "shared")
    with ArtifactWriter(tmp_path / "changed", kind="ranking-model") as writer:
        shutil.copytree(model.path, writer.directory, dirs_exist_ok=True)
        (writer.directory / "manifest.json").unlink()
        fields = {
            key: value
            for key, value in Artifact.open(model.path).manifest.items()
            if key not in {"files", "kind", "schema_version"}
        }
        change(fields)
        writer.manifest.update(fields)
    with pytest.raises(ArtifactError, match=reason):
        publish(tmp_path / "changed", tmp_path / "release")
    assert not (tmp_path / "release").exists()
