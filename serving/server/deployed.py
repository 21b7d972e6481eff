"""The releases of one server: does what `serving.core.holdings` decides."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from multifacet.artifacts import ArtifactError
from multifacet.serving.core import held, holdings
from multifacet.serving.core import holdings_events as events
from multifacet.serving.core.faults import Fault, FaultKind
from multifacet.serving.errors import (
    InvalidRequestError,
    OverloadedError,
    ServingError,
    UnavailableError,
    VersionNotLoadedError,
)
from multifacet.serving.server.state_file import StateFile
from multifacet.serving.server.versions import LoadedVersions

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Identity:
    """What a release's manifest says, before its files are read; see `Entry` for its memory."""

    version: str
    num_bytes: int = 0
    whole: str = ""
    whole_bytes: int = 0


class Deployed(Generic[T]):
    """The releases of one server, and the file that remembers them.

    Every change may be repeated: what is done already is not done again. Changes take turns; a release is opened beside them.

    Args:
        loaded: The server's versions.
        load: Opens the release at a path: its version, and what is served of it.
        identify: Reads the manifest of the release at a path; None opens it instead.
        check: Whether a version may be chosen or shadowed; raises otherwise.
        shadow: Scores a share of the requests with another version as well.
        state_file: Where to remember; None forgets when the process ends.
        administered: Whether a server that can open nothing that it remembers starts all the same, to be mended.
        waits: Whether a server that remembers nothing waits to be told that its version is the current one.
        budget_bytes: Most bytes that all releases may have together.
        gone: Told of a version that was let go of, and may be held still, by another path.
    """

    def __init__(
        self,
        loaded: LoadedVersions[T],
        load: Callable[[Path], tuple[str, T]],
        *,
        identify: Callable[[Path], Identity] | None = None,
        check: Callable[[str], None] = lambda _version: None,
        shadow: Callable[[str, float], None] = lambda _version, _share: None,
        state_file: Path | None = None,
        administered: bool = False,
        waits: bool = False,
        budget_bytes: int | None = None,
        gone: Callable[[str], None] = lambda _version: None,
    ):
        self._loaded = loaded
        self._load = load
        self._identify = identify
        self._check = check
        self._shadow = shadow
        self._state_file = StateFile(state_file) if state_file is not None else None
        self._administered = administered
        self._waits = waits
        self._budget_bytes = budget_bytes
        self._gone = gone
        self._state = held.Holdings()
        self._opened: dict[str, tuple[str, T]] = {}
        self._cause: BaseException | None = None
        self._tickets = itertools.count(1)
        self._waiting: dict[int, Future[str]] = {}
        self._failure: Fault | None = None
        self._lock = threading.Lock()

    @property
    def state(self) -> held.Holdings:
        """What it holds, remembers, and is doing now."""
        return self._state

    def path(self, version: str) -> Path | None:
        """Where a version was loaded from."""
        entry = self._state.entry(version)
        return Path(entry.path) if entry is not None else None

    def open(self, releases: Sequence[Path]) -> None:
        """Load what the state file remembers; without one, these releases, of which the last becomes the current one.

        Raises:
            ArtifactError: A release is damaged, or the state file is none.
        """
        document = self._state_file.read() if self._state_file is not None else None
        if document is not None and releases:
            logger.info("%s is believed, and not the releases of the configuration", self._state_file and self._state_file.path)
        self._run(
            events.Started(
                document,
                tuple(str(_resolved(path)) for path in releases),
                administered=self._administered,
                keeps_state=self._state_file is not None,
                waits=self._waits and self._state_file is not None,
                budget_bytes=self._budget_bytes,
            )
        )
        if self._failure is not None:
            raise _error(self._failure, self._loaded.versions) from self._cause

    def load(self, path: Path, *, current: bool = False) -> str:
        """Load a release beside the others; its version."""
        return self._ask(lambda ticket: events.LoadAsked(ticket, str(_resolved(path)), current))

    def choose(self, version: str) -> None:
        """Make a loaded version the current one."""
        self._ask(lambda ticket: events.ChooseAsked(ticket, version))

    def retire(self, version: str, timeout_s: float = 0.0) -> None:
        """Forget a version once its last reader is done.

        New readers are refused from now on. If those that it has do not end in time, it is taken back.

        Args:
            version: Not the current one. One that is not loaded is retired already.
            timeout_s: How long to wait for its readers; 0 does not wait, its memory goes with the last of them.

        Raises:
            ValueError: It is the current version.
            OverloadedError: It still has readers after that time; it is loaded as before.
        """
        self._ask(lambda ticket: events.RetireAsked(ticket, version, timeout_s))

    def shadow(self, version: str, share: float) -> None:
        """Score a share of the requests with another version as well; an empty version ends it."""
        self._ask(lambda ticket: events.ShadowAsked(ticket, version, share))

    def note_damage(self, version: str) -> None:
        """Say that files of a version were changed."""
        if version not in self._state.damaged:
            self._run(events.Damaged(version))

    def _ask(self, event: Callable[[int], events.Event]) -> str:
        ticket = next(self._tickets)
        answer: Future[str] = Future()
        self._waiting[ticket] = answer
        self._run(event(ticket))
        return answer.result()  # another thread may be at it

    def _run(self, event: events.Event) -> None:
        left_events = deque([event])
        while left_events:
            with self._lock:
                self._state, actions = holdings.step(self._state, left_events.popleft())
                # In the order of the steps, and before any other thread's: what is served is what the state says.
                left = [action for action in actions if not self._publish(action)]
            for action in left:
                follows = self._do(action)
                if follows is not None:
                    left_events.append(follows)

    def _publish(self, action: events.Action) -> bool:
        """Do what takes no time; whether it was such an action."""
        match action:
            case events.Hold(version, path):
                self._loaded.put(version, self._opened.pop(path)[1])
            case events.Drop(path):
                dropped = self._opened.pop(path, None)
                if dropped is not None:
                    self._gone(dropped[0])
            case events.Choose(version):
                self._loaded.make_current(version)
            case events.Reopen(version):
                self._loaded.reopen(version)
            case events.Forget(version):
                self._loaded.forget(version)
                self._gone(version)
            case events.Fail(fault):
                self._failure = fault
            case _:
                return False
        return True

    def _do(self, action: events.Action) -> events.Event | None:
        match action:
            case events.Identify(path):
                return self._identified(path)
            case events.Open(path):
                return self._open(path)
            case events.Check(version):
                return events.Checked(self._fault_of(lambda: self._check(version)))
            case events.Drain(version, timeout_s):
                self._loaded.close(version)
                done = not timeout_s or self._loaded.wait_for_readers(version, timeout_s)
                return events.Drained(0 if done else max(1, self._loaded.num_readers(version)))
            case events.Write(document):
                return events.Written(self._fault_of(lambda: self._write(document)))
            case events.SetShadow(version, share):
                self._shadow(version, share)
            case events.Warn(text):
                logger.warning("%s", text)
            case events.Tell(ticket, version, fault):
                self._tell(ticket, version, fault)
        return None

    def _identified(self, path: str) -> events.Event:
        def identify() -> Identity:
            if self._identify is not None:
                return self._identify(Path(path))
            self._opened[path] = self._load(Path(path))
            return Identity(self._opened[path][0])

        try:
            found = identify()
        except Exception as error:  # noqa: BLE001  (whatever a damaged release raises: somebody waits for the answer)
            return self._refused(path, error)
        return events.Identified(path, found.version, found.num_bytes, found.whole, found.whole_bytes)

    def _open(self, path: str) -> events.Event:
        try:
            if path not in self._opened:
                self._opened[path] = self._load(Path(path))
        except Exception as error:  # noqa: BLE001
            return self._refused(path, error)
        return events.Opened(path, self._opened[path][0])

    def _refused(self, path: str, error: Exception) -> events.Refused:
        if self._cause is None and self._state.stage != "running":
            self._cause = error
        if not isinstance(error, ServingError | ArtifactError | OSError | ValueError):
            logger.error("%s cannot be opened", path, exc_info=error)
        return events.Refused(path, _fault(error))

    def _fault_of(self, work: Callable[[], None]) -> Fault | None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  (it is told to who asked)
            return _fault(error)
        return None

    def _write(self, document: events.Document) -> None:
        if self._state_file is None:
            return
        try:
            self._state_file.write(document)
        except OSError as error:
            raise StateFileError(
                f"the state file {self._state_file.path} cannot be written ({error}): nothing was changed"
            ) from error

    def _tell(self, ticket: int, version: str, fault: Fault | None) -> None:
        answer = self._waiting.pop(ticket)
        if fault is None:
            answer.set_result(version)
            return
        answer.set_exception(_error(fault, self._loaded.versions))


