"""Scores over the wire are those of the model, and of one version."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from multifacet.serving import (
    InvalidRequestError,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    ServingError,
    UnavailableError,
    VersionNotLoadedError,
)
from multifacet.serving.protocol import lookup_pb2_grpc


@pytest.mark.parametrize("num_candidates", [1, 2, 50, 333])
def test_scores_over_the_wire_equal_offline_decoding_and_scoring(
    model, release, ranker_client, request_of, all_ids, num_candidates
):
    request_ids, candidate_ids, dense = request_of(num_candidates, seed=num_candidates)
    answer = ranker_client.rank(request_ids, candidate_ids, dense=dense, request_id="r-1")
    offline = model.score(all_ids(request_ids, candidate_ids, num_candidates), dense)
    np.testing.assert_allclose(np.stack([answer.ctr, answer.cvr], axis=1), offline, rtol=2e-6, atol=2e-7)
    assert (answer.version, answer.request_id) == (release.version, "r-1")
    assert np.ptp(offline) > 0.1 or num_candidates < 3  # scores that differ, or the comparison says nothing


def test_unknown_ids_are_scored_with_the_out_of_vocabulary_row_and_counted(model, ranker_client, request_of, all_ids):
    request_ids, candidate_ids, dense = request_of(6)
    request_ids = {"user": -1}
    candidate_ids = {"pin": [1, 2, 1, 2, 1, 2], "advertiser": ["nobody", "nobody\0", *candidate_ids["advertiser"][2:]]}
    answer = ranker_client.rank(request_ids, candidate_ids, dense=dense)
    offline = model.score(all_ids(request_ids, candidate_ids, 6), dense)
    np.testing.assert_allclose(answer.ctr, offline[:, 0], rtol=2e-6, atol=2e-7)
    # user in two tables, two pins in the exact one (a hashed map knows every id), two advertisers in one
    assert answer.num_unknown_ids == 2 * 1 + 2 + 2


def test_no_candidates_are_answered_with_no_scores(release, ranker_client):
    answer = ranker_client.rank({"user": 1000}, {"pin": [], "advertiser": []}, dense=np.zeros((0, 3)))
    assert (len(answer.ctr), len(answer.cvr), answer.version) == (0, 0, release.version)


def test_no_candidates_of_wrong_features_are_still_refused(ranker_client):
    with pytest.raises(InvalidRequestError, match="unknown \\['board'\\]"):
        ranker_client.rank({"user": 1000}, {"board": []}, dense=np.zeros((0, 3)))


def test_a_feature_of_the_request_may_come_a_candidate_instead(ranker_client, request_of):
    request_ids, candidate_ids, dense = request_of(5)
    answer = ranker_client.rank(request_ids, candidate_ids, dense=dense)
    spread = ranker_client.rank({}, {"user": [1007] * 5, **candidate_ids}, dense=dense)
    np.testing.assert_array_equal(answer.ctr, spread.ctr)


def test_the_wanted_version_is_answered_or_refused_never_replaced(release, ranker_client, request_of):
    request_ids, candidate_ids, dense = request_of(3)
    answer = ranker_client.rank(request_ids, candidate_ids, dense=dense, version=release.version)
    assert answer.version == release.version
    with pytest.raises(VersionNotLoadedError, match=release.version) as refused:
        ranker_client.rank(request_ids, candidate_ids, dense=dense, version="f" * 64)
    assert refused.value.loaded == (release.version,)


def test_phases_say_where_the_time_went(ranker_client, request_of):
    request_ids, candidate_ids, dense = request_of(50)
    phases = ranker_client.rank(request_ids, candidate_ids, dense=dense).phases
    parts = ("prepare_us", "assemble_us", "lookup_wait_us", "decode_us", "upper_us")
    assert 0 < sum(phases[part] for part in parts) <= phases["total_us"]
    assert 0 < phases["lookup_server_us"] <= phases["lookup_us"] <= phases["total_us"]


def test_describe_names_what_a_request_needs(release, ranker_client):
    description = ranker_client.describe()
    (version,) = description.versions
    assert version.version == description.current_version == release.version
    assert {feature.feature: feature.id_type for feature in version.id_features} == {
        "user": "int64",
        "pin": "int64",
        "advertiser": "string",
    }
    assert tuple(version.dense_features) == release.manifest.dense_features


def test_a_model_that_scores_nan_is_an_error_not_a_score(model, ranker_client, request_of, all_ids):
    request_ids, candidate_ids, _ = request_of(8)
    # The largest finite numbers in all combinations of signs: some hidden units become infinite, and cancel.
    dense = np.array(list(itertools.product((-3.4e38, 3.4e38), repeat=3)), dtype=np.float32)
    broken = np.isnan(model.score(all_ids(request_ids, candidate_ids, 8), dense)).any(axis=1)
    assert broken.any()
    with pytest.raises(ServingError, match=f"candidate {broken.argmax()} as"):
        ranker_client.rank(request_ids, candidate_ids, dense=dense)


def test_a_second_version_is_chosen_only_once_the_lookup_server_has_it(release, other_release, request_of):
    request_ids, candidate_ids, dense = request_of(3)
    with LookupServer(LookupConfig(releases=(release.path,))) as lookup:
        config = RankerConfig(releases=(release.path,), lookup=lookup.address, lookup_timeout_s=10, startup_timeout_s=10)
        with RankerServer(config) as ranker, RankerClient(ranker.address, timeout_s=10) as client:
            ranker.load(other_release.path)
            with pytest.raises(VersionNotLoadedError, match="not loaded by lookup server"):
                ranker.choose(other_release.version)
            assert client.rank(request_ids, candidate_ids, dense=dense).version == release.version
            with pytest.raises(VersionNotLoadedError) as refused:  # the ranker has it, the lookup server has not
                client.rank(request_ids, candidate_ids, dense=dense, version=other_release.version)
            assert refused.value.loaded == (release.version,)
            lookup.load(other_release.path)
            ranker.choose(other_release.version)
            assert client.rank(request_ids, candidate_ids, dense=dense).version == other_release.version
            with pytest.raises(ValueError, match="choose another version"):
                ranker.retire(other_release.version)
            ranker.retire(release.version)
            assert ranker.versions == (other_release.version,)


def test_a_ranker_says_what_it_waits_for(release, other_release):
    config = RankerConfig(releases=(release.path,), lookup="127.0.0.1:9", startup_timeout_s=0.3)
    with pytest.raises(UnavailableError, match=r"lookup server 127.0.0.1:9 was not ready within 0.3 s"):
        RankerServer(config).__enter__()
    with LookupServer(LookupConfig(releases=(other_release.path,))) as lookup:
        config = config.model_copy(update={"lookup": lookup.address})
        with pytest.raises(UnavailableError, match=f"not loaded {release.version}; loaded: {other_release.version}"):
            RankerServer(config).__enter__()


def test_a_ranker_refuses_limits_that_its_lookup_server_does_not_keep(release):
    with LookupServer(LookupConfig(releases=(release.path,), max_ids_per_request=100)) as lookup:
        config = RankerConfig(releases=(release.path,), lookup=lookup.address, lookup_timeout_s=10, max_candidates=50)
        with pytest.raises(ValueError, match="lookups of up to 150 ids"):
            RankerServer(config).__enter__()


class _Impostor(lookup_pb2_grpc.LookupServicer):
    """A lookup server that answers what it should, changed."""

    def __init__(self, upstream, change):
        self.upstream = lookup_pb2_grpc.LookupStub(upstream)
        self.change = change

    def Describe(self, request, context):  # noqa: ARG002, N802
        return self.upstream.Describe(request)

    def Lookup(self, request, context):  # noqa: ARG002, N802
        answer = self.upstream.Lookup(request)
        self.change(answer)
        return answer


def _another_version(answer):
    answer.version = "f" * 64


def _a_row_less(answer):
    answer.tables[2].rows = answer.tables[2].rows[: -answer.tables[2].row_bytes]


def _half_a_row(answer):
    answer.tables[2].rows = answer.tables[2].rows[:-1]


def _a_table_less(answer):
    del answer.tables[0]


def _another_precision(answer):
    answer.tables[1].precision = "int8"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (_another_version, VersionNotLoadedError, "rows of version ffff"),
        (_a_row_less, ServingError, "rows of table 'pin_kge'"),
        (_half_a_row, ServingError, "'pin_kge' came with"),
        (_a_table_less, ServingError, "no rows of table 'user_kge'"),
        (_another_precision, ServingError, "int8"),
    ],
)
def test_rows_that_are_not_the_release_s_are_never_scored(release, lookup_server, request_of, change, kind, message):
    with grpc.insecure_channel(lookup_server.address) as upstream:
        impostor = grpc.server(ThreadPoolExecutor(2))
        lookup_pb2_grpc.add_LookupServicer_to_server(_Impostor(upstream, change), impostor)
        port = impostor.add_insecure_port("127.0.0.1:0")
        impostor.start()
        try:
            config = RankerConfig(releases=(release.path,), lookup=f"127.0.0.1:{port}", lookup_timeout_s=5)
            with RankerServer(config) as ranker, RankerClient(ranker.address, timeout_s=10) as client:
                request_ids, candidate_ids, dense = request_of(4)
                with pytest.raises(kind, match=message):
                    client.rank(request_ids, candidate_ids, dense=dense)
        finally:
            impostor.stop(None).wait()
