"""The generated code is that of the .proto files."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from multifacet.serving.protocol import admin_pb2, frames_pb2, ids_pb2, lookup_pb2, ranker_pb2

PROTOCOL = Path(ids_pb2.__file__).parent
REGENERATE = "run: python -m multifacet.serving.protocol"


@pytest.mark.parametrize("module", [admin_pb2, frames_pb2, ids_pb2, lookup_pb2, ranker_pb2])
def test_messages_and_services_match_their_proto_file(module, tmp_path):
    described = tmp_path / "described.pb"
    name = f"serving/protocol/{Path(module.__file__).name.replace('_pb2.py', '.proto')}"
    status = protoc.main(["protoc", f"-I{PROTOCOL.parents[1]}", f"--descriptor_set_out={described}", name])
    assert status == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes()).file
    generated = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    for proto in (file, generated):
        for message in proto.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert generated == file, REGENERATE


def test_generated_files_are_those_that_the_documented_command_writes(tmp_path):
    (written_by,) = re.findall(r"GRPC_GENERATED_VERSION = '(.+)'", (PROTOCOL / "lookup_pb2_grpc.py").read_text())
    if version("grpcio-tools") != written_by:
        pytest.skip(f"grpcio-tools {version('grpcio-tools')} is here, the files were written by {written_by}")
    (tmp_path / "serving/protocol").mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "multifacet.serving.protocol", str(tmp_path)], check=True, cwd=PROTOCOL.parents[1], timeout=60
    )
    written = {path.name: path.read_text() for path in (tmp_path / "serving/protocol").iterdir()}
    committed = {path.name: path.read_text() for path in PROTOCOL.glob("*_pb2*")}
    assert written == committed, REGENERATE