class StateFileError(ServingError):
    """The state file could not be written; nothing was changed."""


_KINDS: tuple[tuple[type[BaseException], FaultKind], ...] = (
    (StateFileError, "storage"),
    (InvalidRequestError, "invalid"),
    (VersionNotLoadedError, "not_loaded"),
    (OverloadedError, "overloaded"),
    (UnavailableError, "unavailable"),
    (ArtifactError, "artifact"),
    (ValueError, "invalid"),
    (OSError, "artifact"),
)
_ERRORS: dict[FaultKind, Callable[[str], Exception]] = {
    "invalid": ValueError,
    "artifact": ArtifactError,
    "overloaded": OverloadedError,
    "unavailable": UnavailableError,
    "storage": StateFileError,
    "error": ServingError,
}


def _fault(error: BaseException) -> Fault:
    kind: FaultKind = next((kind for known, kind in _KINDS if isinstance(error, known)), "error")
    return Fault(kind, str(error) or repr(error))


def _error(fault: Fault, loaded: Sequence[str]) -> Exception:
    if fault.kind == "not_loaded":
        return VersionNotLoadedError(fault.text, loaded=loaded)
    return _ERRORS[fault.kind](fault.text)


def _resolved(path: Path) -> Path:
    """A path without links: one that is pointed elsewhere later must not change what was meant."""
    return Path(os.path.realpath(path))


def inside(path: str, folder: Path) -> Path:
    """A path that a caller names, if it is within a folder once all links are followed.

    Raises:
        InvalidRequestError: It is not.
    """
    resolved = Path(path).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise InvalidRequestError(f"{path} is not below {folder}, from where this server may load releases")
    return resolved
