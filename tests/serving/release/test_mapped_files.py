"""Files that are changed under a served version: its rows are refused, and never sent with an OK status."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import stat
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from multifacet.artifacts import ArtifactError
from multifacet.serving import LookupServer, Release, ServingError, VersionNotLoadedError, publish

PINS = 7 * np.arange(300) - 500
ROWS = "lookup/pin_kge.rows"
IDS = "lookup/id_maps/pin.safetensors"


@pytest.fixture(scope="module", params=["grpc", "framed-unix"])
def transport(request, make_transport):
    return make_transport(request.param)


@pytest.fixture
def served(release, transport, tmp_path):
    path = tmp_path / "served"
    shutil.copytree(release.path, path)
    with LookupServer(transport.config(releases=(path,))) as server, transport.connect(server) as client:
        yield path, server, client


def _rows(client, version):
    return client.lookup(version, {"pin": PINS}).tables["pin_kge"].rows.copy()


def _health(server):
    with grpc.insecure_channel(server.address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status


def _write_in_place(path, *, keep_time=False):
    status = path.stat()
    changed = bytes(255 - byte for byte in path.read_bytes())
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(changed)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_over(served, new):
    for file in served.rglob("*"):
        file.chmod(0o755)
    subprocess.run(f"cp -r {new}/* {served}/", shell=True, check=True)  # noqa: S602


def _cut(path):
    path.chmod(0o644)
    os.truncate(path, 0)


CHANGES = {
    "cp -r": _copy_over,
    "rows written in place": lambda served, _: _write_in_place(served / ROWS),
    "ids written in place": lambda served, _: _write_in_place(served / IDS),
    "rows cut": lambda served, _: _cut(served / ROWS),
    "ids cut": lambda served, _: _cut(served / IDS),
    "rows longer": lambda served, _: os.truncate(served / ROWS, 1 << 20),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_version_whose_files_were_changed_is_refused_at_once(served, release, other_release, change, caplog):
    path, server, client = served
    _rows(client, release.version)
    with caplog.at_level(logging.ERROR):
        CHANGES[change](path, other_release.path)
        for _ in range(3):
            with pytest.raises(VersionNotLoadedError, match="changed under the server") as refused:
                _rows(client, release.version)
            assert refused.value.loaded == ()
        assert not client.describe().versions
        deadline = time.monotonic() + 5
        while _health(server) != health_pb2.HealthCheckResponse.NOT_SERVING and time.monotonic() < deadline:
            time.sleep(0.05)
    assert _health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert len([record for record in caplog.records if "was changed while it was served" in record.message]) == 1


def test_another_version_is_served_as_before_and_retiring_the_changed_one_heals(served, release, other_release):
    path, server, client = served
    server.load(other_release.path)
    before = _rows(client, other_release.version)
    _cut(path / ROWS)
    with pytest.raises(VersionNotLoadedError) as refused:
        _rows(client, release.version)
    assert refused.value.loaded == (other_release.version,)
    np.testing.assert_array_equal(_rows(client, other_release.version), before)
    time.sleep(1.2)
    assert _health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
    server.retire(release.version)
    time.sleep(1.2)
    assert _health(server) == health_pb2.HealthCheckResponse.SERVING


def test_a_change_that_sets_the_old_time_again_is_found_by_reading(served, release):
    path, _, client = served
    _write_in_place(path / ROWS, keep_time=True)
    time.sleep(1.5)
    with pytest.raises(VersionNotLoadedError, match="sha256"):
        _rows(client, release.version)


def _rename_over(path):
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    "change",
    [
        shutil.rmtree,
        lambda path: path.rename(path.with_name("elsewhere")),
        lambda path: (path / ROWS).unlink(),
        lambda path: (path / ROWS).chmod(0o400),
        lambda path: _rename_over(path / ROWS),
    ],
    ids=["removed", "moved", "a file removed", "another mode", "a file replaced by renaming"],
)
def test_what_leaves_the_mapped_bytes_alone_is_no_change(served, release, change):
    path, server, client = served
    before = _rows(client, release.version)
    change(path)
    time.sleep(1.2)
    np.testing.assert_array_equal(_rows(client, release.version), before)
    assert _health(server) == health_pb2.HealthCheckResponse.SERVING


def test_rows_are_right_or_refused_while_files_are_being_written(release, transport, tmp_path):
    for turn in range(8):
        path = tmp_path / f"served-{turn}"
        shutil.copytree(release.path, path)
        with LookupServer(transport.config(releases=(path,), verify=False)) as server, transport.connect(server) as client:
            before = _rows(client, release.version)
            writer = threading.Timer(0.02, _write_in_place, [path / ROWS])
            writer.start()
            refused = 0
            while refused < 3:
                try:
                    np.testing.assert_array_equal(_rows(client, release.version), before)
                except ServingError:
                    refused += 1
            writer.join()


def _socket_at(path):
    here = os.open(path.parent, os.O_RDONLY)  # a socket's path may have 107 bytes at most
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


@pytest.mark.parametrize("name", ["manifest.json", ROWS, IDS, "lookup/id_maps/pin.json", "ranker/upper.pt2"])
@pytest.mark.parametrize("make", [os.mkfifo, _socket_at, lambda path: path.symlink_to("/dev/zero")])
def test_a_release_has_plain_files_only_and_nothing_else_is_waited_for(release, tmp_path, name, make):
    path = tmp_path / "r"
    shutil.copytree(release.path, path)
    (path / name).unlink()
    make(path / name)
    started = time.monotonic()
    for verify in (True, False):
        with pytest.raises(ArtifactError, match=r"plain file"):
            Release.open(path, verify=verify)
    assert time.monotonic() - started < 5  # not waited for


def test_files_are_published_for_every_user_and_for_no_writer(model, tmp_path):
    before = os.umask(0o077)
    try:
        path = publish(model.path, tmp_path / "release", shards=2).path
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.rglob("*") if file.is_file()}
    assert modes == {0o444}
