"""What serving reads of others, each as a function of bytes: a frame, a manifest, an id map, a request, a snapshot.

A target takes any bytes, and refuses them in the library's own words or takes them. Whatever else it raises is a crash.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import torch
from google.protobuf.message import DecodeError

from benchmarks.harness.witness import IDS, write_witness
from multifacet.artifacts import MANIFEST_NAME, ArtifactError
from multifacet.serving import LookupConfig, LookupServer, Release
from multifacet.serving.errors import ServingError
from multifacet.serving.protocol import lookup_pb2, ranker_pb2
from multifacet.serving.ranker.request_ids import distinct_ids, read_ids
from multifacet.serving.wire.frames import HEADER_BYTES, Header, Kind, check_message_bytes, pack_header
from multifacet.serving.wire.packing import pack_lookup
from multifacet.tables import Snapshot, SnapshotTable
from multifacet.tables.ids import IdMap

REFUSALS = (ServingError, ArtifactError, DecodeError)
_MOST_BYTES: Final = 1 << 20
_LIMITS: Final = (0, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)


@dataclass(frozen=True)
class Target:
    """Something that reads bytes of others.

    Attributes:
        name: What they are.
        read: Reads them; raises one of `REFUSALS`, or none.
        seeds: Bytes that are right, from which others are made.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]

    def try_one(self, data: bytes) -> bool:
        """Read bytes; whether they were taken.

        Raises:
            Exception: Whatever is no refusal: a crash.
        """
        try:
            self.read(data)
        except REFUSALS:
            return False
        return True


def targets(folder: Path) -> dict[str, Target]:
    """All targets by name, on files of a folder.

    Args:
        folder: Where a small release, an id map and a snapshot are written.
    """
    release = write_witness(folder / "release", 1)
    server = LookupServer(LookupConfig(releases=(release.path,), max_ids_per_request=1000))
    made = (
        _frames(server, release.version),
        _lookup_messages(server, release.version),
        _rank_messages(release),
        _manifests(folder, release),
        _id_maps(folder),
        _snapshots(folder),
    )
    return {target.name: target for target in made}


TARGETS: Final = ("frames", "lookup messages", "rank messages", "manifests", "id maps", "snapshots")


def changed(data: bytes, chooser: random.Random) -> bytes:
    """Bytes a little different: bits, numbers at their limits, parts left out, put in or repeated."""
    found = bytearray(data)
    for _ in range(chooser.choice((1, 1, 2, 4))):
        place = chooser.randrange(len(found) + 1)
        match chooser.randrange(5):
            case 0 if place < len(found):
                found[place] ^= 1 << chooser.randrange(8)
            case 1:
                found[place:place] = chooser.randbytes(chooser.randrange(1, 9))
            case 2:
                del found[place : place + chooser.randrange(1, 9)]
            case 3:
                found[place : place + 8] = chooser.choice(_LIMITS).to_bytes(8, "little")
            case 4:
                start = chooser.randrange(len(found) + 1)
                found[place : place + 16] = found[start : start + 16]
    return bytes(found)


def _frames(server: LookupServer, version: str) -> Target:
    """A frame: its header, and the message in it by the compiled kernel and by the general way, which must agree."""

    def read(data: bytes) -> None:
        if len(data) < HEADER_BYTES:
            return
        header = Header.unpack(data, requests=True)
        check_message_bytes(header, _MOST_BYTES)
        if len(data) != HEADER_BYTES + header.message_bytes or header.kind is Kind.AUTHENTICATE:
            return
        frame = memoryview(bytearray(data))
        quick = server._answer_quickly(frame, -1) if header.kind is Kind.LOOKUP else None
        if quick is None:
            server._answer_frame(header.kind, frame[HEADER_BYTES:])
            return
        answer = bytes(quick[0])
        given = Header.unpack(answer, requests=False)
        message, rows = server._answer_frame(header.kind, frame[HEADER_BYTES:])
        if answer[HEADER_BYTES + given.message_bytes :] != bytes(rows):
            raise AssertionError(f"the kernel answers {answer!r}, the general way {message!r} and {bytes(rows)!r}")

    ids = [{"user": [1, 2, IDS + 5], "pin": [3]}, {"user": [0]}, {"pin": list(range(64))}]
    messages = [b"".join(bytes(part) for part in pack_lookup(version, given)) for given in ids]
    seeds = [pack_header(Kind.LOOKUP, len(message), 0, 7) + message for message in messages]
    return Target("frames", read, (*seeds, pack_header(Kind.DESCRIBE, 0, 0, 9)))


