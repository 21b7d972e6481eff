"""Moves live servers from one release to the next in three phases, each of which can be taken back.

The paper's phases (arXiv 2508.05700): the new ranker model beside the old; the new lookup release and version-aware routing;
the old retired. Here they are five steps, since each is a point at which one may stop and look:

    planned          nothing was touched
    ranker_loaded    phase 1: every ranker holds both upper models, and answers with the old
    lookup_loaded    phase 2: every lookup server holds both releases, and answers each version that it is asked for
    shadowed         phase 2: the rankers scored live requests with both, and the scores were as near as was asked for
    switched         phase 2: every ranker answers with the new
    retired          phase 3: rankers let the old go once its last request ended, then lookup servers did

A step is written down before it begins and after it is done, and only does what it finds undone. So a controller may be
killed at any moment and run again, or two may run: they take turns, and the second finds the work done.
`Rollout.rollback` leads back from each step, from a retired old release too, as long as its folder is there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from multifacet.serving.errors import ServingError
from multifacet.serving.journal import FORWARD, Journal, RolledBackError, RolloutError, State, Step
from multifacet.serving.limits import Limits, describe_shadow, judge_shadow
from multifacet.serving.protocol import admin_pb2

_POLL_S = 0.05


class Server(Protocol):
    """A live server as the rollout sees it; see `serving.admin.AdminClient`."""

    def load(self, path: Path) -> admin_pb2.ServerStatus:
        """Load a release beside the others."""
        ...

    def choose(self, version: str) -> admin_pb2.ServerStatus:
        """Make a version the current one."""
        ...

    def retire(self, version: str) -> admin_pb2.ServerStatus:
        """Forget a version once its last reader is done."""
        ...

    def shadow(self, version: str, share: float) -> admin_pb2.ServerStatus:
        """Score a share of a ranker's requests with another version as well."""
        ...

    def status(self) -> admin_pb2.ServerStatus:
        """What the server holds."""
        ...


