"""A rollout may be advanced, taken back, killed and run again in any order: some version is always whole."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from multifacet.serving import (
    InvalidRequestError,
    Limits,
    OverloadedError,
    RolledBackError,
    Rollout,
    RolloutError,
    VersionNotLoadedError,
)
from multifacet.serving.core.document import FORWARD
from multifacet.serving.protocol import admin_pb2
from multifacet.serving.ranker.shadow import Shadow
from multifacet.serving.rollout.journal import Journal
from multifacet.serving.server.deployed import Deployed, inside
from multifacet.serving.server.versions import LoadedVersions

LIMITS = Limits(shadow_share=1, min_compared=10, shadow_timeout_s=1, watch_s=0)


class Killed(BaseException):
    """The controller's process ends here."""


class Fleet:
    """Rankers and lookup servers: the servers' own bookkeeping and state files, without sockets and models."""

    def __init__(self, folder: Path, releases: dict[str, Path]):
        self.folder = folder
        self.releases = releases
        self.calls_left: int | None = None
        self.differences: dict[str, float] = {}
        self.servers: dict[str, Bookkeeping] = {}
        for address in ("lookup-0", "lookup-1", "ranker-0", "ranker-1"):
            self.restart(address, [releases["old"]])

    def restart(self, address: str, configured: list[Path]) -> None:
        self.servers[address] = Bookkeeping(self, address, configured)

    @contextlib.contextmanager
    def connect(self, address):
        yield Remote(self, self.servers[address])

    def named(self, role: str):
        return [server for address, server in self.servers.items() if address.startswith(role)]


class Bookkeeping:
    def __init__(self, fleet: Fleet, address: str, configured: list[Path]):
        self.fleet = fleet
        self.role = address.partition("-")[0]
        self.loaded: LoadedVersions[str] = LoadedVersions(address)
        self.deployed = Deployed(
            self.loaded,
            lambda path: (path.read_text(), path.read_text()),
            check=self.check,
            state_file=fleet.folder / f"{address}.json",
        )
        self.shadow_version, self.shadow_share = "", 0.0
        self.deployed.open(configured)

    def check(self, version):
        if self.role == "ranker":
            for lookup in self.fleet.named("lookup"):
                lookup.loaded.get(version)

    def status(self):
        difference = self.fleet.differences.get(self.shadow_version, 0.0)
        return admin_pb2.ServerStatus(
            role=self.role,
            current_version=self.loaded.current,
            remembers=self.deployed.state.known,
            versions=[
                admin_pb2.VersionStatus(version=version, path=str(self.deployed.path(version)))
                for version in self.loaded.versions
            ],
            shadow=admin_pb2.ShadowReport(
                version=self.shadow_version,
                share=self.shadow_share,
                requests=10,
                compared=10 if self.shadow_version else 0,
                mean_abs_difference=difference,
            ),
        )


class Remote:
    """Calls of a controller, which may be killed at any of them: before it takes effect, or after."""

    def __init__(self, fleet: Fleet, server: Bookkeeping):
        self.fleet = fleet
        self.server = server

    def load(self, path):
        return self._call(lambda: self.server.deployed.load(path))

    def choose(self, version):
        return self._call(lambda: self.server.deployed.choose(version))

    def retire(self, version):
        return self._call(lambda: self.server.deployed.retire(version))

    def shadow(self, version, share):
        def change():
            self.server.shadow_version, self.server.shadow_share = version, share

        return self._call(change)

    def status(self):
        return self._call(lambda: None)

    def _call(self, change):
        self._count()
        change()
        self._count()
        return self.server.status()

    def _count(self):
        if self.fleet.calls_left is not None:
            if self.fleet.calls_left == 0:
                raise Killed
            self.fleet.calls_left -= 1


class RolloutMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        memory = Path("/dev/shm")  # noqa: S108  (every step is fsynced, which a disk takes milliseconds for)
        self.temporary = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        folder = Path(self.temporary.name)
        self.releases = {name: folder / name for name in ("old", "new", "newer")}
        for name, path in self.releases.items():
            path.write_text(f"version-{name}")
        self.fleet = Fleet(folder, self.releases)
        self.rollout = Rollout(folder / "rollout", self.fleet.connect, sleep=lambda _: None)
        self.log = b""

    def teardown(self):
        if hasattr(self, "temporary"):
            self.temporary.cleanup()

    def _run(self, action, calls):
        self.fleet.calls_left = calls
        try:
            return action()
        except (Killed, RolloutError):
            return None
        finally:
            self.fleet.calls_left = None

    @rule(name=st.sampled_from(["old", "new", "newer"]), calls=st.none() | st.integers(0, 6))
    def start(self, name, calls):
        addresses = {"rankers": ["ranker-0", "ranker-1"], "lookups": ["lookup-0", "lookup-1"]}
        self._run(lambda: self.rollout.start(self.releases[name], f"version-{name}", limits=LIMITS, **addresses), calls)

    @rule(calls=st.none() | st.integers(0, 30))
    def advance(self, calls):
        self._run(self.rollout.advance, calls)

    @rule(calls=st.none() | st.integers(0, 30))
    def rollback(self, calls):
        before = self.rollout.state()
        after = self._run(self.rollout.rollback, calls)
        if before is not None and calls is None:
            assert after.done == "rolled_back"
            if before.done != "rolled_back":
                self._serves_only(before.old_version)

    @rule()
    def finish(self):
        """Whatever was interrupted can be brought to its end."""
        state = self.rollout.state()
        if state is None or state.is_over:
            return
        while not state.is_over:
            state = self.rollout.advance()
        self._serves_only(state.new_version if state.done == "retired" else state.old_version)

    @rule(address=st.sampled_from(["lookup-0", "lookup-1", "ranker-0", "ranker-1"]))
    def kill_a_server(self, address):
        self.fleet.restart(address, [self.releases["old"]])  # started again with the configuration of the first day

    @rule()
    def the_new_version_scores_otherwise(self):
        state = self.rollout.state()
        if state is None or state.done not in ("planned", "ranker_loaded", "lookup_loaded") or state.doing is not None:
            return
        self.fleet.differences[state.new_version] = 0.5
        with pytest.raises(RolledBackError, match=r"scores differ by 0\.5"):  # noqa: PT012
            for _ in range(3):
                self.rollout.advance()
        self.fleet.differences.clear()
        self._serves_only(state.old_version)

    def _serves_only(self, version):
        for server in self.fleet.servers.values():
            assert server.loaded.versions == (version,)
            assert server.loaded.current == version

    @invariant()
    def every_ranker_s_version_is_on_every_lookup_server(self):
        if not hasattr(self, "fleet"):
            return
        for ranker in self.fleet.named("ranker"):
            for lookup in self.fleet.named("lookup"):
                assert ranker.loaded.current in lookup.loaded.versions

    @invariant()
    def the_audit_log_only_grows(self):
        path = self.rollout.folder / "audit.jsonl" if hasattr(self, "rollout") else None
        if path is not None and path.exists():
            content = path.read_bytes()
            assert content.startswith(self.log)
            self.log = content


TestRollout = RolloutMachine.TestCase
TestRollout.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)


def test_steps_in_their_order(tmp_path):
    releases = {name: tmp_path / name for name in ("old", "new")}
    for name, path in releases.items():
        path.write_text(f"version-{name}")
    fleet = Fleet(tmp_path, releases)
    rollout = Rollout(tmp_path / "rollout", fleet.connect)
    plan = {"rankers": ["ranker-0", "ranker-1"], "lookups": ["lookup-0", "lookup-1"]}
    with pytest.raises(RolloutError, match="no rollout: start one"):
        rollout.advance()
    state = rollout.start(releases["new"], "version-new", limits=LIMITS, **plan)
    assert rollout.start(releases["new"], "version-new", limits=LIMITS, **plan) == state
    seen = [(state.done, *(_held(fleet)))]
    while not state.is_over:
        state = rollout.advance()
        seen.append((state.done, *(_held(fleet))))
    old, new, both = ("version-old",), ("version-new",), ("version-old", "version-new")
    assert seen == [
        ("planned", old, "version-old", old),
        ("ranker_loaded", both, "version-old", old),
        ("lookup_loaded", both, "version-old", both),
        ("shadowed", both, "version-old", both),
        ("switched", both, "version-new", both),
        ("retired", new, "version-new", new),
    ]
    assert [step for step, *_ in seen] == list(FORWARD)
    with pytest.raises(RolloutError, match="is over"):
        rollout.advance()
    with pytest.raises(RolloutError, match="serve version version-new already"):
        rollout.start(releases["new"], "version-new", **plan)
    assert rollout.rollback().done == "rolled_back"  # though the old was retired
    assert _held(fleet) == (old, "version-old", old)


