"""Whatever is sent, the ranker refuses it with a reason, and goes on serving."""

from __future__ import annotations

import os
import socket
import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from multifacet.serving import InvalidRequestError, OverloadedError, RankerClient, RankerConfig, RankerServer
from multifacet.serving.protocol import ids_pb2, ranker_pb2, ranker_pb2_grpc


@pytest.fixture(scope="module")
def channel(ranker_server):
    with grpc.insecure_channel(ranker_server.address) as channel:
        yield channel


@pytest.fixture
def message():
    """A good request of two candidates."""
    return ranker_pb2.RankRequest(
        num_candidates=2,
        request_features=[ids_pb2.FeatureIds(feature="user", int64_ids=np.int64(1000).tobytes())],
        candidate_features=[
            ids_pb2.FeatureIds(feature="pin", int64_ids=np.array([13, 20], np.int64).tobytes()),
            ids_pb2.FeatureIds(feature="advertiser", string_ids=ids_pb2.StringIds(values=["a", "b"])),
        ],
        dense=np.zeros((2, 3), np.float32).tobytes(),
    )


@pytest.fixture(autouse=True)
def serves_afterwards(ranker_client, request_of):
    yield
    request_ids, candidate_ids, dense = request_of(5)
    assert len(ranker_client.rank(request_ids, candidate_ids, dense=dense).ctr) == 5


def _a_byte_less_of_ids(message):
    message.candidate_features[0].int64_ids = message.candidate_features[0].int64_ids[:-1]


def _an_id_more(message):
    message.candidate_features[1].string_ids.values.append("c")


def _two_users(message):
    message.request_features[0].int64_ids *= 2


def _no_user(message):
    del message.request_features[0]


def _user_twice(message):
    message.candidate_features.add(feature="user", int64_ids=bytes(16))


def _unknown_feature(message):
    message.candidate_features.add(feature="board\x00\N{SNOWMAN}", int64_ids=bytes(16))


def _other_id_type(message):
    message.candidate_features[0].string_ids.values.extend(["a", "b"])


def _dense_too_short(message):
    message.dense = message.dense[:-4]


def _dense_nan(message):
    message.dense = np.array([[0, 0, 0], [0, np.nan, 0]], np.float32).tobytes()


def _dense_infinite(message):
    message.dense = np.array([[-np.inf, 0, 0], [0, 0, 0]], np.float32).tobytes()


def _more_candidates_than_ids(message):
    message.num_candidates = 3


def _more_candidates_than_allowed(message):
    message.num_candidates = 2**32 - 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_a_byte_less_of_ids, "'pin' has 15 bytes: expected 8 an id"),
        (_an_id_more, "'advertiser' has 3 ids: expected 2"),
        (_two_users, "'user' has 2 ids: expected 1"),
        (_no_user, r"missing ['user']"),
        (_user_twice, "repeated ['user']"),
        (_unknown_feature, "unknown ['board"),
        (_other_id_type, "'pin' are string, but version"),
        (_dense_too_short, "20 bytes: 2 candidates of 3 float32 features (age_days, price, hour) take 24"),
        (_dense_nan, "'price' of candidate 1 is nan"),
        (_dense_infinite, "'age_days' of candidate 0 is -inf"),
        (_more_candidates_than_ids, "'pin' has 2 ids: expected 3"),
        (_more_candidates_than_allowed, "at most 4096"),
    ],
)
def test_a_malformed_request_is_refused_with_its_reason(channel, message, change, reason):
    stub = ranker_pb2_grpc.RankerStub(channel)
    assert len(stub.Rank(message, timeout=5).ctr) == 2
    change(message)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Rank(message, timeout=5)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in refused.value.details()


def test_bytes_that_are_no_message_are_an_error_of_that_request(channel):
    call = channel.unary_unary("/multifacet.serving.v1.Ranker/Rank")
    generator = np.random.default_rng(0)
    for size in (1, 7, 300, 5000):
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff" + generator.bytes(size), timeout=5)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_garbage_on_the_port_only_costs_its_own_connection(ranker_server):
    host, _, port = ranker_server.address.rpartition(":")
    for content in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(4096)):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass


def test_a_message_beyond_the_limit_is_refused_before_it_is_read(ranker_client):
    dense = np.zeros((2, 3), np.float32)
    with pytest.raises(OverloadedError, match="larger than max"):
        ranker_client.rank({"user": 1}, {"pin": [1, 2], "advertiser": ["a" * 3_000_000, "b" * 3_000_000]}, dense=dense)


def test_the_client_refuses_shapes_that_the_wire_cannot_tell(ranker_client):
    with pytest.raises(InvalidRequestError, match=r"shape \(3,\)"):
        ranker_client.rank({"user": 1}, {"pin": [1], "advertiser": ["a"]}, dense=np.zeros(3, np.float32))


def test_open_reflection_streams_take_no_worker_away(release, lookup_server, request_of):
    config = RankerConfig(
        releases=(release.path,), lookup=lookup_server.address, lookup_timeout_s=10, workers=1, drain_timeout_s=0.2
    )
    with RankerServer(config) as server, grpc.insecure_channel(server.address) as channel:
        ended = threading.Event()

        def ask_and_hold():
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            ended.wait(20)

        streams = [reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask_and_hold()) for _ in range(3)]
        names = {service.name for service in next(streams[0]).list_services_response.service}
        assert "multifacet.serving.v1.Ranker" in names
        with RankerClient(server.address, timeout_s=5) as client:
            request_ids, candidate_ids, dense = request_of(3)
            assert len(client.rank(request_ids, candidate_ids, dense=dense).ctr) == 3
        ended.set()
        for stream in streams:
            stream.cancel()


def test_health_is_serving(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "multifacet.serving.v1.Ranker"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