class Rollout:
    """One folder's rollouts, the one under way or the last.

    Args:
        folder: Holds ``rollout.json`` and ``audit.jsonl``; made if missing. One folder a deployment.
        connect: Opens the control of the server at an address; used as a context manager.
        clock: Seconds, for waits.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        folder: Path,
        connect: Callable[[str], contextlib.AbstractContextManager[Server]],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.folder = folder
        self._journal = Journal(folder)
        self._connect = connect
        self._clock = clock
        self._sleep = sleep

    def state(self) -> State | None:
        """What is written down; None before the first rollout.

        Raises:
            RolloutError: The file is damaged.
        """
        return self._journal.read()

    def start(
        self, release: Path, version: str, *, rankers: Sequence[str], lookups: Sequence[str], limits: Limits | None = None
    ) -> State:
        """Plan a rollout; nothing is touched. The same plan twice is one plan.

        Args:
            release: The new release's folder, as the servers see it.
            version: Its version.
            rankers: Addresses of the rankers.
            lookups: Addresses of the lookup servers.
            limits: What the new version must keep to.

        Raises:
            RolloutError: Another rollout is under way, the rankers do not all serve one version, or serve this one.
        """
        with self._journal.turn():
            before = self.state()
            plan = (version, tuple(rankers), tuple(lookups))
            if before is not None and not before.is_over:
                if (before.new_version, before.rankers, before.lookups) == plan:
                    return before
                raise RolloutError(
                    f"rollout {before.number} to version {before.new_version} is at {before.doing or before.done}: advance it, "
                    "or roll it back, before another starts"
                )
            current = {address: self._current(address) for address in rankers}
            if len(set(current.values())) != 1:
                raise RolloutError(f"the rankers do not serve one version: {current}. Finish or roll back what was begun.")
            old_version, old_path = next(iter(current.values()))
            if old_version == version:
                raise RolloutError(f"the rankers serve version {version} already")
            state = State(
                number=1 if before is None else before.number + 1,
                old_version=old_version,
                old_path=Path(old_path),
                new_version=version,
                new_path=release,
                rankers=plan[1],
                lookups=plan[2],
                limits=limits or Limits(),
            )
            self._journal.write(state, "planned")
            return state

    def advance(self) -> State:
        """Do the next step, or what is left of one that was begun.

        Raises:
            RolledBackError: The new version did not keep the limits; the old one serves again.
            RolloutError: There is nothing to advance.
            ServingError: A server could not be reached, or refused; run it again once that is mended, or roll back.
        """
        with self._journal.turn():
            state = self._journal.needed()
            if state.doing == "rolled_back":
                return self._roll_back(state)
            if state.is_over:
                raise RolloutError(f"rollout {state.number} is over ({state.done}): start another")
            step = FORWARD[FORWARD.index(state.done) + 1]
            state = state.model_copy(update={"doing": step})
            self._journal.write(state, "begins")
            fault = self._do(step, state)
            if fault:
                self._roll_back(state.model_copy(update={"reason": fault}))
                raise RolledBackError(f"rolled back to version {state.old_version}: {fault}")
            state = state.model_copy(update={"done": step, "doing": None})
            self._journal.write(state, "done")
            return state

    def rollback(self, reason: str = "asked for") -> State:
        """Serve the old version again and retire the new, from whatever step.

        Args:
            reason: For the audit log.

        Raises:
            RolloutError: There is no rollout.
            ServingError: A server could not be reached, or refused; run it again once that is mended.
        """
        with self._journal.turn():
            state = self._journal.needed()
            if state.done == "rolled_back":
                return state
            return self._roll_back(state if state.doing == "rolled_back" else state.model_copy(update={"reason": reason}))

    def _do(self, step: Step, state: State) -> str:
        """Do what a step has left undone; what is wrong with the new version, or nothing."""
        if step == "ranker_loaded":
            self._load(state.rankers, state.new_path, state.new_version)
        elif step == "lookup_loaded":
            self._load(state.lookups, state.new_path, state.new_version)
        elif step == "shadowed":
            return self._shadow(state)
        elif step == "switched":
            # A server that lost its memory since is given it again, lookup servers before those that ask them.
            self._load(state.lookups, state.new_path, state.new_version)
            self._load(state.rankers, state.new_path, state.new_version)
            return self._switch(state)
        elif step == "retired":
            self._retire(state, state.old_version, keep=state.new_version)
        return ""

    def _roll_back(self, state: State) -> State:
        state = state.model_copy(update={"doing": "rolled_back"})
        self._journal.write(state, "begins")
        self._load(state.lookups, state.old_path, state.old_version)
        self._load(state.rankers, state.old_path, state.old_version)
        for server in self._servers(state.rankers):
            server.shadow("", 0.0)
            server.choose(state.old_version)
        self._retire(state, state.new_version, keep=state.old_version)
        state = state.model_copy(update={"done": "rolled_back", "doing": None})
        self._journal.write(state, "done")
        return state

    def _load(self, addresses: Sequence[str], path: Path, version: str) -> None:
        for address, server in zip(addresses, self._servers(addresses), strict=True):
            held = _versions(server.status())
            if version not in held:
                held = _versions(server.load(path))
            if version not in held:
                raise RolloutError(
                    f"{address} loaded {path}, but does not hold version {version}: is it another release there?"
                )

    def _shadow(self, state: State) -> str:
        limits = state.limits
        if not limits.shadow_share:
            return ""
        for server in self._servers(state.rankers):
            server.shadow(state.new_version, limits.shadow_share)
        faults = []
        for address, server in zip(state.rankers, self._servers(state.rankers), strict=True):
            deadline = self._clock() + limits.shadow_timeout_s
            while True:
                status = server.status()
                if status.shadow.version != state.new_version:  # it was started again, and forgot
                    status = server.shadow(state.new_version, limits.shadow_share)
                if status.shadow.compared >= limits.min_compared or self._clock() >= deadline:
                    break
                self._sleep(_POLL_S)
            self._journal.audit(state, f"shadow at {address}: {describe_shadow(status.shadow)}")
            if fault := judge_shadow(status.shadow, limits):
                faults.append(f"{address}: {fault}")
        for server in self._servers(state.rankers):
            server.shadow("", 0.0)
        return "; ".join(faults)

    def _switch(self, state: State) -> str:
        limits = state.limits
        before = {}
        for address, server in zip(state.rankers, self._servers(state.rankers), strict=True):
            before[address] = _outcomes(server.status(), state.new_version)
            server.choose(state.new_version)
        deadline = self._clock() + limits.watch_s
        while True:
            for address, server in zip(state.rankers, self._servers(state.rankers), strict=True):
                answered, failed = _outcomes(server.status(), state.new_version)
                answered_before, failed_before = before[address]
                if answered < answered_before or failed < failed_before:  # it was started again
                    before[address] = answered_before, failed_before = 0, 0
                num, num_failed = answered - answered_before + failed - failed_before, failed - failed_before
                if num >= limits.min_requests and num_failed > limits.max_failure_rate * num:
                    return f"{address}: {num_failed} of {num} requests failed since the switch"
            if self._clock() >= deadline:
                return ""
            self._sleep(_POLL_S)

    def _retire(self, state: State, version: str, *, keep: str) -> None:
        # Rankers first: once none of them holds the version, no lookup for it can come.
        for server in self._servers(state.rankers):
            server.retire(version)
        for server in self._servers(state.lookups):
            server.choose(keep)
            server.retire(version)

    def _current(self, address: str) -> tuple[str, str]:
        with self._connect(address) as server:
            status = server.status()
        path = next((entry.path for entry in status.versions if entry.version == status.current_version), "")
        return status.current_version, path

    def _servers(self, addresses: Sequence[str]) -> Iterator[Server]:
        for address in addresses:
            with self._connect(address) as server:
                yield server


def _versions(status: admin_pb2.ServerStatus) -> set[str]:
    return {entry.version for entry in status.versions}


def _outcomes(status: admin_pb2.ServerStatus, version: str) -> tuple[int, int]:
    for entry in status.versions:
        if entry.version == version:
            return entry.answered, entry.failed
    raise ServingError(f"the {status.role} does not hold version {version} any more; it holds {sorted(_versions(status))}")
