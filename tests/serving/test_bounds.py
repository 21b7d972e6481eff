"""What one request or one client can cost is bounded before work is done for it."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import time
from pathlib import Path

import grpc
import pytest

from multifacet.serving import FramedLookupClient, InvalidRequestError, LookupConfig, ServingError
from multifacet.serving.errors import brief
from multifacet.serving.framed.server import FramedServer
from multifacet.serving.protocol import ids_pb2, lookup_pb2, ranker_pb2
from multifacet.serving.server.metrics import ServerMetrics
from multifacet.serving.wire.packing import check_features

NAMES = {
    "many": [f"{number:06d}" for number in range(40_000)],
    "one again and again": ["pin"] * 40_000,
    "two by turns": ["pin", "user"] * 20_000,
    "long": ["x" * 500_000],
    "long and not ASCII": ["é" * 250_000],
    "percents": ["%" * 400_000],
}


def _refused(address, method, message):
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/multifacet.serving.v1.{method}", request_serializer=bytes, response_deserializer=bytes)
        request = message.SerializeToString()
        started = time.process_time()  # client and server are this process: what it costs, however busy the machine is
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=30)
    assert time.process_time() - started < 1
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "user" in refused.value.details()  # what is expected
    assert len(refused.value.details()) < 4100


@pytest.mark.parametrize("names", NAMES)
def test_a_lookup_s_names_are_refused_soon_and_by_a_short_message(names, lookup_server, release):
    features = [ids_pb2.FeatureIds(feature=name) for name in NAMES[names]]
    request = lookup_pb2.LookupRequest(version=release.version, features=features)
    _refused(lookup_server.address, "Lookup/Lookup", request)


@pytest.mark.parametrize("names", NAMES)
def test_so_are_those_of_a_ranking_request(names, ranker_server):
    features = [ids_pb2.FeatureIds(feature=name) for name in NAMES[names]]
    _refused(ranker_server.address, "Ranker/Rank", ranker_pb2.RankRequest(num_candidates=1, candidate_features=features))


@pytest.mark.parametrize("version", ["v" * 900_000, "é" * 400_000, "\x00%" * 400_000])
@pytest.mark.parametrize("transport", ["grpc", "framed"])
def test_a_version_is_told_back_shortened(transport, version, lookup_server):
    request = lookup_pb2.LookupRequest(version=version)
    if transport == "framed":
        with FramedLookupClient(lookup_server.framed_address, timeout_s=10) as client, pytest.raises(ServingError) as failed:
            client.lookup(version, {})
        assert len(str(failed.value)) < 4200
        return
    with grpc.insecure_channel(lookup_server.address) as channel:
        call = channel.unary_unary(
            "/multifacet.serving.v1.Lookup/Lookup", request_serializer=bytes, response_deserializer=bytes
        )
        with pytest.raises(grpc.RpcError) as refused:
            call(request.SerializeToString(), timeout=30)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert len(refused.value.details()) < 4100


def test_the_work_for_names_does_not_grow_faster_than_they_do():
    names = [f"{number}" for number in range(200_000)]
    started = time.process_time()
    with pytest.raises(InvalidRequestError, match="200000 are named"):
        check_features(names, ["pin"], "it", every=False)
    many = [str(number) for number in range(20_000)]  # a model of as many features: nothing can be refused by their number
    with pytest.raises(InvalidRequestError, match=r"repeated \['0'"):
        check_features(many[:10_000] * 2, many, "it", every=False)
    assert time.process_time() - started < 1


def test_what_is_ordinary_is_told_whole():
    error = InvalidRequestError("unknown ['pim']; version " + 3 * ("f" * 64 + ", "))
    assert brief(error) == str(error)


def test_out_of_descriptors_neither_loops_nor_fills_the_log(tmp_path, caplog):
    config = LookupConfig(releases=(tmp_path,), framed_listen=f"unix:{tmp_path / 's.sock'}")
    server = FramedServer(config, lambda _kind, _message: (b"", b""), ServerMetrics("lookup", ("total",)))
    server.start()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    blocked = []
    try:
        highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
        with contextlib.suppress(OSError):
            while True:
                blocked.append(os.dup(0))
        with caplog.at_level(logging.WARNING):
            for client in clients:
                client.connect(str(tmp_path / "s.sock"))
            started = time.process_time()
            time.sleep(1.5)
            assert time.process_time() - started < 0.5
        assert len([record for record in caplog.records if "cannot accept" in record.message]) == 1
        assert server.num_connections == 0
        while blocked:
            os.close(blocked.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        deadline = time.monotonic() + 5
        while server.num_connections < len(clients) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.num_connections == len(clients)  # those that waited are served
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in blocked:
            os.close(descriptor)
        for client in clients:
            client.close()
        server.stop(0)