def test_a_rollback_after_an_adoption_keeps_what_is_served_and_ends(tmp_path):
    releases = {"old": tmp_path / "old"}
    releases["old"].write_text("version-old")
    fleet = Fleet(tmp_path, releases)
    rollout = Rollout(tmp_path / "rollout", fleet.connect)
    plan = {"rankers": ["ranker-0", "ranker-1"], "lookups": ["lookup-0", "lookup-1"]}
    rollout.adopt(releases["old"], "version-old", **plan)
    assert rollout.rollback().is_over
    assert _held(fleet) == (("version-old",), "version-old", ("version-old",))


WAITING = """
import sys
from pathlib import Path
from multifacet.serving.rollout.journal import Journal

with Journal(Path(sys.argv[1])).taking_over("rollback", "impatient"):
    print("has the turn", flush=True)
"""


def test_a_rollback_that_is_killed_while_it_waits_for_its_turn_stops_nobody(tmp_path):
    releases = {name: tmp_path / name for name in ("old", "new")}
    for name, path in releases.items():
        path.write_text(f"version-{name}")
    fleet = Fleet(tmp_path, releases)
    rollout = Rollout(tmp_path / "rollout", fleet.connect)
    plan = {"rankers": ["ranker-0", "ranker-1"], "lookups": ["lookup-0", "lookup-1"]}
    rollout.start(releases["new"], "version-new", limits=LIMITS, **plan)
    journal = Journal(rollout.folder)
    command = [sys.executable, "-c", WAITING, str(rollout.folder)]
    with journal.turn(), subprocess.Popen(command, stdout=subprocess.PIPE) as waiting:
        deadline = time.monotonic() + 60
        while not journal.wanted():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "impatient" in journal.wanted()
        waiting.kill()
        assert waiting.communicate()[0] == b""
    assert (rollout.folder / "wanted.json").exists()
    assert journal.wanted() == ""
    assert rollout.advance().done == "ranker_loaded"
    assert rollout.rollback().is_over
    assert not (rollout.folder / "wanted.json").exists()


def _held(fleet):
    rankers = {(server.loaded.versions, server.loaded.current) for server in fleet.named("ranker")}
    lookups = {server.loaded.versions for server in fleet.named("lookup")}
    assert len(rankers) == len(lookups) == 1
    return *next(iter(rankers)), next(iter(lookups))


def test_a_version_is_retired_after_its_last_reader():
    loaded: LoadedVersions[str] = LoadedVersions("server")
    deployed = Deployed(loaded, lambda path: (path.name, path.name))
    deployed.open([Path("a"), Path("b")])
    with loaded.lease("a") as (version, _):
        assert (version, loaded.num_readers("a")) == ("a", 1)
        with pytest.raises(OverloadedError, match="1 readers"):
            deployed.retire("a", timeout_s=0.05)
        assert set(loaded.versions) == {"a", "b"}
    deployed.retire("a", timeout_s=0.05)
    deployed.retire("a", timeout_s=0.05)  # twice is once
    assert loaded.versions == ("b",)
    with pytest.raises(VersionNotLoadedError), loaded.lease("a"):
        pass


def test_releases_are_loaded_from_the_server_s_folder_only(tmp_path):
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "link").symlink_to("/etc")
    assert inside(str(tmp_path / "releases" / "a"), tmp_path / "releases") == tmp_path / "releases" / "a"
    for path in ("/etc/passwd", f"{tmp_path}/releases/../other", f"{tmp_path}/releases/link/passwd"):
        with pytest.raises(InvalidRequestError, match="is not below"):
            inside(path, tmp_path / "releases")


def test_shadow_differences_are_those_of_the_scores():
    shadow = Shadow()
    shadow.set("b", 1.0)
    generator = np.random.default_rng(0)
    current, other = generator.random((2, 7, 2), np.float32)
    shadow.offer(current, lambda: other)
    shadow.offer(current, lambda: 1 / 0)
    deadline = time.monotonic() + 5
    while (report := shadow.report()).requests + report.failed < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    shadow.close()
    assert (report.requests, report.compared, report.failed) == (1, 7, 1)
    assert report.mean_abs_difference == pytest.approx(np.abs(other - current).mean(), rel=1e-5)
    assert report.mean_difference == pytest.approx((other - current).mean(), rel=1e-5)