def _lookup_messages(server: LookupServer, version: str) -> Target:
    """A lookup over gRPC."""

    def read(data: bytes) -> object:
        return server._lookup(lookup_pb2.LookupRequest.FromString(data))

    ids: list[dict[str, Any]] = [{"user": [1, 2], "pin": [3]}, {"user": ["a"]}, {}]
    return Target(
        "lookup messages", read, tuple(b"".join(bytes(part) for part in pack_lookup(version, given)) for given in ids)
    )


def _rank_messages(release: Release) -> Target:
    """A ranking request: its ids as the ranker reads them, before any row is fetched."""

    def read(data: bytes) -> None:
        request = ranker_pb2.RankRequest.FromString(data)
        given = read_ids(request, release.manifest, "version 1", max_candidates=1000, max_sequence_ids=1000)
        if request.num_candidates:
            distinct_ids(given, request.num_candidates)

    request = ranker_pb2.RankRequest(num_candidates=3, dense=bytes(24))
    request.request_features.add(feature="user", int64_ids=struct.pack("<q", 5))
    request.candidate_features.add(feature="pin", int64_ids=struct.pack("<3q", 1, 2, 3))
    return Target("rank messages", read, (request.SerializeToString(),))


def _manifests(folder: Path, release: Release) -> Target:
    """A release's manifest, opened by both halves; its files are as they were."""
    place = folder / "manifest"
    shutil.copytree(release.path, place)
    (place / MANIFEST_NAME).chmod(0o644)

    def read(data: bytes) -> None:
        (place / MANIFEST_NAME).write_bytes(data)
        for half in ("lookup", "ranker"):
            Release.open(place, verify=False, half=half)

    return Target("manifests", read, ((release.path / MANIFEST_NAME).read_bytes(),))


def _id_maps(folder: Path) -> Target:
    """An id map: two bytes for the length of its description, the description, and its arrays."""
    place = folder / "maps"
    place.mkdir()

    def read(data: bytes) -> None:
        length = int.from_bytes(data[:2], "little")
        (place / "ids.json").write_bytes(data[2 : 2 + length])
        (place / "ids.safetensors").write_bytes(data[2 + length :])
        try:
            found = IdMap.load(place, "ids")
        except ValueError as error:  # as its documentation says
            raise ArtifactError(str(error)) from error
        if found.num_rows < 1 << 16:
            found.rows([1, 2, 3] if found.id_type == "int64" else ["a", "b"])

    seeds = []
    for values in ([5, 1, 9, -4], ["soup", "fish", "ü"]):
        IdMap.exact(values).save(place, "ids")
        description = (place / "ids.json").read_bytes()
        seeds.append(len(description).to_bytes(2, "little") + description + (place / "ids.safetensors").read_bytes())
        for path in place.iterdir():
            path.unlink()
    return Target("id maps", read, tuple(seeds))


def _snapshots(folder: Path) -> Target:
    """A snapshot's file of vectors, and its manifest made to fit."""
    place = folder / "snapshot"
    table = SnapshotTable(ids=pa.array([1, 2, 3]), vectors=torch.arange(12, dtype=torch.float32).reshape(3, 4))
    snapshot = Snapshot.write(place, facet="kge", tables={"user": table}, parents=[])
    manifest = json.loads((place / MANIFEST_NAME).read_bytes())
    (name,) = (name for name in manifest["files"] if name.endswith(".safetensors"))
    content = (snapshot.path / name).read_bytes()
    for path in (place / MANIFEST_NAME, place / name):
        os.chmod(path, 0o644)  # noqa: PTH101

    def read(data: bytes) -> None:
        (place / name).write_bytes(data)
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        text = json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        (place / MANIFEST_NAME).write_text(text, encoding="utf-8")
        found = Snapshot.load(place)
        found.vectors("user")

    return Target("snapshots", read, (content,))
