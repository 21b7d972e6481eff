"""A client without a token, or with one, stops no server: what costs memory, a worker or a connection is bounded."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from benchmarks.harness.memory import own_bytes
from multifacet.kernels.memory import give_freed_memory_back
from multifacet.serving import (
    FramedLookupClient,
    LookupClient,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    UnauthenticatedError,
)
from multifacet.serving.framed.connection import Connection
from multifacet.serving.log_limit import AtMost
from multifacet.serving.protocol import frames_pb2
from multifacet.serving.wire.frames import HEADER_BYTES, Header, Kind

TOKEN = "ours" * 10
LOOKUP, RANK = "/multifacet.serving.v1.Lookup/Lookup", "/multifacet.serving.v1.Ranker/Rank"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1{}.ServerReflection/ServerReflectionInfo"
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


@pytest.fixture(params=[True, False], ids=["with a token", "without"])
def server(release, token, tmp_path, request):
    fields = {"token_file": token} if request.param else {}
    config = LookupConfig(
        releases=(release.path,),
        listen="127.0.0.1:0",
        framed_listen=f"unix:{tmp_path / 'f'}",
        message_timeout_s=1.0,
        stall_timeout_s=1.0,
        max_connections=20,
        **fields,
    )
    with LookupServer(config) as server:
        yield server


@contextlib.contextmanager
def half_calls(address, method, num, *, metadata=None):
    """Calls of which the headers were sent, and nothing else."""
    over = threading.Event()

    def nothing():
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        call = channel.stream_unary(method, request_serializer=bytes, response_deserializer=bytes)
        calls = [call.future(nothing(), metadata=metadata) for _ in range(num)]
        try:
            yield calls
        finally:
            over.set()
            for held in calls:
                held.cancel()


def is_healthy(address):
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3).status == 1


@pytest.mark.parametrize("method", [LOOKUP, HEALTH + "Check", HEALTH + "Watch", "/multifacet.serving.v1.Lookup/Describe"])
@pytest.mark.parametrize("num", [4, 300])
def test_calls_that_send_headers_only_hold_no_worker(server, release, token, method, num):
    with half_calls(server.address, method, num, metadata=AUTHORIZED):
        time.sleep(0.3)
        with LookupClient(server.address, token_file=token, timeout_s=5) as client:
            began = time.monotonic()
            for _ in range(20):
                client.lookup(release.version, {"pin": [11]})
            assert time.monotonic() - began < 4
        assert is_healthy(server.address)


def test_half_calls_of_a_ranker_hold_no_worker(release, server, token, request_of):
    config = RankerConfig(
        releases=(release.path,),
        lookup=server.framed_address,
        lookup_token_file=token,
        lookup_timeout_s=5,
        listen="127.0.0.1:0",
        token_file=token,
    )
    request_ids, candidate_ids, dense = request_of(5)
    with (
        RankerServer(config) as ranker,
        half_calls(ranker.address, RANK, 50),
        half_calls(ranker.address, RANK, 50, metadata=AUTHORIZED),
        RankerClient(ranker.address, token_file=token, timeout_s=5) as client,
    ):
        time.sleep(0.3)
        assert len(client.rank(request_ids, candidate_ids, dense=dense).ctr) == 5
        assert is_healthy(ranker.address)


def test_a_half_call_is_given_up_in_time_and_one_without_the_token_at_once(server):
    has_token = server.config.token_file is not None
    with half_calls(server.address, LOOKUP, 1) as (call,):
        began = time.monotonic()
        code = call.code()
        elapsed_s = time.monotonic() - began
    assert code is (grpc.StatusCode.UNAUTHENTICATED if has_token else grpc.StatusCode.CANCELLED)
    assert elapsed_s < (0.9 if has_token else 5)


def test_a_message_without_its_token_is_not_read(release, token):
    config = LookupConfig(releases=(release.path,), listen="127.0.0.1:0", token_file=token)
    with LookupServer(config) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(LOOKUP, request_serializer=bytes, response_deserializer=bytes)
        large = bytes(4_000_000)

        def send(num):
            for future in [call.future(large) for _ in range(num)]:
                assert future.code() is grpc.StatusCode.UNAUTHENTICATED

        send(20)
        before = own_bytes(os.getpid())
        for _ in range(4):
            send(50)
        # Client and server together. The client may still hold the last 50 messages, 200 MB; 800 MB were sent. What is
        # held for good does not go; what is freed may take a moment, and stay with the allocator.
        deadline = time.monotonic() + 10
        while own_bytes(os.getpid()) - before >= 300e6 and time.monotonic() < deadline:
            time.sleep(0.1)
            give_freed_memory_back()
        assert own_bytes(os.getpid()) - before < 300e6


@pytest.mark.parametrize("version", ["", "alpha"])
def test_reflection_asks_for_the_token_and_idle_streams_end(server, release, token, version):
    over = threading.Event()
    has_token = server.config.token_file is not None

    def idle():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        over.wait(20)

    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(
            REFLECTION.format(version),
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        if has_token:
            with pytest.raises(grpc.RpcError) as refused:
                next(call(idle()))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        streams = [call(idle(), metadata=AUTHORIZED) for _ in range(4)]
        for stream in streams:
            assert any(entry.name.endswith("Lookup") for entry in next(stream).list_services_response.service)
        with pytest.raises(grpc.RpcError) as refused:
            next(call(idle(), metadata=AUTHORIZED))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with LookupClient(server.address, token_file=token, timeout_s=5) as client:
            client.lookup(release.version, {"pin": [11]})
        began = time.monotonic()
        for stream in streams:
            with pytest.raises(grpc.RpcError):
                next(stream)
        assert time.monotonic() - began < 5
        over.set()


def test_so_many_health_watches_and_no_more(server):
    with grpc.insecure_channel(server.address) as channel:
        watches = [health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()) for _ in range(70)]
        codes = []
        for watch in watches:
            try:
                assert next(watch).status == 1
            except grpc.RpcError as error:
                codes.append(error.code())
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 6
        assert is_healthy(server.address)
        for watch in watches:
            watch.cancel()


# --- frames -----------------------------------------------------------------------------------------------------------------


def connect(server):
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(server.framed_address.removeprefix("framed:unix:"))
    return stream


def test_silent_connections_make_room(server, release, token):
    silent = [connect(server) for _ in range(20)]
    time.sleep(0.4)
    if server.config.token_file is None:
        for stream in silent:  # connections that were used, and are idle
            stream.sendall(Header(Kind.DESCRIBE, 0, 0, 1).pack())
            assert stream.recv(1 << 16)
        time.sleep(5.2)
    with FramedLookupClient(server.framed_address, token_file=token, timeout_s=5) as client:
        client.lookup(release.version, {"pin": [11]})
    if server.config.token_file is not None:
        deadline = time.monotonic() + 5
        while server._framed.num_connections > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server._framed.num_connections <= 1  # none of them brought its token in time
    for stream in silent:
        stream.close()


def test_a_header_reserves_no_memory():
    ours, theirs = socket.socketpair()
    scratch = memoryview(bytearray(1 << 16))
    connection = Connection(ours, 4 << 20)
    connection.authenticated = True
    content = np.random.default_rng(0).bytes(3_000_000)
    frame = Header(Kind.LOOKUP, len(content), 0, 1).pack() + content
    theirs.sendall(frame[: HEADER_BYTES + 1])
    assert connection.receive(scratch) is None
    assert connection.reserved_bytes <= 1 << 14
    sender = threading.Thread(target=theirs.sendall, args=(frame[HEADER_BYTES + 1 :],))
    sender.start()
    request, received = None, HEADER_BYTES + 1
    while request is None:
        request = connection.receive(scratch)
        received = max(received, connection._filled)
        assert connection.reserved_bytes <= max(1 << 15, 2 * received)
    sender.join()
    assert bytes(request.frame) == frame
    ours.close()
    theirs.close()


def test_a_stranger_s_long_message_is_refused_unread(server):
    if server.config.token_file is None:
        pytest.skip("there are no strangers without a token")
    with connect(server) as stream:
        stream.sendall(Header(Kind.LOOKUP, 1_000_000, 0, 1).pack() + b"x")
        header = Header.unpack(stream.recv(HEADER_BYTES, socket.MSG_WAITALL), requests=False)
        refusal = frames_pb2.Refusal.FromString(stream.recv(header.message_bytes, socket.MSG_WAITALL))
    assert refusal.code == "UNAUTHENTICATED"
    with FramedLookupClient(server.framed_address, timeout_s=5) as client, pytest.raises(UnauthenticatedError):
        client.lookup("v", {"pin": np.arange(9000)})


# --- out of descriptors, log lines ------------------------------------------------------------------------------------------

_SERVER = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
from multifacet.serving import LookupConfig, serve_lookup
import logging
import os
logging.basicConfig(level=logging.INFO)
serve_lookup(LookupConfig(**json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("transport", ["grpc", "framed"])
def test_out_of_descriptors_few_lines_are_logged_and_little_is_computed(release, tmp_path, transport):
    import json  # noqa: PLC0415

    ready = tmp_path / "ready"
    fields = {"releases": [str(release.path)], "ready_file": str(ready), "framed_listen": f"unix:{tmp_path / 'f'}"}
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, json.dumps(fields)], stderr=stream, cwd=Path(__file__).parents[3]
        )
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        address = json.loads(ready.read_text())["address"]
        host, _, port = address.rpartition(":")
        held = []
        for _ in range(120):
            stream = socket.socket(socket.AF_UNIX if transport == "framed" else socket.AF_INET)
            stream.settimeout(2)
            with contextlib.suppress(OSError):
                stream.connect(str(tmp_path / "f") if transport == "framed" else (host, int(port)))
            held.append(stream)
        time.sleep(0.5)
        before, size = _cpu_s(process.pid), log.stat().st_size
        time.sleep(3)
        assert _cpu_s(process.pid) - before < 1.0
        assert log.stat().st_size - size < 20_000
        for stream in held:
            stream.close()
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(Exception), LookupClient(address, timeout_s=2) as client:
                client.lookup(release.version, {"pin": [11]})
                break
            assert time.monotonic() < deadline, log.read_text()[-2000:]
    finally:
        process.terminate()
        assert process.wait(15) == 0


def _cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / resource.getpagesize() * 4096 / 100


def test_a_place_writes_so_many_lines_and_then_says_how_many_it_left_out():
    limit = AtMost(lines=3, every_s=0.2)
    log = logging.getLogger("test_log_limit")
    record = log.makeRecord(log.name, logging.INFO, "there", 7, "refused %d", (1,), None)
    other = log.makeRecord(log.name, logging.INFO, "there", 8, "other", (), None)
    assert [limit.filter(record) for _ in range(5)] == [True, True, True, False, False]
    assert limit.filter(other)
    time.sleep(0.25)
    assert limit.filter(record)
    assert record.getMessage() == "refused 1 (2 lines like this one were left out)"


def test_health_watches_that_come_and_go_do_not_stop_a_server(server, release, token):
    """grpcio's own health service deadlocks here."""
    over = threading.Event()

    def come_and_go():
        with grpc.insecure_channel(server.address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            held = []
            while not over.is_set():
                held.append(stub.Watch(health_pb2.HealthCheckRequest()))
                if len(held) > 40:
                    held.pop(0).cancel()

    strangers = [threading.Thread(target=come_and_go) for _ in range(3)]
    for stranger in strangers:
        stranger.start()
    try:
        with LookupClient(server.address, token_file=token, timeout_s=5) as client:
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                client.lookup(release.version, {"pin": [11]})
                server._listener.set_health(serving=True)
    finally:
        over.set()
        for stranger in strangers:
            stranger.join()
    assert is_healthy(server.address)
