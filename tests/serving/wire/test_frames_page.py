"""docs/frames.md and the frames in docs/frames-conformance.txt: readers that know nothing of this code understand both."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from multifacet.serving import LookupConfig, LookupServer, connect_lookup, publish
from multifacet.serving.protocol import frames_pb2, lookup_pb2
from multifacet.serving.wire.frames import Header, Kind, pack_header
from multifacet.serving.wire.packing import pack_lookup

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "frames.md").read_text()
CONFORMANCE = ROOT / "docs" / "frames-conformance.txt"
READER = ROOT / "examples" / "frames" / "reader.cpp"
VERSION = "0123456789abcdef" * 4
INT64_IDS = {"pin": [7, -8, 2**63 - 1], "user": [0]}
STRING_IDS = {"advertiser": ["brand-é", ""]}


@pytest.fixture(scope="module")
def reader():
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(block.splitlines()) <= 100
    names: dict[str, object] = {}
    exec(compile(block, "docs/frames.md", "exec"), names)  # noqa: S102
    return names


def _table(name, num_rows, row_bytes, unknown):
    rows = bytes(range(num_rows * row_bytes))
    described = lookup_pb2.TableRows(
        table=name, row_bytes=row_bytes, dim=16, precision="int4", num_unknown_ids=unknown, num_rows=num_rows
    )
    return described, rows


def _cases():
    """By name: the request's frame, the answer's, and what a reader should say of the answer."""
    tables = [_table("pin_kge", 3, 12, 1), _table("user_kge", 1, 12, 0)]
    message = lookup_pb2.LookupAnswer(version=VERSION, tables=[table for table, _ in tables], server_us=45).SerializeToString()
    rows = b"".join(rows + bytes(-len(rows) % 8) for _, rows in tables)
    told = [f"version {VERSION}", *(_told(table, rows) for table, rows in tables)]
    asked = b"".join(pack_lookup(VERSION, {key: np.array(ids, np.int64) for key, ids in INT64_IDS.items()}))
    yield "int64-ids", _frame(1, asked, 7, timeout_us=250_000), _frame(16, message, 7, rows), ["number 7", *told]
    # As the server's compiled kernel writes it: the last number is longer than it needs to be.
    long = (
        lookup_pb2.LookupAnswer(version=VERSION, tables=[table for table, _ in tables]).SerializeToString()
        + b"\x18\xad\x80\x80\x00"
    )
    yield "long-varint", _frame(1, asked, 2**64 - 1), _frame(16, long, 2**64 - 1, rows), [f"number {2**64 - 1}", *told]
    table, rows = _table("advertiser_kge", 2, 36, 2)
    answer = lookup_pb2.LookupAnswer(version=VERSION, tables=[table], shard_index=1, num_shards=4).SerializeToString()
    asked = b"".join(pack_lookup(VERSION, STRING_IDS, "a-request"))
    yield "text-ids", _frame(1, asked, 8), _frame(16, answer, 8, rows), ["number 8", f"version {VERSION}", _told(table, rows)]
    refusal = frames_pb2.Refusal(code="FAILED_PRECONDITION", message="it is not loaded", loaded_versions=[VERSION])
    told = ["number 9", "refusal 1 FAILED_PRECONDITION", "refusal 2 it is not loaded", f"refusal 3 {VERSION}"]
    yield "refusal", _frame(1, asked, 9), _frame(17, refusal.SerializeToString(), 9), told
    token = frames_pb2.Credentials(token=VERSION[:8]).SerializeToString()
    yield "authenticate", _frame(3, token, 10), _frame(16, b"", 10), ["number 10"]


def _frame(kind, message, number, rows=b"", timeout_us=0):
    return pack_header(kind, len(message), len(rows), number, timeout_us) + message + rows


def _told(table, rows):
    return f"table {table.table} {table.row_bytes} {table.dim} {table.precision} {table.num_unknown_ids} {rows.hex()}"


def _file():
    lines = ["# Frames as docs/frames.md describes them, in hexadecimal digits; and what each answer says."]
    for name, request, answer, told in _cases():
        lines += ["", f"case {name}", f"request {request.hex()}", f"answer {answer.hex()}", *told]
    return "\n".join(lines) + "\n"


def test_the_conformance_file_is_what_this_version_writes():
    """Frames never change: a version that writes others is another protocol."""
    assert CONFORMANCE.read_text() == _file()


def test_the_page_s_reader_understands_the_file(reader):
    for name, sent, answer, told in _cases():
        if name == "refusal":
            with pytest.raises(RuntimeError, match="FAILED_PRECONDITION: it is not loaded"):
                reader["read_answer"](answer)
            continue
        number, version, tables = reader["read_answer"](answer)
        said = [f"number {number}", *([f"version {version}"] if version else [])]
        for table, found in tables.items():
            fields = (found["row_bytes"], found["dim"], found["precision"], found["unknown"], found["rows"].hex())
            said.append(" ".join(map(str, ("table", table, *fields))))
        assert said == told, name
        if name == "int64-ids":
            message = reader["lookup_message"](VERSION, INT64_IDS)
            assert reader["request"](1, message, 7, 250_000) == sent


def test_this_library_s_own_parser_understands_the_file():
    for _, sent, answer, _ in _cases():
        assert Header.unpack(sent, requests=True).kind in (Kind.LOOKUP, Kind.AUTHENTICATE)
        header = Header.unpack(answer, requests=False)
        assert len(answer) == 32 + header.message_bytes + header.rows_bytes


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_reader_in_another_language_understands_the_file(tmp_path):
    assert len(READER.read_text().splitlines()) <= 100
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", "-o", tmp_path / "reader", READER], check=True)
    ran = subprocess.run([tmp_path / "reader", CONFORMANCE], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [line for _, _, _, told in _cases() for line in told]


@pytest.mark.parametrize("layout", ["plain", "placed"])
def test_the_page_s_reader_asks_a_server(model, tmp_path, reader, layout):
    release = publish(model.path, tmp_path / "release", layout=layout)
    path = str(tmp_path / "frames.sock")
    ids = {"pin": [-500, 200, 5], "user": list(range(1000, 1700)), "advertiser": ["brand-0é", "nobody"]}
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{path}")
    with LookupServer(config) as server, connect_lookup(server.framed_address, timeout_s=30) as client:
        for asked in (ids, {"pin": ids["pin"]}, {"user": ids["user"]}):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(path)
                message = reader["lookup_message"](release.version, asked)
                number, version, tables = reader["read_answer"](reader["ask"](stream, reader["request"](1, message, 99)))
                assert (number, version) == (99, release.version)
                expected = client.lookup(release.version, asked)
                assert set(tables) == set(expected.tables)
                for name, rows in expected.tables.items():
                    assert tables[name]["rows"] == rows.rows.tobytes()
                    assert tables[name]["unknown"] == rows.num_unknown_ids
                unknown = reader["lookup_message"]("0" * 64, asked)
                with pytest.raises(RuntimeError, match=r"FAILED_PRECONDITION: version 0{64} is not loaded"):
                    reader["read_answer"](reader["ask"](stream, reader["request"](1, unknown, 100)))
