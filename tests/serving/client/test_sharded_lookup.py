"""A release split over lookup hosts: rows come together in the order of the ids, of one version, or not at all."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.serving import (
    BrokenAnswerError,
    DeadlineExceededError,
    InvalidRequestError,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    ReplicaPolicy,
    ServingError,
    UnavailableError,
    VersionNotLoadedError,
    connect_lookup,
    publish,
)
from multifacet.serving.load.workload import lookup_request
from multifacet.serving.release.sharding.shards import shard_of

SHARDS = 3
INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(scope="module", params=["framed-unix", "grpc-async"])
def transport(request, make_transport):
    return make_transport(request.param)


@pytest.fixture(scope="module")
def split(model, tmp_path_factory):
    return publish(model.path, tmp_path_factory.mktemp("split") / "release", shards=SHARDS)


@pytest.fixture(scope="module")
def other_split(model, tmp_path_factory):
    return publish(model.path, tmp_path_factory.mktemp("split") / "release", shards=SHARDS, precision="int8")


@pytest.fixture(scope="module")
def whole(release, transport):
    with LookupServer(transport.config(releases=(release.path,))) as server, transport.connect(server) as client:
        yield client


def serve(release, shard, transport):
    return LookupServer(transport.config(releases=(release.path,), shard=shard))


@pytest.fixture(scope="module")
def servers(split, transport):
    with contextlib.ExitStack() as running:
        yield [
            running.enter_context(LookupServer(transport.config(releases=(split.path,), shard=shard)))
            for shard in range(SHARDS)
        ]


@pytest.fixture(scope="module")
def client(servers, transport):
    with transport.make("|".join(transport.address(server) for server in servers), timeout_s=10) as connected:
        yield connected


@settings(max_examples=15, deadline=None)
@given(
    pins=st.lists(INT64 | st.integers(-600, 1700), max_size=30),
    brands=st.lists(st.text() | st.sampled_from([f"brand-{n}é" for n in range(12)]), max_size=10),
    users=st.lists(st.integers(990, 1050), max_size=2),
)
def test_shards_together_answer_what_one_server_answers(release, split, whole, client, pins, brands, users):
    ids = {"pin": np.array(pins, np.int64), "advertiser": brands, "user": users}
    expected = whole.lookup(release.version, ids)
    answer = client.lookup(split.version, ids)
    assert answer.version == split.version
    assert list(answer.tables) == list(expected.tables)
    for name, table in expected.tables.items():
        np.testing.assert_array_equal(answer.tables[name].rows, table.rows)
        assert answer.tables[name][1:] == table[1:]


def test_only_the_shards_that_have_ids_are_asked(split, servers, client):
    def requests():
        values = [server.metrics.registry.get_sample_value for server in servers]
        return np.array([count("multifacet_lookup_requests_total", {"code": "OK"}) or 0 for count in values])

    client.lookup(split.version, {"user": [1000]})
    time.sleep(0.02)  # a server counts an answer once it is gone
    before = requests()
    for _ in range(3):
        client.lookup(split.version, {"user": [1000]})
    time.sleep(0.02)
    expected = np.zeros(SHARDS)
    expected[shard_of([1000], SHARDS)[0]] = 3
    np.testing.assert_array_equal(requests() - before, expected)


def test_the_shards_together_describe_themselves_as_one(split, client):
    description = client.describe()
    assert [version.version for version in description.versions] == [split.version]
    assert client.wait_for_versions([split.version], timeout_s=5) is not None


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"board": [1]}, r"unknown \['board'\]"),
        ({"user": ["x"]}, "'user' are string"),
        ({"user": [1.5]}, "integers or strings"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(split, client, ids, message):
    with pytest.raises(InvalidRequestError, match=message):
        client.lookup(split.version, ids)


def test_a_version_that_no_shard_has_is_refused(split, client):
    with pytest.raises(VersionNotLoadedError, match="shard 0 of 3") as refused:
        client.lookup("0" * 64, {"user": [1]})
    assert refused.value.loaded == (split.version,)


PINS = {"pin": np.arange(-500, 1600, 7)}  # ids of every shard


def test_a_shard_that_is_down_fails_the_lookup_and_is_named(split, transport):
    with contextlib.ExitStack() as running:
        servers = [
            running.enter_context(LookupServer(transport.config(releases=(split.path,), shard=s))) for s in range(SHARDS)
        ]
        addresses = [transport.address(server) for server in servers]
        with transport.make("|".join(addresses), timeout_s=5) as client:
            client.lookup(split.version, PINS)
            servers[1].stop(0)
            for _ in range(2):
                with pytest.raises(UnavailableError, match=f"shard 1 of 3: lookup server {addresses[1]}"):
                    client.lookup(split.version, PINS)
            with pytest.raises(UnavailableError, match=r"was not ready within 0\.1 s: shard 1 of 3"):
                client.wait_for_versions([split.version], timeout_s=0.1)


def test_two_shards_of_different_versions_are_never_put_together(split, other_split, transport):
    with contextlib.ExitStack() as running:
        releases = [split, other_split, split]
        servers = [running.enter_context(serve(held, shard, transport)) for shard, held in enumerate(releases)]
        with transport.make("|".join(transport.address(server) for server in servers), timeout_s=5) as client:
            with pytest.raises(VersionNotLoadedError, match="shard 1 of 3") as refused:
                client.lookup(split.version, PINS)
            assert refused.value.loaded == (other_split.version,)
            assert not client.describe().versions


def test_servers_in_the_wrong_order_are_refused_instead_of_answering_with_unknown_ids(split, servers, transport):
    addresses = [transport.address(server) for server in servers]
    with transport.make("|".join((addresses[1], addresses[0], addresses[2])), timeout_s=5) as client:
        with pytest.raises(BrokenAnswerError, match=r"shard [01] of 3: .*holds shard [01] of 3"):
            client.lookup(split.version, PINS)
        with pytest.raises(BrokenAnswerError, match=r"shard [01] of 3: .*holds shard [01] of 3"):
            client.describe()
    with (
        transport.make("|".join(addresses[:2]), timeout_s=5) as client,
        pytest.raises(BrokenAnswerError, match=r"shard ([01]) of 2: .* holds shard \1 of 3"),
    ):
        client.lookup(split.version, PINS)


def test_a_ranker_does_not_take_one_shard_for_the_whole_release(split, servers, transport):
    config = RankerConfig(releases=(split.path,), lookup=transport.address(servers[1]), startup_timeout_s=5)
    with pytest.raises(ValueError, match=r"holds shard 1 of 3 of version .* list all of its shards"):
        RankerServer(config).__enter__()


def test_a_slow_shard_ends_the_lookup_at_its_deadline(split, servers, client, transport, monkeypatch):
    fetch, held = servers[2]._fetch, threading.Event()

    def wait(request, send):
        assert held.wait(10)
        return fetch(request, send)

    monkeypatch.setattr(servers[2], "_fetch", wait)
    if servers[2]._framed is not None:
        monkeypatch.setattr(servers[2]._framed, "_quick", lambda _frame, _descriptor: None)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="shard 2 of 3"):
        client.lookup(split.version, PINS, timeout_s=0.1)
    assert time.monotonic() - started < 5
    pending = client.start(split.version, PINS)
    threading.Timer(0.05, pending.cancel).start()
    with pytest.raises(ServingError, match="CANCELLED"):
        pending.result()
    held.set()
    assert client.lookup(split.version, PINS).version == split.version


def test_shards_of_two_replicas_each_survive_one_slow_and_one_that_is_away(
    release, split, servers, whole, transport, monkeypatch
):
    fetch, held = servers[0]._fetch, threading.Event()

    def wait(request, send):
        assert held.wait(10)
        return fetch(request, send)

    with contextlib.ExitStack() as running:
        more = [running.enter_context(serve(split, shard, transport)) for shard in range(SHARDS)]
        pairs = [[transport.address(pair[0]), transport.address(pair[1])] for pair in zip(servers, more, strict=True)]
        pairs[1][0] = "framed:127.0.0.1:9" if transport.name != "grpc" else "127.0.0.1:9"
        address = "|".join(",".join(pair) for pair in pairs)
        monkeypatch.setattr(servers[0], "_fetch", wait)
        if servers[0]._framed is not None:
            monkeypatch.setattr(servers[0]._framed, "_quick", lambda _frame, _descriptor: None)
        expected = whole.lookup(release.version, PINS).tables["pin_kge"].rows
        with transport.make(address, timeout_s=10, policy=ReplicaPolicy(hedge_after_s=0.05)) as client:
            held.set()  # the description, which the first lookup asks for, comes from any
            client.lookup(split.version, PINS)
            held.clear()
            for _ in range(4):
                started = time.monotonic()
                np.testing.assert_array_equal(client.lookup(split.version, PINS).tables["pin_kge"].rows, expected)
                assert time.monotonic() - started < 2
            for _ in range(60):  # by chance it may not have been asked
                if client.counters()["ejections"]:
                    break
                client.lookup(split.version, PINS)
            assert client.counters()["ejections"] >= 1
            held.set()


def test_a_ranker_scores_with_shards_as_with_one_server(model, split, servers, transport, request_of, all_ids):
    lookup = "|".join(transport.address(server) for server in servers)
    config = RankerConfig(releases=(split.path,), lookup=lookup, lookup_timeout_s=10, startup_timeout_s=10)
    with RankerServer(config) as ranker, RankerClient(ranker.address, timeout_s=10) as client:
        request_ids, candidate_ids, dense = request_of(50)
        answer = client.rank(request_ids, candidate_ids, dense=dense)
        offline = model.score(all_ids(request_ids, candidate_ids, 50), dense)
        np.testing.assert_allclose(np.stack([answer.ctr, answer.cvr], axis=1), offline, rtol=2e-6, atol=2e-7)
        assert answer.version == split.version


def test_the_load_generator_draws_known_ids_of_every_shard(split, servers, client):
    draw = lookup_request(split, client, num_ids=200, exponent=0.5, seed=0)
    for _ in range(3):
        answer = draw()()
        assert answer.version == split.version
        assert answer.tables["pin_kge"].num_unknown_ids == 0
        assert len(answer.tables["pin_kge"].rows) > 40


@pytest.mark.parametrize("joined", ["one", "replicas", "swapped", "one as the first of two"])
def test_a_shard_is_never_taken_for_another_part(joined, servers, split, transport):
    addresses = [transport.address(server) for server in servers]
    address = {
        "one": addresses[1],
        "replicas": ",".join(addresses),
        "swapped": "|".join((addresses[1], addresses[0], addresses[2])),
        "one as the first of two": "|".join(addresses[:2]),
    }[joined]
    with transport.make(address, timeout_s=10) as client:
        for _ in range(6):  # whichever replica is asked
            with pytest.raises(BrokenAnswerError, match=r"shard \d of 3.*List the servers"):
                client.lookup(split.version, {"pin": np.arange(50) * 7 - 500})


def test_a_whole_server_is_not_taken_for_a_shard(release, transport):
    with contextlib.ExitStack() as running:
        servers = [running.enter_context(LookupServer(transport.config(releases=(release.path,)))) for _ in range(2)]
        client = running.enter_context(transport.make("|".join(map(transport.address, servers)), timeout_s=10))
        with pytest.raises(BrokenAnswerError, match=r"not split.*List the servers"):
            client.lookup(release.version, {"pin": np.arange(50)})


def test_one_shard_can_be_asked_alone_by_who_says_so(servers, split):
    with connect_lookup(servers[1].address, timeout_s=10, shard=(1, SHARDS)) as client:
        pins = np.arange(50) * 7 - 500
        answer = client.lookup(split.version, {"pin": pins})
        assert answer.tables["pin_kge"].num_unknown_ids == np.count_nonzero(shard_of(pins, SHARDS) != 1)
    with pytest.raises(ValueError, match="lists 2"):
        connect_lookup("a:1|b:1", shard=(1, SHARDS))
