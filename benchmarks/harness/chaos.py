"""A live deployment of real processes whose every part is killed at random moments of its rollouts."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, get_args

from benchmarks.harness.forked import FORKS, ForkedServer
from benchmarks.harness.load import Asker, Tally
from benchmarks.harness.witness import write_witness, write_witness_delta
from multifacet.serving import AdminClient, Limits, LookupConfig, RankerConfig, Release, Rollout

if TYPE_CHECKING:
    from multifacet.serving.core.document import State

logger = logging.getLogger(__name__)

Victim = Literal["lookup", "ranker", "controller", "publisher"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
_GRACE_S = 1.5
"""After a server is back, how long a client may see it away: gRPC connects again after 1 s at most, give or take a fifth."""


class Chaos:
    """A lookup server, a ranker and their clients, of which parts are killed (SIGKILL) and started again.

    Args:
        folder: An empty folder.
        seed: Chooses victims and moments.
        num_askers: Clients that ask all the time.
        interval_s: Between two requests of one client.
        deltas: Whether every second release is a delta over the one that is served.

    Attributes:
        kills: How often each part was killed while it was at work.
    """

    def __init__(self, folder: Path, *, seed: int = 0, num_askers: int = 2, interval_s: float = 0.02, deltas: bool = False):
        self._deltas = deltas
        self.kills: Counter[Victim] = Counter()
        self._folder = folder
        self._random = random.Random(seed)  # noqa: S311  (moments, not secrets)
        self._running = ExitStack()
        self._outages: list[tuple[float, float]] = []
        self._token = folder / "token"
        self._token.write_text("chaos")
        self._number = 1
        self.release = write_witness(folder / "release-1", 1)
        common = {"releases": (self.release.path,), "admin_token_file": self._token, "admin_releases": folder}
        frames = f"unix:{folder / 'frames.sock'}"
        lookup = LookupConfig(
            **common,
            listen=f"unix:{folder / 'lookup.sock'}",
            framed_listen=frames,
            state_file=folder / "lookup.state",
            ready_file=folder / "lookup.ready",
        )
        ranker = RankerConfig(
            **common,
            listen=f"unix:{folder / 'ranker.sock'}",
            lookup=f"framed:{frames}",
            lookup_timeout_s=5,
            state_file=folder / "ranker.state",
            ready_file=folder / "ranker.ready",
        )
        self._servers: dict[Victim, ForkedServer] = {"lookup": ForkedServer(lookup), "ranker": ForkedServer(ranker)}
        self._askers = [Asker(ranker.listen, interval_s=interval_s, seed=number) for number in range(num_askers)]

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for server in self._servers.values():
                started.enter_context(server)
            self._running = started.pop_all()
        for asker in self._askers:
            asker.start()
        self._wait_for(self.release)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for asker in self._askers:
            asker.stop()
        self._running.close()

    @property
    def ranker_address(self) -> str:
        """Where the ranker listens."""
        return self._servers["ranker"].address

    def roll_out(self, *victims: Victim) -> State:
        """Publish the next release and move the deployment to it, under kills; its last version is retired."""
        self._number += 1
        path = self._folder / f"release-{self._number}"
        base = self.release.path if self._deltas and self._number % 2 == 0 else None
        self._until_done("publisher", path.exists, _publish, (path, self._number, base), victims)
        release = Release.open(path)  # whole, or this raises
        rollout = self._rollout()
        limits = Limits(
            shadow_share=1,
            min_compared=20,
            watch_s=0.1,
            max_failure_rate=1,  # killed servers fail requests: that shall not take a healthy version back
        )
        rollout.start(
            release.path,
            release.version,
            rankers=[self._servers["ranker"].address],
            lookups=[self._servers["lookup"].address],
            limits=limits,
        )
        return self._control("advance", "retired", release, victims)

    def roll_back(self, *victims: Victim) -> State:
        """Take the last rollout back, under kills."""
        state = self._rollout().state()
        if state is None:
            raise ValueError("nothing was rolled out that could be taken back")
        return self._control("rollback", "rolled_back", Release.open(state.old_path), victims)

    def finish(self) -> Tally:
        """Stop asking; what became of all requests."""
        total = Tally()
        for asker in self._askers:
            tally = asker.stop()
            total.answered += tally.answered
            total.mixed += tally.mixed
            total.lost += tally.lost
            total.errors += tally.errors
            total.versions.update(tally.versions)
        return total

    def unexplained(self, tally: Tally) -> list[Exception]:
        """Errors of attempts at which every server was up, from their beginning to their end."""
        return [
            error
            for began, ended, error in tally.errors
            if not any(began <= back + _GRACE_S and ended >= killed for killed, back in self._outages)
        ]

    def _control(self, action: str, goal: str, release: Release, victims: tuple[Victim, ...]) -> State:
        def is_done() -> bool:
            state = self._rollout().state()
            return state is not None and state.is_over and state.done == goal

        self._until_done("controller", is_done, _control, (self._folder, action), victims)
        self.release = release
        self._wait_for(release)
        state = self._rollout().state()
        if state is None:
            raise RuntimeError("the rollout's state is gone")
        return state

    def _until_done(
        self,
        role: Victim,
        is_done: Callable[[], bool],
        work: Callable[..., None],
        arguments: tuple[object, ...],
        victims: tuple[Victim, ...],
    ) -> None:
        """Run the work in a process until it is done; kill those of the victims that this work concerns."""
        concerned = ("publisher",) if role == "publisher" else ("controller", "lookup", "ranker")
        left = [victim for victim in concerned if victim in victims]
        while not is_done():
            process = FORKS.Process(target=work, args=arguments, daemon=True)
            process.start()
            if left:
                victim = left.pop(0)
                process.join(self._random.uniform(0.0, 0.4))
                if victim == role:
                    self.kills[victim] += process.is_alive()
                    process.kill()
                else:
                    self._kill(victim)
            process.join(180)
            if process.exitcode == 1 and not is_done():  # not killed: it failed
                raise RuntimeError(f"the {role} failed; its traceback is on stderr")
        for victim in left:  # the work was done before their turn came
            if victim != role:
                self._kill(victim)

    def _kill(self, victim: Victim) -> None:
        killed = time.monotonic()
        self._servers[victim].restart()
        self._outages.append((killed, time.monotonic()))
        self.kills[victim] += 1
        logger.info("killed the %s, back after %.1f s", victim, self._outages[-1][1] - killed)

    def _wait_for(self, release: Release) -> None:
        for asker in self._askers:
            asker.wait_for_version(release.version)

    def _rollout(self) -> Rollout:
        return _open_rollout(self._folder)


def _open_rollout(folder: Path) -> Rollout:
    return Rollout(folder / "state", lambda address: AdminClient(address, token_file=folder / "token", timeout_s=120))


def _publish(path: Path, number: int, base: Path | None) -> None:
    if base is None:
        write_witness(path, number)
    else:
        write_witness_delta(path, number, base)


def _control(folder: Path, action: str) -> None:
    rollout = _open_rollout(folder)
    if action == "rollback":
        rollout.rollback("chaos")
        return
    while not rollout.advance().is_over:
        pass
