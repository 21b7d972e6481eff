"""Rollouts of real servers that were stuck once: after a crash, a full disk, a link that moved, an impatient operator."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.harness.witness import write_witness
from multifacet.serving import (
    AdminClient,
    Limits,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    RolledBackError,
    Rollout,
    RolloutError,
    ServingError,
    UnavailableError,
    VersionNotLoadedError,
)
from multifacet.serving.rollout.rollout import InterruptedRolloutError
from multifacet.serving.server.deployed import Deployed
from multifacet.serving.server.versions import LoadedVersions

LIMITS = Limits(shadow_share=0, watch_s=0)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Deployment:
    """A lookup server and a ranker on Unix sockets, each with a state file, and their rollouts."""

    def __init__(self, folder: Path, releases):
        self.folder = folder
        for path in (folder / "rel",):
            path.mkdir()
        self.old, self.new = (self.copy(release, name) for release, name in zip(releases, ("old", "new"), strict=True))
        self.versions = tuple(release.version for release in releases)
        self.token = folder / "token"
        self.token.write_text("admin")
        self.rollout = Rollout(folder / "rollout", self.admin)
        self.exits = contextlib.ExitStack()
        self.servers = {}

    def copy(self, release, name):
        path = self.folder / "rel" / name
        shutil.copytree(release.path, path)
        return path

    def admin(self, address, timeout_s=5.0):
        return AdminClient(address, token_file=self.token, timeout_s=timeout_s)

    def address(self, name):
        return f"unix:{self.folder / name}"

    def config(self, name, *, release=None, **fields):
        kind = LookupConfig if name.startswith("l") else RankerConfig
        if kind is RankerConfig:
            fields = {"lookup": self.address("l"), "lookup_timeout_s": 5, "startup_timeout_s": 5, **fields}
        return kind(
            releases=(release or self.old,),
            listen=self.address(name),
            state_file=self.folder / f"{name}.state",
            admin_token_file=self.token,
            admin_releases=self.folder,
            drain_timeout_s=1,
            **fields,
        )

    def up(self, name, **fields):
        config = self.config(name, **fields)
        server = (LookupServer if name.startswith("l") else RankerServer)(config)
        self.servers[name] = server
        server.start()
        return server

    def kill(self, name):
        """As after SIGKILL: the sockets are gone, nothing was put in order."""
        self.servers.pop(name).stop(0)

    def restart(self, name, **fields):
        self.kill(name)
        return self.up(name, **fields)

    def start(self, **fields):
        addresses = {"rankers": [self.address("r")], "lookups": [self.address("l")]}
        return self.rollout.start(self.new, self.versions[1], **{"limits": LIMITS, **addresses, **fields})

    def to(self, step):
        self.start()
        while self.rollout.advance().done != step:
            pass

    def serves(self, version):
        """Whether every server serves this version, and the ranker scores with it."""
        with RankerClient(self.address("r"), timeout_s=5) as client:
            answer = client.rank({"user": 7}, {"pin": [1, 2]}, dense=np.array([[7, 1], [7, 2]], np.float32))
        assert (answer.ctr == 0.5).all()
        return answer.version == version and {server.status().current_version for server in self.servers.values()} == {version}


def health(address, service=""):
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status


def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    return [write_witness(folder / f"release-{number}", number) for number in (1, 2)]


@pytest.fixture
def deployment(releases, tmp_path):
    deployment = Deployment(tmp_path, releases)
    yield deployment
    for server in deployment.servers.values():
        server.stop(0)


@pytest.fixture
def running(deployment):
    deployment.up("l")
    deployment.up("r")
    return deployment


# --- 4: a ranker restarted in the middle -------------------------------------------------------------------------------------


def test_a_ranker_that_holds_the_new_version_and_lookup_servers_do_not_is_ready_after_a_restart(running):
    running.to("ranker_loaded")
    ranker = running.restart("r")
    assert set(ranker.versions) == set(running.versions)
    assert health(running.address("r")) == SERVING
    assert running.rollout.rollback().done == "rolled_back"
    assert running.serves(running.versions[0])


def test_admin_of_a_ranker_that_is_not_ready_is_up_and_a_rollback_heals_it(running):
    running.to("switched")
    running.kill("l")
    (running.folder / "l.state").unlink()  # its disk is lost: it comes back with the old version
    running.up("l")
    ranker = running.restart("r", startup_timeout_s=0.2)
    assert ranker.current_version == running.versions[1]
    assert health(running.address("r")) == NOT_SERVING
    with running.admin(running.address("r")) as admin:
        status = admin.status()
        assert (status.ready, "has not loaded" in status.not_ready_because) == (False, True)
    assert running.rollout.rollback().done == "rolled_back"
    until(lambda: health(running.address("r")) == SERVING)
    assert running.serves(running.versions[0])


# --- 5: a crash while a server loads ----------------------------------------------------------------------------------------


def test_a_server_that_is_killed_while_it_loads_its_second_release_remembers_both(tmp_path):
    class Killed(BaseException):
        pass

    def load(path):
        if path.name == "b" and crashes:
            raise Killed
        return path.name, path.name

    def boot():
        loaded = LoadedVersions("server")
        deployed = Deployed(loaded, load, state_file=tmp_path / "state")
        deployed.open([tmp_path / "a"])
        return loaded, deployed

    crashes = False
    _, deployed = boot()
    deployed.load(tmp_path / "b", current=True)
    crashes = True
    with pytest.raises(Killed):
        boot()
    crashes = False
    loaded, _ = boot()
    assert (loaded.versions, loaded.current) == (("a", "b"), "b")


# --- 6: a rollback interrupts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"shadow_share": 1, "shadow_timeout_s": 600}, {"shadow_share": 0, "watch_s": 600}])
def test_a_rollback_interrupts_a_wait_at_once(running, limits):
    running.start(limits=Limits(**limits))
    ended = []

    def advance_to_end():
        with contextlib.suppress(InterruptedRolloutError):
            while not Rollout(running.rollout.folder, running.admin).advance().is_over:
                pass
        ended.append(time.monotonic())

    advancing = threading.Thread(target=advance_to_end)
    advancing.start()
    until(lambda: running.rollout.state().doing == ("shadowed" if limits["shadow_share"] else "switched"))
    time.sleep(0.3)
    began = time.monotonic()
    assert running.rollout.rollback("impatient").done == "rolled_back"
    assert time.monotonic() - began < 5
    advancing.join(5)
    assert ended
    assert running.serves(running.versions[0])
    assert "impatient" in (running.rollout.folder / "audit.jsonl").read_text()


def test_a_rollback_interrupts_a_call_of_a_server_that_is_away(running):
    running.to("ranker_loaded")
    running.kill("l")
    slow = Rollout(running.rollout.folder, lambda address: running.admin(address, timeout_s=60))

    def advance():
        with pytest.raises(InterruptedRolloutError):
            slow.advance()

    advancing = threading.Thread(target=advance)
    advancing.start()
    time.sleep(0.5)
    running.up("l")
    began = time.monotonic()
    running.rollout.rollback()
    advancing.join(5)
    assert not advancing.is_alive()
    assert time.monotonic() - began < 8


# --- 7: links, lost disks, wedges -------------------------------------------------------------------------------------------


def test_a_link_that_is_pointed_elsewhere_breaks_neither_restart_nor_rollback(deployment):
    link = deployment.folder / "current"
    link.symlink_to(deployment.old)
    deployment.up("l", release=link)
    deployment.up("r", release=link)
    deployment.start()
    link.unlink()
    link.symlink_to(deployment.new)
    for name in ("l", "r"):
        deployment.restart(name, release=link)
    assert deployment.serves(deployment.versions[0])
    while not deployment.rollout.advance().is_over:
        pass
    assert deployment.serves(deployment.versions[1])
    assert deployment.rollout.rollback().done == "rolled_back"
    assert deployment.serves(deployment.versions[0])


def test_a_ranker_whose_disk_is_lost_does_not_serve_the_old_version_and_advance_heals_it(running):
    running.to("switched")
    running.kill("r")
    (running.folder / "r.state").unlink()
    ranker = running.up("r", startup_timeout_s=0.2)
    assert ranker.current_version == running.versions[0]
    assert health(running.address("r")) == NOT_SERVING
    while not running.rollout.advance().is_over:
        pass
    until(lambda: health(running.address("r")) == SERVING)
    assert running.serves(running.versions[1])


def test_a_lookup_server_whose_disk_is_lost_may_wait_to_be_told(running):
    running.to("retired")
    running.kill("l")
    (running.folder / "l.state").unlink()
    running.up("l", first_start="wait")
    assert health(running.address("l")) == NOT_SERVING
    until(lambda: health(running.address("r")) == NOT_SERVING)
    running.rollout.advance()  # it is over: servers that were replaced are given what the others have
    until(lambda: health(running.address("r")) == health(running.address("l")) == SERVING)
    assert running.serves(running.versions[1])
    with pytest.raises(RolloutError, match="is over"):
        running.rollout.advance()


def test_a_rollout_whose_old_release_is_gone_and_new_one_too_where_it_counts_is_abandoned(running):
    running.to("ranker_loaded")
    shutil.rmtree(running.new)
    with pytest.raises(ServingError, match="no artefact"):
        running.rollout.advance()
    running.kill("r")
    (running.folder / "r.state").unlink()
    running.up("r")
    assert running.rollout.abandon("the release is gone").done == "abandoned"
    assert running.serves(running.versions[0])
    with pytest.raises(RolloutError, match="serve version"):  # and another may start
        running.rollout.start(running.old, running.versions[0], rankers=[running.address("r")], lookups=[running.address("l")])


def test_a_host_that_vanished_is_left_out_when_a_rollout_is_abandoned(running):
    running.up("l2")
    addresses = [running.address("l"), running.address("l2")]
    running.start(lookups=addresses)
    running.rollout.advance()
    running.kill("l2")
    impatient = Rollout(running.rollout.folder, lambda address: running.admin(address, timeout_s=0.5))
    with pytest.raises(UnavailableError):
        impatient.advance()
    with pytest.raises(UnavailableError):
        impatient.rollback()
    state = impatient.abandon()
    assert (state.done, state.left_out) == ("abandoned", (running.address("l2"),))
    assert running.serves(running.versions[0])
    running.start()  # without it


def test_start_asks_the_lookup_servers(running, releases):
    with pytest.raises(RolloutError, match="is a lookup, and is listed as a ranker"):
        running.start(lookups=[running.address("r")], rankers=[running.address("l")])
    running.up("l2", release=running.new)
    with pytest.raises(RolloutError, match=r"which lookup server unix:.*l2 does not hold"):
        running.start(lookups=[running.address("l"), running.address("l2")])
    with pytest.raises(UnavailableError):
        Rollout(running.rollout.folder, lambda address: running.admin(address, timeout_s=0.3)).start(
            running.new, running.versions[1], rankers=[running.address("r")], lookups=[running.address("nobody")]
        )
    assert running.rollout.state() is None


def test_a_state_that_cannot_be_read_is_put_aside_by_a_command(running):
    running.to("switched")
    (running.rollout.folder / "rollout.json").write_text("{")
    for command in (running.rollout.advance, running.rollout.rollback):
        with pytest.raises(RolloutError, match="abandon"):
            command()
    with pytest.raises(RolloutError, match="put aside"):
        running.rollout.abandon()
    addresses = {"rankers": [running.address("r")], "lookups": [running.address("l")]}
    assert running.rollout.adopt(running.old, running.versions[0], **addresses).is_over
    assert running.serves(running.versions[0])


def test_a_changed_version_is_healed_by_advance(running):
    running.to("retired")
    table = next((running.new / "lookup").glob("*.rows"))
    table.chmod(0o644)
    content = table.read_bytes()
    table.write_bytes(bytes(255 - byte for byte in content))
    until(lambda: health(running.address("l")) == NOT_SERVING)
    table.unlink()  # an intact copy under the same name
    table.write_bytes(content)
    assert running.rollout.advance().done == "retired"
    until(lambda: health(running.address("l")) == SERVING)
    assert running.serves(running.versions[1])


# --- 8: what counts as a failure --------------------------------------------------------------------------------------------


def test_one_failed_request_among_many_does_not_roll_back_and_refused_ones_do(running):
    running.start(limits=Limits(shadow_share=0, watch_s=1.5, min_requests=5))
    for _ in range(2):
        running.rollout.advance()
    running.rollout.advance()
    stop = threading.Event()

    def ask_wrongly():
        with RankerClient(running.address("r"), timeout_s=5) as client:
            while not stop.wait(0.01):
                wrong = running.servers["r"].current_version == running.versions[1]
                ids = {"board": 7} if wrong else {"user": 7}  # what only the old version reads
                with contextlib.suppress(ServingError):
                    client.rank(ids, {"pin": [1]}, dense=np.array([[7, 1]], np.float32))

    asking = threading.Thread(target=ask_wrongly)
    asking.start()
    try:
        with pytest.raises(RolledBackError, match="were refused as wrong since the switch"):
            running.rollout.advance()
    finally:
        stop.set()
        asking.join()
    assert running.serves(running.versions[0])


def test_choose_checks_what_a_start_checks(deployment):
    deployment.up("l", max_ids_per_request=40)
    deployment.up("r", max_candidates=20)
    deployment.servers["l"].load(deployment.new, current=False)
    deployment.servers["r"].load(deployment.new)
    deployment.kill("l")
    deployment.up("l", max_ids_per_request=30)
    with pytest.raises(VersionNotLoadedError, match="needs lookups of up to 40 ids"):
        deployment.servers["r"].choose(deployment.versions[1])
    assert deployment.servers["r"].current_version == deployment.versions[0]


# --- 9: a full disk, impatient callers --------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    def fill():
        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("multifacet.artifacts.files.os.fsync", full)

    return fill


def test_a_full_disk_changes_nothing_leaves_nothing_and_does_not_stop_a_restart(running, full_disk, monkeypatch):
    server = running.servers["l"]
    before = (running.folder / "l.state").read_bytes()
    full_disk()
    with pytest.raises(ServingError, match="nothing was changed"):
        server.load(running.new)
    assert server.versions == (running.versions[0],)
    assert (running.folder / "l.state").read_bytes() == before
    assert not list(running.folder.glob(".l.state.*"))
    running.restart("l")
    assert running.serves(running.versions[0])
    with pytest.raises(RolloutError, match="cannot be written"):
        running.start()
    monkeypatch.undo()
    running.servers["l"].load(running.new, current=False)
    assert set(running.servers["l"].versions) == set(running.versions)


def test_a_first_start_on_a_full_disk_serves(deployment, full_disk):
    full_disk()
    deployment.up("l")
    assert health(deployment.address("l")) == SERVING


def test_a_loaded_release_is_not_opened_again(running, monkeypatch):
    opened = []
    server = running.servers["l"]
    load = server._deployed._load
    monkeypatch.setattr(server._deployed, "_load", lambda path: opened.append(path) or load(path))
    with running.admin(running.address("l")) as admin:
        for _ in range(3):
            admin.load(running.old)
        assert opened == []
        admin.load(running.new)
        admin.load(running.new)
    assert len(opened) == 1


def test_five_impatient_callers_hold_no_worker_and_open_a_release_once(running, monkeypatch):
    opened, go_on = [], threading.Event()
    server = running.servers["l"]
    load = server._deployed._load

    def slow(path):
        opened.append(path)
        go_on.wait(20)
        return load(path)

    monkeypatch.setattr(server._deployed, "_load", slow)

    def ask():
        with running.admin(running.address("l"), timeout_s=30) as admin:
            admin.load(running.new)

    callers = [threading.Thread(target=ask) for _ in range(5)]
    for caller in callers:
        caller.start()
    until(lambda: opened)
    time.sleep(0.3)
    assert running.serves(running.versions[0])
    assert health(running.address("l")) == SERVING
    with running.admin(running.address("l")) as admin:  # and the operator is answered
        admin.choose(running.versions[0])
    go_on.set()
    for caller in callers:
        caller.join(10)
    assert len(opened) == 1
    assert set(server.versions) == set(running.versions)
