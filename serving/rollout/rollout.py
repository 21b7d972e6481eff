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
killed at any moment and run again, or two may run: they take turns, and the second finds the work done. `Rollout.rollback`
leads back from each step, from a retired old release too, as long as its folder is there; `Rollout.abandon` settles on a
version that every server that still answers can serve. Both interrupt a command that is at work.

What is decided is decided in `serving.core.controller`; here are the files, the connections and the clock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from multifacet.serving.core import controller, controlling
from multifacet.serving.core import rollout_events as core
from multifacet.serving.core.document import State
from multifacet.serving.core.limits import Limits
from multifacet.serving.core.reports import HeldVersion, Report, ShadowReport
from multifacet.serving.errors import DeadlineExceededError, ServingError, UnavailableError
from multifacet.serving.protocol import admin_pb2
from multifacet.serving.rollout.journal import Journal, RolledBackError, RolloutError

logger = logging.getLogger(__name__)

_LOOK_S = 0.1


class Server(Protocol):
    """A live server as the rollout sees it; see `serving.server.admin.AdminClient`."""

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


class InterruptedRolloutError(RolloutError):
    """A rollback, or to abandon the rollout, was asked for meanwhile; that command goes on."""


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
        folder: str | os.PathLike[str],
        connect: Callable[[str], contextlib.AbstractContextManager[Server]],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.folder = Path(folder)
        self._journal = Journal(self.folder)
        self._connect = connect
        self._clock = clock
        self._sleep = sleep
        self._failure: Exception | None = None

    def state(self) -> State | None:
        """What is written down; None before the first rollout.

        Raises:
            RolloutError: The file is damaged.
        """
        return self._journal.read()

    def start(
        self,
        release: Path,
        version: str,
        *,
        rankers: Sequence[str],
        lookups: Sequence[str],
        limits: Limits | None = None,
        from_version: str = "",
    ) -> State:
        """Plan a rollout; nothing is touched. The same plan twice is one plan.

        Args:
            release: The new release's folder, as the servers see it.
            version: Its version.
            rankers: Addresses of the rankers.
            lookups: Addresses of the lookup servers.
            limits: What the new version must keep to.
            from_version: The version to start from, and to roll back to, if the rankers do not serve one.

        Raises:
            RolloutError: Another rollout is under way, the rankers do not all serve one version, or serve this one, or the
                lookup servers do not hold theirs.
            ServingError: A server cannot be reached.
        """
        with self._journal.turn():
            before = self.state()
            plan = State(
                number=1 if before is None else before.number + 1,
                old_version=from_version,
                old_path=Path(),
                new_version=version,
                new_path=release,
                rankers=tuple(rankers),
                lookups=tuple(lookups),
                limits=limits or Limits(),
            )
            return self._drive(
                controlling.Controller(command="start", document=plan, previous=before, from_version=from_version)
            )

    def adopt(self, release: Path, version: str, *, rankers: Sequence[str], lookups: Sequence[str]) -> State:
        """Make servers hold and serve one release, without shadow and watch: on the first day, or when the state was lost.

        Args:
            release: Its folder, as the servers see it.
            version: Its version.
            rankers: Addresses of the rankers.
            lookups: Addresses of the lookup servers.

        Raises:
            RolloutError: A rollout is under way.
            ServingError: A server cannot be reached, or refuses.
        """
        with self._journal.turn():
            before = self.state()
            document = State(
                number=1 if before is None else before.number + 1,
                old_version=version,
                old_path=release,
                new_version=version,
                new_path=release,
                rankers=tuple(rankers),
                lookups=tuple(lookups),
                limits=Limits(),
                done="retired",
                served=version,
            )
            return self._drive(controlling.Controller(command="adopt", document=document, previous=before))

    def advance(self) -> State:
        """Do the next step, or what is left of one that was begun.

        Once it is over: give a server that was replaced meanwhile what the others have.

        Raises:
            RolledBackError: The new version did not keep the limits; the old one serves again.
            InterruptedRolloutError: Another command took over.
            RolloutError: There is nothing to advance.
            ServingError: A server could not be reached, or refused; run it again once that is mended, roll back or abandon.
        """
        with self._journal.turn():
            return self._drive(controlling.Controller(command="advance", document=self._journal.needed()))

    def rollback(self, reason: str = "asked for") -> State:
        """Serve the old version again and retire the new, from whatever step; interrupts a command that is at work.

        Args:
            reason: For the audit log.

        Raises:
            RolloutError: There is no rollout.
            InterruptedRolloutError: The rollout is abandoned meanwhile.
            ServingError: A server could not be reached, or refused; run it again once that is mended, or abandon.
        """
        with self._take_over("rollback", reason):
            state = self._journal.needed()
            if state.doing != "rolled_back" and state.done != "rolled_back":
                state = state.model_copy(update={"reason": reason})
            return self._drive(controlling.Controller(command="rollback", document=state))

    def abandon(self, reason: str = "given up") -> State:
        """Give a rollout up: settle on a version that all servers that still answer can serve, and leave the others out.

        Preferred is what all of them hold, then what most rankers serve, then the old version. A state that cannot be read is
        put aside, and no server is asked.

        Args:
            reason: For the audit log.

        Raises:
            RolloutError: There is no rollout; or its state could not be read and was put aside.
            ServingError: No ranker or no lookup server answers, or no version can be served by all.
        """
        with self._take_over("abandon", reason):
            aside = self._journal.put_aside()
            if aside is not None:
                raise RolloutError(
                    f"the state could not be read and was put aside as {aside}: the servers keep what they serve. Start a "
                    "rollout anew, with --from VERSION if the rankers do not serve one"
                )
            state = self._journal.needed().model_copy(update={"reason": reason, "served": "", "left_out": ()})
            return self._drive(controlling.Controller(command="abandon", document=state))

    @contextlib.contextmanager
    def _take_over(self, command: str, reason: str) -> Iterator[None]:
        with contextlib.ExitStack() as turn:
            try:
                turn.enter_context(self._journal.taking_over(command, reason))
            except OSError as error:
                raise RolloutError(f"{self.folder} cannot be written ({error}): nothing was changed") from error
            yield

    def _drive(self, state: controlling.Controller) -> State:
        events: deque[core.Event] = deque([core.Began(self._clock())])
        while events:
            state, actions = controller.step(state, events.popleft())
            events.extend(event for action in actions if (event := self._do(action)) is not None)
        end = state.over
        if end is None:
            raise RuntimeError(f"the rollout stopped without an end: {state}")
        if end.kind == "failed" and self._failure is not None:
            raise self._failure
        if end.kind != "done":
            raise _ERRORS[end.kind](end.text)
        return state.document

    def _do(self, action: core.Action) -> core.Event | None:
        match action:
            case core.Note(document, event):
                return self._note(document, event)
            case core.Remark(document, event):
                self._journal.audit(document, event)
            case core.Ask():
                return self._ask(action)
            case core.Sleep(seconds):
                return self._wait(seconds)
        return None

    def _note(self, document: State, event: str) -> core.Noted:
        try:
            self._journal.write(document, event)
        except OSError as error:
            self._failure = RolloutError(
                f"{self.folder} cannot be written ({error}): the rollout stays where it was written down to be"
            )
            return core.Noted(str(self._failure))
        return core.Noted()

    def _wait(self, seconds: float) -> core.Event:
        wanted = self._journal.wanted()
        if wanted:
            return core.Interrupted(wanted)
        self._sleep(seconds)
        return core.Woke(self._clock())

    def _ask(self, action: core.Ask) -> core.Event:
        """Ask a server, and look meanwhile whether another command wants to take over."""
        wanted = self._journal.wanted()
        if wanted:
            return core.Interrupted(wanted)
        try:
            with self._connect(action.address) as server:
                answer = _begin(lambda: _call(server, action.call))
                while not _wait_for(answer, _LOOK_S):
                    if wanted := self._journal.wanted():
                        return core.Interrupted(wanted)  # which closes the connection, and so ends the call
                report = _report(answer.result())
        except (ServingError, RolloutError, OSError) as error:
            self._failure = error
            is_away = isinstance(error, UnavailableError | DeadlineExceededError | OSError)
            return core.Failed(self._clock(), f"{action.address}: {error}", away=is_away)
        return core.Answered(self._clock(), report)


