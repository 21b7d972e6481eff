"""Several lookup servers that hold the same: balanced, retried, hedged, left out and taken back."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from multifacet.serving import (
    DeadlineExceededError,
    InvalidRequestError,
    LookupConfig,
    LookupServer,
    OverloadedError,
    RankerClient,
    RankerConfig,
    RankerServer,
    ReplicaPolicy,
    ServerProcess,
    ServingError,
    UnavailableError,
    VersionNotLoadedError,
    connect_lookup,
)
from multifacet.serving.client.balancing import Replicas
from multifacet.serving.client.budget import RetryBudget
from multifacet.serving.client.framed import FramedLookupClient
from multifacet.serving.client.latency_window import LatencyWindow

USERS = {"user": [1000, 1003], "pin": np.array([-500, 7])}
NOWHERE = ("framed:127.0.0.1:9", "127.0.0.1:9")


@pytest.fixture(params=["grpc-threads", "framed-threads", "framed-asyncio"])
def way(request):
    return request.param


@pytest.fixture
def kind(way):
    return way.split("-")[0]


@pytest.fixture
def start(release, tmp_path, kind):
    """Starts lookup servers; each has the address of one transport."""
    with contextlib.ExitStack() as running:

        def run(path=release.path, **fields):
            framed = f"unix:{tmp_path / f'{len(list(tmp_path.iterdir()))}.sock'}"
            server = running.enter_context(LookupServer(LookupConfig(releases=(path,), framed_listen=framed, **fields)))
            return server, server.address if kind == "grpc" else server.framed_address

        yield run


def answered(server):
    return server.metrics.registry.get_sample_value("multifacet_lookup_requests_total", {"code": "OK"}) or 0


def wait_until(holds):
    """A server counts an answer once it is gone: its client may be first."""
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Held:
    """Lookups of a server wait in it until `let_go`; `entered` says that one does."""

    def __init__(self, server, monkeypatch):
        self.entered = threading.Event()
        self._let_go = threading.Event()
        self._fetch = server._fetch
        monkeypatch.setattr(server, "_fetch", self._wait)
        monkeypatch.setattr(server._framed, "_quick", lambda _frame, _descriptor: None)

    def let_go(self):
        self._let_go.set()

    def _wait(self, request, send):
        self.entered.set()
        assert self._let_go.wait(20)
        return self._fetch(request, send)


@pytest.fixture
def connect(way, make_transport):
    """Connects to a list of servers."""
    make = make_transport("grpc-async").make if way.endswith("asyncio") else connect_lookup

    def open_client(addresses, policy=None, timeout_s=10):
        return make(",".join(addresses), timeout_s=timeout_s, policy=policy)

    return open_client


def group_of(client):
    """The replicated client itself, within whatever asks it."""
    asynchronous = getattr(client, "_client", None)
    return client if asynchronous is None else asynchronous._connection


def test_requests_are_spread_and_both_servers_answer_the_same(release, start, connect):
    servers, addresses = zip(*(start() for _ in range(2)), strict=True)
    with connect(addresses) as client, connect_lookup(addresses[0], timeout_s=10) as one:
        expected = one.lookup(release.version, USERS).tables
        for _ in range(40):
            tables = client.lookup(release.version, USERS).tables
            assert {name: rows.rows.tolist() for name, rows in tables.items()} == {
                name: rows.rows.tolist() for name, rows in expected.items()
            }
    assert min(answered(server) for server in servers) >= 8  # 20 expected of 40 by a fair coin: 3.8 standard deviations


def test_the_one_of_two_with_fewer_requests_in_flight_is_chosen():
    with contextlib.ExitStack() as closing:
        connections = [closing.enter_context(FramedLookupClient(f"127.0.0.1:{port}")) for port in range(1, 5)]
        replicas = Replicas(connections, ReplicaPolicy(), seed=0)
        for _ in range(400):
            assert replicas.take("v") is not None
        loads = [replica.num_in_flight for replica in replicas.all]
        assert sum(loads) == 400
        assert max(loads) - min(loads) <= 4  # at random it would be about 30
        replicas.close()


def test_a_server_that_is_away_is_left_out_and_no_request_fails(release, start, kind, connect):
    server, address = start()
    with connect([NOWHERE[kind == "grpc"], address], ReplicaPolicy(probe_after_s=5)) as client:
        for _ in range(30):
            assert client.lookup(release.version, USERS).version == release.version
        counters = client.counters()
    wait_until(lambda: answered(server) == 30)
    assert counters["ejections"] == 1
    assert counters["retries"] <= 1  # whoever finds out


def test_a_server_that_comes_back_is_asked_again(release, start, kind, tmp_path, connect):
    _, address = start()
    listen, framed = f"unix:{tmp_path}/late.sock", f"unix:{tmp_path}/frames.sock"
    config = LookupConfig(releases=(release.path,), listen=listen, framed_listen=framed)
    late = listen if kind == "grpc" else f"framed:{framed}"
    with connect([late, address], ReplicaPolicy(probe_after_s=0.02, probe_at_most_s=0.1)) as client:
        while not client.counters()["ejections"]:
            client.lookup(release.version, USERS)
        with LookupServer(config) as second:
            deadline = time.monotonic() + 10
            while not answered(second):
                client.lookup(release.version, USERS)
                assert time.monotonic() < deadline
        assert client.counters()["readmissions"] == 1


@pytest.mark.parametrize("way", ["framed-threads", "framed-asyncio"], indirect=True)
def test_a_server_killed_under_load_fails_no_request(release, tmp_path, connect):
    framed = [f"unix:{tmp_path}/frames-{name}.sock" for name in "ab"]
    configs = [LookupConfig(releases=(release.path,), framed_listen=path, verify=False) for path in framed]
    with (
        ServerProcess("lookup", configs[0], tmp_path) as victim,
        LookupServer(configs[1]) as stays,
        connect([f"framed:{path}" for path in framed]) as frames,
        connect([victim.address, stays.address], ReplicaPolicy(hedge_after_s=0.2)) as hedged,
    ):
        stop, killed = threading.Event(), threading.Event()

        def ask(client):
            num = after = 0
            while not stop.is_set():
                assert client.lookup(release.version, USERS).version == release.version
                num += 1
                after += killed.is_set()
            return num, after

        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask, client) for client in (frames, hedged) * 3]
            try:
                time.sleep(0.3)
                victim.kill()
                killed.set()
                time.sleep(0.4)
            finally:
                stop.set()
            counts = [future.result() for future in asking]
        assert all(after > 5 and num > after for num, after in counts)
        for client in (frames, hedged):
            assert client.counters()["ejections"] == 1
            assert all(not replica.num_in_flight for replica in group_of(client).replicas.all)


def test_the_hedge_wins_over_a_slow_server_whose_request_is_given_up(release, start, monkeypatch, connect):
    (slow, slow_address), (fast, fast_address) = start(), start()
    held = Held(slow, monkeypatch)
    with connect([slow_address, fast_address], ReplicaPolicy(hedge_after_s=0.03, eject_after=10**6)) as client:
        took = []
        for _ in range(12):
            started = time.monotonic()
            pending = client.start(release.version, USERS)
            assert pending.result().version == release.version
            took.append(time.monotonic() - started)
            assert all(
                not replica.num_in_flight for replica in group_of(client).replicas.all
            )  # the loser was given up, and counted
        counters = client.counters()
        held.let_go()
    assert max(took) < 1
    hedged = [seconds for seconds in took if seconds >= 0.03]
    assert counters["hedges"] == counters["hedges_won"] == len(hedged)
    wait_until(lambda: answered(fast) == len(took))


def test_hedges_stop_when_the_budget_is_spent(release, start, monkeypatch, connect):
    (slow, slow_address), (_, fast_address) = start(), start()
    held = Held(slow, monkeypatch)
    policy = ReplicaPolicy(hedge_after_s=0.05, retry_ratio=0.0, retry_reserve=1, eject_after=10**6)
    with connect([slow_address, fast_address], policy, timeout_s=0.3) as client:
        late = 0
        while not late:  # half of the requests go to the slow one: the first of them is hedged, the second is too late
            try:
                client.lookup(release.version, USERS)
            except DeadlineExceededError:
                late += 1
        counters = client.counters()
        held.let_go()
    assert counters["hedges"] == 1
    assert counters["retries_refused"] >= 1


def test_a_slow_server_that_always_loses_is_left_out(release, start, monkeypatch, connect):
    (slow, slow_address), (_, fast_address) = start(), start()
    held = Held(slow, monkeypatch)
    policy = ReplicaPolicy(hedge_after_s=0.05, eject_after=2, probe_after_s=5)
    with connect([slow_address, fast_address], policy) as client:
        for _ in range(40):
            client.lookup(release.version, USERS)
        out = [replica.connection.address for replica in group_of(client).replicas.all if replica.is_out]
        assert client.counters()["hedges_won"] >= 2
        held.let_go()
    assert out == [slow_address]


def test_the_hedge_waits_for_the_quantile_of_what_was_measured(release, start, connect):
    addresses = [start()[1] for _ in range(2)]
    with connect(addresses, ReplicaPolicy(hedge_quantile=0.9)) as client:
        assert group_of(client).hedge_after_s() == float("inf")
        for _ in range(64):
            client.lookup(release.version, USERS)
        assert 0 < group_of(client).hedge_after_s() < 1
        assert client.counters()["hedges"] <= 32


def test_a_version_that_one_server_lacks_is_asked_of_the_other_and_never_replaced(release, other_release, start, connect):
    (_, with_it), (_, without) = start(), start(other_release.path)
    with connect([without, with_it]) as client:
        for _ in range(20):
            assert client.lookup(release.version, USERS).version == release.version
            assert client.lookup(other_release.version, USERS).version == other_release.version
        assert client.counters()["retries"] <= 4  # it is remembered who lacks what
        with pytest.raises(VersionNotLoadedError, match="0000 is not loaded"):
            client.lookup("0" * 64, USERS)
        assert not client.describe().versions  # none that both have


def test_what_is_wrong_is_refused_once(release, start, connect):
    addresses = [start()[1] for _ in range(2)]
    with connect(addresses) as client:
        with pytest.raises(InvalidRequestError, match="unknown"):
            client.lookup(release.version, {"board": [1]})
        assert client.counters()["retries"] == 0


def test_nobody_there_is_said_after_each_was_tried_once(release, kind, connect):
    addresses = [f"framed:127.0.0.1:{port}" if kind == "framed" else f"127.0.0.1:{port}" for port in (9, 13, 17)]
    with connect(addresses, timeout_s=5) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="lookup server"):
            client.lookup(release.version, USERS)
        assert time.monotonic() - started < 2
        assert client.counters()["retries"] == 2
        with pytest.raises(UnavailableError, match=r"was not ready within 0\.1 s"):
            client.wait_for_versions([release.version], timeout_s=0.1)


@pytest.mark.parametrize("hedge_after_s", [None, 0.02])
def test_a_deadline_is_kept_when_every_server_is_slow(release, start, monkeypatch, hedge_after_s, connect):
    servers, addresses = zip(*(start() for _ in range(2)), strict=True)
    held = [Held(server, monkeypatch) for server in servers]
    with connect(addresses, ReplicaPolicy(hedge_after_s=hedge_after_s)) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.lookup(release.version, USERS, timeout_s=0.1)
        assert 0.09 < time.monotonic() - started < 5
        assert all(not replica.num_in_flight for replica in group_of(client).replicas.all)
        for event in held:
            event.let_go()


@pytest.mark.parametrize("hedge_after_s", [None, 0.01, 5])
def test_a_lookup_that_is_given_up_from_another_thread_ends_at_once(release, start, monkeypatch, hedge_after_s, connect):
    servers, addresses = zip(*(start() for _ in range(2)), strict=True)
    held = [Held(server, monkeypatch) for server in servers]
    with connect(addresses, ReplicaPolicy(hedge_after_s=hedge_after_s)) as client:
        pending = client.start(release.version, USERS)
        timer = threading.Timer(0.1, pending.cancel)
        timer.start()
        started = time.monotonic()
        with pytest.raises(ServingError, match="CANCELLED"):
            pending.result()
        assert time.monotonic() - started < 2
        timer.join()
        wait_until(lambda: all(not replica.num_in_flight for replica in group_of(client).replicas.all))
        for event in held:
            event.let_go()
        assert client.lookup(release.version, USERS).version == release.version


@pytest.mark.parametrize("way", ["grpc-threads"], indirect=True)  # frames queue by connection; see test_framed_server
def test_a_server_with_too_much_to_do_sends_its_callers_to_the_other(release, start, kind, monkeypatch, connect):
    (busy, busy_address), (_, free_address) = start(workers=1, max_queued_requests=0), start()
    held = Held(busy, monkeypatch)
    with connect_lookup(busy_address, timeout_s=10) as one:
        occupied = one.start(release.version, USERS)
        assert held.entered.wait(5)
        with pytest.raises(OverloadedError):
            one.lookup(release.version, USERS)
        with connect([busy_address, free_address]) as client:
            for _ in range(10):
                assert client.lookup(release.version, USERS).version == release.version
            assert client.counters()["ejections"] == 0
        held.let_go()
        occupied.result()


def test_a_budget_lets_a_share_be_asked_twice_whatever_the_load():
    budget = RetryBudget(ratio=0.1, reserve=5)
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert 100 <= spent <= 105


def test_the_running_quantile_follows_the_last_latencies():
    window = LatencyWindow(0.95)
    generator = np.random.default_rng(0)
    for scale in (1.0, 10.0):
        latencies = generator.exponential(scale, 512)
        for latency in latencies:
            window.record(latency)
        assert window.value_s == np.quantile(latencies, 0.95, method="lower")


def test_a_ranker_counts_what_its_lookups_went_through(release, start, kind, request_of):
    _, address = start()
    lookup = f"{NOWHERE[kind == 'grpc']},{address}"
    config = RankerConfig(releases=(release.path,), lookup=lookup, lookup_timeout_s=10, startup_timeout_s=10)
    with RankerServer(config) as ranker, RankerClient(ranker.address, timeout_s=10) as client:
        request_ids, candidate_ids, dense = request_of(5)
        while not ranker.metrics.registry.get_sample_value("multifacet_ranker_events_total", {"event": "lookup_ejections"}):
            assert client.rank(request_ids, candidate_ids, dense=dense).version == release.version
