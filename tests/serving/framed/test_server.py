"""Whatever comes over a framed connection, the server refuses it or closes that connection, and serves the others."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.serving import (
    DeadlineExceededError,
    FramedLookupClient,
    LookupConfig,
    LookupServer,
    OverloadedError,
    ServingError,
    UnauthenticatedError,
    UnavailableError,
    VersionNotLoadedError,
    connect_lookup,
)
from multifacet.serving.protocol import frames_pb2, lookup_pb2
from multifacet.serving.wire.frames import HEADER_BYTES, BrokenFrameError, Header, Kind
from multifacet.serving.wire.packing import pack_ids, pack_lookup, unpack_ids


@pytest.fixture(scope="module")
def server(release, tmp_path_factory):
    config = LookupConfig(
        releases=(release.path,),
        framed_listen=f"unix:{tmp_path_factory.mktemp('framed') / 's.sock'}",
        max_message_bytes=100_000,
        max_ids_per_request=10**6,
        stall_timeout_s=1.0,
        max_connections=1005,
    )
    with LookupServer(config) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with FramedLookupClient(server.framed_address, timeout_s=10) as client:
        yield client


@pytest.fixture
def raw(server):
    with _connect(server) as stream:
        yield stream


def _connect(server):
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(8)
    stream.connect(server.framed_address.removeprefix("framed:unix:"))
    return stream


def _request(version, pins, number=1, timeout_us=0):
    message = lookup_pb2.LookupRequest(version=version, features=[pack_ids("pin", pins)]).SerializeToString()
    return Header(Kind.LOOKUP, len(message), 0, number, timeout_us).pack() + message


def _read(stream):
    header = Header.unpack(_read_bytes(stream, HEADER_BYTES), requests=False)
    message = _read_bytes(stream, header.message_bytes)
    if header.kind is Kind.REFUSAL:
        return header, frames_pb2.Refusal.FromString(message)
    return header, lookup_pb2.LookupAnswer.FromString(message), _read_bytes(stream, header.rows_bytes)


def _read_bytes(stream, num_bytes):
    read = b""
    while len(read) < num_bytes:
        part = stream.recv(num_bytes - len(read))
        if not part:
            raise EOFError
        read += part
    return read


def _is_closed(stream):
    try:
        while stream.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


@settings(max_examples=150, deadline=None)
@given(
    packed=st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES)
    | st.binary(min_size=28, max_size=28).map(lambda b: b"MFF1" + b)
)
def test_a_header_is_read_as_it_was_packed_or_refused(packed):
    try:
        header = Header.unpack(packed, requests=True)
    except BrokenFrameError:
        return
    assert header.pack() == packed
    assert header.kind in (Kind.LOOKUP, Kind.DESCRIBE, Kind.AUTHENTICATE)


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(min_size=1, max_size=300),
    kind=st.sampled_from(list(Kind)),
    framed=st.booleans(),
    number=st.integers(0, 2**64 - 1),
)
def test_random_bytes_cost_at_most_their_own_connection(release, server, client, content, kind, framed, number):
    with _connect(server) as stream:
        header = Header(kind, len(content), 0, number).pack() if framed else b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stream.sendall(header + content)
            stream.shutdown(socket.SHUT_WR)
        assert _is_closed(stream)
    assert client.lookup(release.version, {"pin": [-500]}).tables["pin_kge"].num_unknown_ids == 0


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=6))
def test_a_request_may_come_in_any_pieces(release, server, cuts):
    content = _request(release.version, range(20), number=7)
    places = sorted({min(cut, len(content)) for cut in cuts})
    with _connect(server) as stream:
        for start, stop in zip([0, *places], [*places, len(content)], strict=True):
            stream.sendall(content[start:stop])
            time.sleep(0.0005)
        header, answer, rows = _read(stream)
    assert (header.kind, header.number) == (Kind.ANSWER, 7)
    assert [table.num_rows for table in answer.tables] == [20, 20]
    assert len(rows) == header.rows_bytes == 2 * 20 * 12


def test_an_oversized_request_is_refused_skipped_and_the_connection_goes_on(release, server, raw):
    too_long = Header(Kind.LOOKUP, 3_000_000, 0, 1).pack()
    raw.sendall(too_long + bytes(1000))
    header, refusal = _read(raw)  # at once: before the rest is sent, and so without memory for it
    assert header.kind is Kind.REFUSAL
    assert (refusal.code, "larger than max (100000 bytes)" in refusal.message) == ("RESOURCE_EXHAUSTED", True)
    raw.sendall(bytes(3_000_000 - 1000) + _request(release.version, [1, 2]))
    assert _read(raw)[0].kind is Kind.ANSWER


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n", "another protocol"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), "another protocol, or TLS"),
        (Header(Kind.LOOKUP, 2**32 - 1, 0, 1).pack(), "larger than max"),
        (Header(Kind.ANSWER, 0, 0, 1).pack(), "not expected here"),
        (Header(Kind.LOOKUP, 0, 5, 1).pack(), "not expected here"),
        (Header(Kind.DESCRIBE, 0, 0, 1).pack() * 2, "one request at a time"),
    ],
)
def test_what_is_no_request_is_answered_with_the_reason_and_the_connection_closed(raw, content, message):
    raw.sendall(content)
    _, refusal = _read(raw)
    assert message in refusal.message
    assert _is_closed(raw)


def test_a_message_that_is_no_protobuf_is_refused_and_the_connection_stays(release, raw):
    raw.sendall(Header(Kind.LOOKUP, 3, 0, 5).pack() + b"\xff\xff\xff")
    header, refusal = _read(raw)
    assert (header.number, refusal.code) == (5, "INVALID_ARGUMENT")
    raw.sendall(_request(release.version, [1]))
    assert _read(raw)[0].kind is Kind.ANSWER


def test_a_slow_reader_gets_all_of_its_answer_and_delays_nobody(release, server, client):
    pins = np.arange(12_000)
    with _connect(server) as slow:
        for _ in range(30):  # more than its socket's buffers hold: each answer has 288 KB
            slow.sendall(_request(release.version, pins))
            started = time.monotonic()
            assert len(client.lookup(release.version, {"pin": pins[:10]}).tables["pin_kge"].rows) == 10
            assert time.monotonic() - started < 5
            header = Header.unpack(_read_bytes(slow, HEADER_BYTES), requests=False)
            _read_bytes(slow, header.message_bytes)
            for _ in range(6):
                time.sleep(0.001)
                _read_bytes(slow, header.rows_bytes // 6)


def _wait_for_connections(server, number):
    deadline = time.monotonic() + 10
    while server._framed.num_connections != number:
        assert time.monotonic() < deadline, server._framed.num_connections
        time.sleep(0.02)


def test_a_client_that_stops_in_the_middle_is_closed_after_a_while(release, server, client, monkeypatch):
    monkeypatch.setattr("multifacet.serving.framed.server._SEND_BUFFER_BYTES", 4096)  # less than one answer has
    client.describe()
    _wait_for_connections(server, 1)  # those of earlier tests are gone
    before = 1
    with _connect(server) as half_sent, _connect(server) as never_reads, _connect(server) as idle:
        _wait_for_connections(server, before + 3)
        half_sent.sendall(_request(release.version, [1])[:40])
        never_reads.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        never_reads.sendall(_request(release.version, np.arange(12_000)))
        _wait_for_connections(server, before + 1)
        idle.sendall(_request(release.version, [1]))  # it is not held against one that it asks rarely
        assert _read(idle)[0].kind is Kind.ANSWER
    assert client.describe().versions


def test_a_thousand_idle_connections_leave_the_others_as_fast(release, server, client):
    def median_us():
        times = []
        for _ in range(100):
            started = time.perf_counter()
            client.lookup(release.version, {"pin": [1, 2, 3]})
            times.append((time.perf_counter() - started) * 1e6)
        return sorted(times)[50]

    alone = median_us()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(_connect(server)) for _ in range(1000)]
        deadline = time.monotonic() + 5
        while server._framed.num_connections < 1000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert median_us() < 10 * alone + 1000
        idle[500].sendall(_request(release.version, [1]))
        assert _read(idle[500])[0].kind is Kind.ANSWER
        extra = [stack.enter_context(_connect(server)) for _ in range(10)]
        refused = [stream for stream in extra if _refused_for_number(stream)]
        assert refused
    deadline = time.monotonic() + 5
    while server._framed.num_connections > 10:
        assert time.monotonic() < deadline, "closed connections are not forgotten"
        time.sleep(0.01)


def _refused_for_number(stream):
    stream.settimeout(0.05)
    try:
        return "as many as are accepted" in _read(stream)[1].message
    except TimeoutError:
        return False


def test_more_requests_than_may_wait_are_refused_at_once(release, tmp_path):
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path / 's.sock'}", max_queued_requests=3)
    with LookupServer(config) as server:
        held, entered = threading.Event(), threading.Event()
        answer_frame = server._framed._handler

        def hold(kind, message):
            entered.set()
            held.wait(5)
            return answer_frame(kind, message)

        server._framed._handler = hold
        server._framed._quick = lambda _frame, _descriptor: None
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(_connect(server)) for _ in range(8)]
            streams[0].sendall(_request(release.version, [1]))
            assert entered.wait(5)
            for stream in streams[1:6]:
                stream.sendall(_request(release.version, [1]))
            streams[6].sendall(_request(release.version, [1], timeout_us=1))
            held.set()
            answers = [_read(stream) for stream in streams[:7]]
        kinds = [header.kind for header, *_ in answers]
        assert kinds.count(Kind.REFUSAL) in (3, 4)  # of six that waited, three may; one of those may be too late
        assert {refusal.code for _, refusal, *_ in answers if isinstance(refusal, frames_pb2.Refusal)} <= {
            "RESOURCE_EXHAUSTED",
            "DEADLINE_EXCEEDED",
        }


def test_requests_that_arrived_before_the_stop_are_answered_and_later_ones_get_an_error(release, tmp_path):
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path / 's.sock'}")
    server = LookupServer(config)
    server.start()
    client = FramedLookupClient(server.framed_address, timeout_s=5)
    client.lookup(release.version, {"pin": [1]})
    with _connect(server) as stream:
        stream.sendall(_request(release.version, [1]))
        time.sleep(0.1)
        server.stop()
        assert _read(stream)[0].kind is Kind.ANSWER
        assert _is_closed(stream)
    with pytest.raises(UnavailableError, match="framed:unix:"):
        client.lookup(release.version, {"pin": [1]})
    with LookupServer(config):  # the same client finds the next server, though its connection was cut
        assert client.lookup(release.version, {"pin": [1]}).version == release.version
    client.close()
    with pytest.raises(UnavailableError, match="client is closed"):
        client.lookup(release.version, {"pin": [1]})


@pytest.mark.parametrize(
    "answer", [b"", b"x" * 64, Header(Kind.ANSWER, 10, 2**32 - 1, 1).pack(), struct.pack("<4sB", b"MFF1", 16)]
)
def test_a_client_believes_no_broken_server(tmp_path, answer):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.sock"))
        listening.listen()

        def serve():
            stream, _ = listening.accept()
            with stream:
                stream.recv(1 << 16)
                stream.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            FramedLookupClient(f"unix:{tmp_path / 's.sock'}", timeout_s=5) as client,
            pytest.raises(Exception, match=r"framed:|frame") as caught,
        ):
            client.lookup("0" * 64, {"pin": [1]})
        assert type(caught.value).__module__.startswith("multifacet.serving")
        thread.join()


def test_a_server_that_never_answers_costs_the_deadline_and_no_more(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.sock"))
        listening.listen()
        with FramedLookupClient(f"unix:{tmp_path / 's.sock'}") as client:
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError, match=r"s\.sock"):
                client.lookup("0" * 64, {"pin": [1]}, timeout_s=0.1)
            assert 0.09 < time.monotonic() - started < 2


@settings(max_examples=60, deadline=None)
@given(
    asked=st.dictionaries(
        st.sampled_from(["pin", "user", "nobody"]), st.lists(st.integers(-5, 600), max_size=1500), max_size=3
    ),
    request_id=st.text(max_size=5),
    cut=st.integers(0, 3),
)
def test_the_kernel_answers_as_the_general_way_does_or_leaves_it_to_it(release, server, asked, request_id, cut):
    parts = pack_lookup(release.version, {name: np.array(ids, np.int64) for name, ids in asked.items()}, request_id)
    message = b"".join(parts)
    read = lookup_pb2.LookupRequest.FromString(message)
    assert [(entry.feature, unpack_ids(entry).tolist()) for entry in read.features] == list(asked.items())
    frame = bytearray(Header(Kind.LOOKUP, len(message) - cut, 0, 9).pack() + message[: len(message) - cut])
    quick = server._answer_quickly(memoryview(frame), -1)
    try:
        expected, rows = server._answer_frame(Kind.LOOKUP, frame[HEADER_BYTES:])
    except (ServingError, DecodeError):
        assert quick is None
        return
    if quick is None:
        assert not all(asked.values()) or not request_id.isascii()  # all that is plainly right is the kernel's
        return
    answered, _ = quick
    header = Header.unpack(answered, requests=False)
    answer = lookup_pb2.LookupAnswer.FromString(answered[HEADER_BYTES : HEADER_BYTES + header.message_bytes])
    answer.server_us = 0
    wanted = lookup_pb2.LookupAnswer.FromString(expected)
    wanted.server_us = 0
    assert answer == wanted
    assert (header.number, header.rows_bytes, header.message_bytes % 8) == (9, len(rows), 0)
    assert answered[HEADER_BYTES + header.message_bytes :] == rows


@settings(max_examples=300, deadline=None)
@given(place=st.integers(98, 400), value=st.integers(0, 255), length=st.integers(98, 400))
def test_no_byte_of_a_request_leads_the_kernel_astray(release, server, place, value, length):
    message = b"".join(pack_lookup(release.version, {"pin": np.arange(20), "user": np.arange(10)}, "r"))
    frame = bytearray(Header(Kind.LOOKUP, len(message), 0, 9).pack() + message)[:length]
    if place < len(frame):
        frame[place] = value
    quick = server._answer_quickly(memoryview(frame), -1)
    try:
        request = lookup_pb2.LookupRequest.FromString(bytes(frame[HEADER_BYTES:]))
        expected, _ = server._lookup_framed(request)
    except (ServingError, DecodeError):
        assert quick is None
        return
    if quick is not None:
        header = Header.unpack(quick[0], requests=False)
        answer = lookup_pb2.LookupAnswer.FromString(quick[0][HEADER_BYTES : HEADER_BYTES + header.message_bytes])
        wanted = lookup_pb2.LookupAnswer.FromString(expected)
        assert [(t.table, t.num_rows) for t in answer.tables] == [(t.table, t.num_rows) for t in wanted.tables]


def test_a_token_is_asked_for_over_every_transport(release, transport, tmp_path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("s3cret\n")
    wrong.write_text("s3cre\n")
    with LookupServer(transport.config(releases=(release.path,), token_file=right)) as server:
        for token_file in (wrong, None):
            with transport.connect(server, token_file=token_file) as client, pytest.raises(UnauthenticatedError, match="token"):
                client.lookup(release.version, {"user": [1000]})
        with transport.connect(server, token_file=right) as client:
            assert client.lookup(release.version, {"user": [1000]}).version == release.version
            assert client.describe().versions
    wrong.write_text("\n")
    with pytest.raises(ValueError, match="holds no token"):
        LookupServer(transport.config(releases=(release.path,), token_file=wrong))


def test_frames_never_leave_the_machine_in_plain_text_unless_told(release):
    with pytest.raises(ValueError, match="has no TLS"):
        LookupConfig(releases=(release.path,), framed_listen="0.0.0.0:7403")
    assert LookupConfig(releases=(release.path,), framed_listen="0.0.0.0:7403", insecure_public=True)
    with pytest.raises(ValueError, match="plain text"):
        connect_lookup("framed:127.0.0.1:7403", tls_ca="ca.pem")


def test_connections_over_the_limit_do_not_use_up_descriptors(release, tmp_path):
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path / 's.sock'}", max_connections=2)
    with LookupServer(config) as server:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with contextlib.ExitStack() as stack:
            kept = [stack.enter_context(_connect(server)) for _ in range(2)]
            for _ in range(50):
                with _connect(server) as stream:
                    assert _is_closed(stream)
            assert len(list(Path("/proc/self/fd").iterdir())) <= before + 8
            with FramedLookupClient(server.framed_address) as client, pytest.raises(OverloadedError, match="as many as"):
                client.lookup(release.version, {"pin": [1]})
            assert len(kept) == 2


class _SlowToAsk(FramedLookupClient):
    """Asks once the server has closed the connection, as it happens when the two run at the same time."""

    def connect(self, deadline):
        stream = super().connect(deadline)
        closed = select.poll()
        closed.register(stream.socket, select.POLLRDHUP)
        assert closed.poll(5000)
        return stream


@pytest.mark.parametrize("listen", ["unix", "tcp"])
def test_a_client_that_asks_after_the_refusal_still_learns_of_it(release, tmp_path, listen):
    address = f"unix:{tmp_path / 's.sock'}" if listen == "unix" else "127.0.0.1:0"
    config = LookupConfig(releases=(release.path,), framed_listen=address, max_connections=1)
    with LookupServer(config) as server, FramedLookupClient(server.framed_address) as first:
        first.lookup(release.version, {"pin": [1]})
        with _SlowToAsk(server.framed_address) as client, pytest.raises(OverloadedError, match="as many as"):
            client.lookup(release.version, {"pin": [1]})


def test_the_log_names_the_request_that_was_refused(release, client, caplog):
    with caplog.at_level(logging.INFO, logger="multifacet"), pytest.raises(VersionNotLoadedError):
        client.lookup("0" * 64, {"pin": [1]}, request_id="home-feed-17")
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert "'home-feed-17' refused: FAILED_PRECONDITION" in line