_ERRORS: dict[str, type[Exception]] = {
    "failed": ServingError,
    "interrupted": InterruptedRolloutError,
    "refused": RolloutError,
    "rolled back": RolledBackError,
}


def _begin(call: Callable[[], admin_pb2.ServerStatus]) -> Future[admin_pb2.ServerStatus]:
    answer: Future[admin_pb2.ServerStatus] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001  (raised where it is waited for)
            answer.set_exception(error)

    threading.Thread(target=run, name="rollout-call", daemon=True).start()
    return answer


def _wait_for(answer: Future[admin_pb2.ServerStatus], seconds: float) -> bool:
    try:
        answer.exception(seconds)
    except TimeoutError:
        return False
    return True


def _call(server: Server, call: core.Call) -> admin_pb2.ServerStatus:
    match call:
        case core.Load(path):
            return server.load(path)
        case core.Choose(version):
            return server.choose(version)
        case core.Retire(version):
            return server.retire(version)
        case core.SetShadow(version, share):
            return server.shadow(version, share)
        case core.Status():
            return server.status()


def _report(status: admin_pb2.ServerStatus) -> Report:
    shadow = status.shadow
    return Report(
        role=status.role,
        current=status.current_version,
        held=tuple(
            HeldVersion(
                version=held.version,
                path=held.path,
                answered=held.answered,
                failed=held.failed,
                refused=held.refused,
                damaged=held.damaged,
            )
            for held in status.versions
        ),
        shadow=ShadowReport(
            version=shadow.version,
            share=shadow.share,
            requests=shadow.requests,
            compared=shadow.compared,
            failed=shadow.failed,
            mean_abs_difference=shadow.mean_abs_difference,
            mean_difference=shadow.mean_difference,
        ),
        process=status.process,
        remembers=status.remembers,
    )
