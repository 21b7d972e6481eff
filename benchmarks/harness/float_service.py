"""What one would write first: rows over gRPC as lists of floats, in a process of its own. A peer to measure against."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from multifacet.serving.release.release import Release
from multifacet.tables import decode

_METHOD = "/plain.Rows/Get"


def _messages() -> tuple[Any, Any]:
    """``message Ids { repeated int64 values = 1; }`` and ``message Floats { repeated float values = 1; }``."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="plain.proto", package="plain", syntax="proto3")
    for name, kind in (("Ids", field.TYPE_INT64), ("Floats", field.TYPE_FLOAT)):
        file.message_type.add(name=name).field.add(name="values", number=1, type=kind, label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    get = message_factory.GetMessageClass
    return get(pool.FindMessageTypeByName("plain.Ids")), get(pool.FindMessageTypeByName("plain.Floats"))


Ids, Floats = _messages()


def _serve(release_path: Path, ready: Connection) -> None:
    torch.set_num_threads(1)
    release = Release.open(release_path, verify=False)
    (table,) = release.tables
    id_map = release.id_map(table.id_map)
    vectors = decode(torch.from_numpy(release.map_rows(table).copy()), table.dim, table.precision).numpy()

    def get(request: Any, context: object) -> Any:  # noqa: ARG001
        rows = id_map.rows(np.array(request.values, np.int64))
        return Floats(values=vectors[rows].ravel())

    handler = grpc.unary_unary_rpc_method_handler(
        get, request_deserializer=Ids.FromString, response_serializer=Floats.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.max_send_message_length", -1),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plain.Rows", {"Get": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready.send(f"127.0.0.1:{port}")
    ready.poll(None)  # until the parent closes its end, or dies
    server.stop(0).wait()


class FloatService:
    """The service's process, within a ``with`` block.

    Args:
        release_path: A release of one table, whose rows it decodes once.
    """

    def __init__(self, release_path: Path):
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(release_path, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.address: str = self._end.recv()

    def __enter__(self) -> FloatService:
        return self

    def __exit__(self, *unused: object) -> None:
        self._end.close()
        self._process.join(10)
        self._process.kill()


class FloatClient:
    """Asks the service at an address."""

    def __init__(self, address: str):
        self._channel = grpc.insecure_channel(address, options=(("grpc.max_receive_message_length", -1),))
        self._get = self._channel.unary_unary(
            _METHOD, request_serializer=Ids.SerializeToString, response_deserializer=Floats.FromString
        )

    def lookup(self, ids: npt.NDArray[np.int64], dim: int) -> npt.NDArray[np.float32]:
        """float32 [n, dim] of ids [n]."""
        answer = self._get(Ids(values=ids), timeout=30)
        return np.array(answer.values, np.float32).reshape(len(ids), dim)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
