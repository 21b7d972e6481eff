"""Rollouts of real processes that are killed, or lose their disks, at random moments, and are ended by commands alone."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from benchmarks.harness.forked import FORKS, ForkedServer
from benchmarks.harness.load import Asker
from benchmarks.harness.witness import write_witness
from multifacet.serving import (
    AdminClient,
    Limits,
    LookupConfig,
    RankerClient,
    RankerConfig,
    Rollout,
    RolloutError,
    ServingError,
)

Part = Literal["ranker", "lookup-0", "lookup-1", "controller"]
PARTS: tuple[Part, ...] = ("ranker", "lookup-0", "lookup-1", "controller")
SERVERS = PARTS[:3]
COMMANDS = ("advance", "rollback", "abandon")
MAX_COMMANDS = 12
_RELEASES = 3
_COMMAND_S = 60.0
_SERVED_S = 5.0


@dataclass
class Run:
    """One rollout under kills.

    Attributes:
        number: Its seed.
        killed: What was killed, or lost its disk, in turn.
        commands: What it took to end it, and how each command ended.
        fault: What is wrong at the end; empty if a version is served by all servers.
        seconds: How long it took.
    """

    number: int
    killed: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    fault: str = ""
    seconds: float = 0.0


class Deployment:
    """Two lookup servers that hold the same, a ranker, a client that asks it all the time, and the folder of their rollouts.

    Args:
        folder: An empty folder.

    Attributes:
        releases: What is rolled out in turns.
        asker: The client.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._token = folder / "token"
        self._token.write_text("kills")
        self.releases = [write_witness(folder / f"release-{number}", number) for number in range(1, _RELEASES + 1)]
        self._states: dict[Part, Path] = {name: folder / f"{name}.state" for name in SERVERS}
        self._running = ExitStack()
        lookups = ",".join(f"framed:unix:{folder / name}.frames" for name in ("lookup-0", "lookup-1"))
        self._servers = {
            "lookup-0": ForkedServer(LookupConfig(**self._fields("lookup-0"), framed_listen=f"unix:{folder}/lookup-0.frames")),
            "lookup-1": ForkedServer(LookupConfig(**self._fields("lookup-1"), framed_listen=f"unix:{folder}/lookup-1.frames")),
            "ranker": ForkedServer(RankerConfig(**self._fields("ranker"), lookup=lookups, lookup_timeout_s=5)),
        }
        self.asker = Asker(self._servers["ranker"].address, interval_s=0.02)

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for server in self._servers.values():
                started.enter_context(server)
            self._running = started.pop_all()
        self.asker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.asker.stop()
        self._running.close()

    def run(self, number: int) -> Run:
        """Roll out another version, kill one part or two on the way, give commands until it is over, and look."""
        chooser = random.Random(number)  # noqa: S311
        run = Run(number)
        began = time.monotonic()
        try:
            self._start(number)
        except (ServingError, RolloutError) as error:
            run.fault = f"cannot start: {error}"
            return run
        victims = chooser.sample(PARTS, chooser.choice((1, 1, 2)))
        while not self._is_over() and len(run.commands) < MAX_COMMANDS:
            command = chooser.choices(COMMANDS, (6, 3, 1))[0] if run.commands else "advance"
            run.commands.append(self._command(command, chooser, victims, run))
        if not self._is_over():
            run.fault = "no command ended it"
        else:
            run.fault = self._wait_until_served()
            while run.fault and len(run.commands) < MAX_COMMANDS:  # a server may have lost its disk at the very end
                run.commands.append(self._command("advance", chooser, [], run))
                run.fault = self._wait_until_served()
        run.seconds = time.monotonic() - began
        return run

    def _fields(self, name: Part) -> dict[str, object]:
        return {
            "releases": (self.releases[0].path,),
            "listen": f"unix:{self._folder / name}.sock",
            "state_file": self._states[name],
            "ready_file": self._folder / f"{name}.ready",
            "admin_token_file": self._token,
            "admin_releases": self._folder,
            "drain_timeout_s": 2.0,
        }

    def _start(self, number: int) -> None:
        state = self.rollout().state()
        served = state.final_version if state is not None else self.releases[0].version
        new = self.releases[(self._index(served) + 1 + number % (_RELEASES - 1)) % _RELEASES]
        limits = Limits(
            shadow_share=0 if number % 3 else 1, min_compared=9, shadow_timeout_s=2, watch_s=0.1, max_failure_rate=1
        )
        addresses = {name: server.address for name, server in self._servers.items()}
        lookups = [addresses["lookup-0"], addresses["lookup-1"]]
        self.rollout().start(new.path, new.version, rankers=[addresses["ranker"]], lookups=lookups, limits=limits)

    def _index(self, version: str) -> int:
        return next(place for place, release in enumerate(self.releases) if release.version == version)

    def rollout(self) -> Rollout:
        """The deployment's rollouts."""
        return _rollout(self._folder)

    def _is_over(self) -> bool:
        state = self.rollout().state()
        return state is not None and state.is_over

    def _command(self, command: str, chooser: random.Random, victims: list[Part], run: Run) -> str:
        process = FORKS.Process(target=_give, args=(self._folder, command), daemon=True)
        process.start()
        while victims:
            process.join(chooser.uniform(0.0, 0.5))
            victim = victims.pop()
            if victim == "controller":
                run.killed.append(victim)
                process.kill()
            else:
                loses_disk = chooser.random() < 0.25
                run.killed.append(f"{victim} and its disk" if loses_disk else victim)
                if loses_disk:
                    self._states[victim].unlink(missing_ok=True)
                self._servers[victim].restart(wait=False)
        process.join(_COMMAND_S)
        if process.is_alive():
            process.kill()
            process.join()
            return f"{command}: too long"
        return f"{command}: {process.exitcode}"

    def _wait_until_served(self) -> str:
        """What is wrong with how the fleet serves; waits for servers that are still starting."""
        deadline = time.monotonic() + _SERVED_S
        while True:
            fault = self._fault()
            if not fault or time.monotonic() > deadline:
                return fault
            time.sleep(0.1)

    def _fault(self) -> str:
        state = self.rollout().state()
        if state is None:
            return "the rollout's state is gone"
        version = state.final_version
        try:
            for name, server in self._servers.items():
                with AdminClient(server.address, token_file=self._token, timeout_s=2) as admin:
                    status = admin.status()
                if status.current_version != version or not status.ready:
                    return f"{name} serves {status.current_version[:12]}, not {version[:12]}: {status.not_ready_because}"
            number = self._index(version) + 1
            with RankerClient(self._servers["ranker"].address, timeout_s=2) as client:
                pins = np.arange(9)
                dense = np.stack([np.full(9, 7), pins], axis=1)
                answer = client.rank({"user": 7}, {"pin": pins}, dense=dense)
        except ServingError as error:
            return str(error)
        if answer.version != version or (answer.ctr != 0.5).any() or (answer.cvr != 0.5).any():
            return f"scores of {answer.version[:12]} are not those of release {number}: {answer.ctr.tolist()}"
        return ""


def _rollout(folder: Path) -> Rollout:
    return Rollout(folder / "rollout", lambda address: AdminClient(address, token_file=folder / "token", timeout_s=10))


def _give(folder: Path, command: str) -> None:
    rollout = _rollout(folder)
    try:
        if command == "rollback":
            rollout.rollback("killed")
        elif command == "abandon":
            rollout.abandon("killed")
        else:
            while not rollout.advance().is_over:
                pass
    except (ServingError, RolloutError) as error:
        raise SystemExit(f"{command}: {error}") from error
