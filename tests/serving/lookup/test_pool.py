"""Several processes behind one address: the same rows, one state, and none is asked for what it does not hold."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

from multifacet.artifacts import ArtifactError
from multifacet.serving import (
    LookupConfig,
    LookupServer,
    ServerProcess,
    ServingError,
    VersionNotLoadedError,
    connect_lookup,
    publish,
)
from multifacet.serving.lookup.worker import main

IDS = {"pin": np.arange(-500, 1600, 7), "user": np.arange(1000, 1040)}


@pytest.fixture
def config(release, tmp_path):
    return LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path / 'frames.sock'}", processes=2)


def _wait(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _same(one, other):
    return all(np.array_equal(one.tables[name].rows, other.tables[name].rows) for name in one.tables)


def _counted(server, name):
    text = generate_latest(server.metrics.registry).decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"multifacet_lookup_{name}"))


def test_every_worker_answers_as_the_server_does_and_all_are_counted(config, release):
    with LookupServer(config) as server, connect_lookup(server.address, timeout_s=30) as direct:
        expected = direct.lookup(release.version, IDS)
        clients = [connect_lookup(server.framed_address, timeout_s=30) for _ in range(4)]
        for client in clients:
            for _ in range(5):
                assert _same(client.lookup(release.version, IDS), expected)
            assert client.describe() == direct.describe()
            with pytest.raises(VersionNotLoadedError):
                client.lookup("0" * 64, IDS)
        counts = [worker.ask({"do": "count"}, 30) for worker in server._pool._workers]
        assert [count["connections"] for count in counts] == [2, 2]
        assert server._framed.num_connections == 0
        assert _counted(server, f'version_requests_total{{version="{release.version}"}}') == 21
        assert _counted(server, "worker_processes ") == 2
        for client in clients:
            client.close()


def test_a_worker_that_is_killed_is_replaced_and_no_row_is_wrong(config, release):
    with LookupServer(config) as server, connect_lookup(server.framed_address, timeout_s=30) as client:
        expected = client.lookup(release.version, IDS)
        before = server._pool.pids
        counted = _counted(server, "rows_total")
        stop, wrong, answered, failed = threading.Event(), [], [], []

        def ask():
            with connect_lookup(server.framed_address, timeout_s=30) as other:
                while not stop.is_set():
                    try:
                        answer = other.lookup(release.version, IDS)
                    except ServingError as error:
                        failed.append(error)
                        time.sleep(0.01)
                        continue
                    answered.append(time.monotonic())
                    if not _same(answer, expected):
                        wrong.append(answer)

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        for pid in before:
            _wait(lambda: server._pool.num_alive == 2)
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            _wait(lambda pid=pid: pid not in server._pool.pids and server._pool.num_alive == 2)
            _wait(lambda killed=killed: answered[-1] > killed)
        stop.set()
        for asker in askers:
            asker.join()
        assert not wrong
        assert len(failed) <= 2 * len(askers)  # what was under way when they died
        assert not set(before) & set(server._pool.pids)
        assert server._pool.num_replaced == 2
        assert _counted(server, "rows_total") > counted  # what the dead ones had counted by the last scrape stays


def test_a_version_is_published_once_every_worker_holds_it(config, model, tmp_path, release):
    other = publish(model.path, tmp_path / "other", precision="int8", layout="placed")
    with LookupServer(config) as server:
        clients = [connect_lookup(server.framed_address, timeout_s=30) for _ in range(2)]
        stop, refused = threading.Event(), []

        def ask():
            described = False
            while not stop.is_set():
                described = described or other.version in server.versions
                was = described
                for client in clients:
                    try:
                        client.lookup(other.version, IDS)
                    except VersionNotLoadedError:
                        if was:
                            refused.append(1)

        asker = threading.Thread(target=ask)
        asker.start()
        server.load(other.path)
        time.sleep(0.3)
        stop.set()
        asker.join()
        assert not refused
        server.retire(release.version)
        for client in clients:
            with pytest.raises(VersionNotLoadedError):
                client.lookup(release.version, IDS)
            client.lookup(other.version, IDS)
            client.close()
        os.kill(server._pool.pids[0], signal.SIGKILL)
        _wait(lambda: server._pool.num_replaced == 1)
        for worker in server._pool._workers:  # a new one holds what the others do, and no more
            assert list(worker.ask({"do": "versions"}, 30)["versions"]) == [other.version]


def test_a_release_that_a_worker_refuses_is_not_loaded(config, model, tmp_path, monkeypatch):
    other = publish(model.path, tmp_path / "other", precision="int8")
    with LookupServer(config) as server:
        tell = server._pool._tell
        monkeypatch.setattr(
            server._pool, "_tell", lambda place, worker, version: "no memory" if place else tell(place, worker, version)
        )
        with pytest.raises(ArtifactError, match=r"a worker process refuses .*other: no memory"):
            server.load(other.path)
        assert other.version not in server.versions
        for _ in range(2):
            with connect_lookup(server.framed_address, timeout_s=30) as client, pytest.raises(VersionNotLoadedError):
                client.lookup(other.version, IDS)


def test_a_worker_that_says_nothing_is_killed_and_replaced(config, monkeypatch):
    monkeypatch.setattr("multifacet.serving.lookup.pool._COUNT_S", 0.3)
    with LookupServer(config) as server:
        stopped = server._pool.pids[0]
        os.kill(stopped, signal.SIGSTOP)
        server._pool.tallies()
        _wait(lambda: server._pool.num_replaced == 1)
        assert stopped not in server._pool.pids


def test_files_that_are_changed_are_refused_by_every_worker(model, tmp_path):
    release = publish(model.path, tmp_path / "release")
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path / 'frames.sock'}", processes=2)
    with LookupServer(config) as server:
        clients = [connect_lookup(server.framed_address, timeout_s=30) for _ in range(2)]
        expected = [client.lookup(release.version, IDS) for client in clients]
        shutil.copytree(release.path, tmp_path / "copy")
        rows = release.path / "lookup" / "pin_kge.rows"
        rows.chmod(0o644)
        with rows.open("r+b") as stream:
            stream.write(b"changed")
        for client in clients:
            with pytest.raises(VersionNotLoadedError):
                client.lookup(release.version, IDS)
        _wait(lambda: release.version not in server._pool._held)
        server.load(tmp_path / "copy")  # an intact copy takes its place
        for client, before in zip(clients, expected, strict=True):
            assert _same(client.lookup(release.version, IDS), before)
            client.close()


def test_workers_end_with_the_server_however_it_ends(config, tmp_path):
    process = ServerProcess("lookup", config, tmp_path)
    process.wait_until_ready()

    def children():
        found = []
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if f"PPid:\t{process.pid}\n" in status.read_text():
                    found.append(int(status.parent.name))
            except OSError:
                continue
        return found

    workers = children()
    assert len(workers) == 2
    with connect_lookup(f"framed:{config.framed_listen}", timeout_s=30) as client:
        client.describe()
    process.kill()
    _wait(
        lambda: (
            not any(
                Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in workers
            )
        )
    )
    with ServerProcess("lookup", config, tmp_path) as again:
        assert again.terminate() == 0


def test_processes_without_frames_do_nothing_and_are_refused(release):
    with pytest.raises(ValueError, match="processes answer frames"):
        LookupConfig(releases=(release.path,), processes=2)


def test_a_worker_that_nobody_started_properly_says_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        main(["--config-json", "{}"])
    assert "--commands" in capsys.readouterr().err
