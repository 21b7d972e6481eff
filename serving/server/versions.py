"""The versions that a server holds at one time, and which of them is the current one."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Generic, TypeVar

from multifacet.serving.errors import VersionNotLoadedError

T = TypeVar("T")


class Leases:
    """Counts who reads which version."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._num_waiting = 0
        self._counts: dict[str, int] = {}

    def take(self, version: str) -> None:
        """Count one reader of a version more."""
        with self._lock:
            self._counts[version] = self._counts.get(version, 0) + 1

    def give_back(self, version: str) -> None:
        """Count one reader of a version less."""
        with self._lock:
            self._counts[version] -= 1
            if not self._counts[version]:
                del self._counts[version]
                if self._num_waiting:
                    self._changed.notify_all()

    def count(self, version: str) -> int:
        """The readers of a version."""
        with self._changed:
            return self._counts.get(version, 0)

    def wait(self, version: str, timeout_s: float) -> bool:
        """Wait until a version has no reader; whether that came in time."""
        with self._changed:
            self._num_waiting += 1
            try:
                return self._changed.wait_for(lambda: version not in self._counts, timeout_s)
            finally:
                self._num_waiting -= 1


class Lease(Generic[T]):
    """Holds a version within a ``with`` block; a class, since a generator costs microseconds at each request.

    Entering takes three steps, between any two of which another thread may retire the version.

    Raises:
        VersionNotLoadedError: On entering: the wanted version is not loaded, or none is.
    """

    __slots__ = ("_leases", "_loaded", "_version", "_versions", "_wanted")

    def __init__(self, versions: LoadedVersions[T], leases: Leases, wanted: str):
        self._versions = versions
        self._leases = leases
        self._wanted = wanted
        self._version = ""

    def find(self) -> None:
        """Find the version and what was loaded under it; the first step."""
        self._version, self._loaded = self._versions.resolve(self._wanted)

    def count(self) -> None:
        """Count this reader; the second step."""
        self._leases.take(self._version)

    def confirm(self) -> bool:
        """Say whether the version may be read; if not, begin again. The third step."""
        # Whoever retires a version forgets it first and counts its readers then. If it is still there now, this reader is
        # counted; if not, it may have come too late, and must not begin.
        if self._version in self._versions:
            return True
        self._leases.give_back(self._version)
        return False

    def end(self) -> None:
        """Count one reader less."""
        self._leases.give_back(self._version)

    def __enter__(self) -> tuple[str, T]:
        while True:
            self.find()
            self.count()
            if self.confirm():
                return self._version, self._loaded

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()


class LoadedVersions(Generic[T]):
    """Loaded releases by version, safe to read while another thread adds or retires one.

    Readers take one reference and keep it for their whole request, so that retiring a version never changes an
    answer under way: its memory goes when the last reader is done. The dict is replaced, never changed in place.

    Args:
        server: What to call the holder in messages, such as ``lookup server``.
    """

    def __init__(self, server: str):
        self._server = server
        self._write_lock = threading.Lock()
        self._leases = Leases()
        self._state: tuple[dict[str, T], str] = ({}, "")
        self._closed: dict[str, tuple[int, T]] = {}

    @property
    def versions(self) -> tuple[str, ...]:
        """The loaded versions, the oldest first."""
        return tuple(self._state[0])

    def __contains__(self, version: str) -> bool:
        return version in self._state[0]

    @property
    def current(self) -> str:
        """The version that a request without one gets: the last that was added or chosen; empty if none is loaded."""
        return self._state[1]

    def add(self, version: str, loaded: T, *, current: bool = True) -> None:
        """Add a version; adding one that is loaded already keeps what is there.

        Args:
            version: The release's version.
            loaded: What requests for this version are to be answered with.
            current: Whether it becomes the current version. The first one always does.
        """
        with self._write_lock:
            held, before = self._state
            self._state = (
                {**held, version: held.get(version, loaded)},
                version if current or not before else before,
            )

    def choose(self, version: str) -> None:
        """Make a loaded version the current one.

        Raises:
            VersionNotLoadedError: It is not loaded; the current version stays.
        """
        with self._write_lock:
            self.get(version)
            self._state = (self._state[0], version)

    def put(self, version: str, loaded: T) -> None:
        """Serve this under a version, in place of what is there; the current version stays, even if there is none."""
        with self._write_lock:
            held, current = self._state
            self._state = ({**held, version: loaded}, current)

    def make_current(self, version: str) -> None:
        """Make a held version the current one; an empty one: none is."""
        with self._write_lock:
            self._state = (self._state[0], version)

    def close(self, version: str) -> None:
        """Take no new readers of a version; see `reopen` and `forget`."""
        with self._write_lock:
            held, current = self._state
            self._closed[version] = (list(held).index(version), held[version])
            self._state = ({known: loaded for known, loaded in held.items() if known != version}, current)

    def reopen(self, version: str) -> None:
        """Take new readers of a closed version again."""
        with self._write_lock:
            place, loaded = self._closed.pop(version)
            held, current = self._state
            entries = list(held.items())
            self._state = (dict([*entries[:place], (version, loaded), *entries[place:]]), current)

    def forget(self, version: str) -> None:
        """Let go of a closed version; requests under way keep it until they end."""
        with self._write_lock:
            del self._closed[version]

    def lease(self, wanted: str) -> Lease[T]:
        """Hold a version for the length of a request: see `resolve`, and `num_readers`."""
        return Lease(self, self._leases, wanted)

    def num_readers(self, version: str) -> int:
        """How many requests under way hold a version."""
        return self._leases.count(version)

    def wait_for_readers(self, version: str, timeout_s: float) -> bool:
        """Wait until no request holds a version.

        Returns:
            Whether that came to be in time.
        """
        return self._leases.wait(version, timeout_s)

    def retire(self, version: str) -> None:
        """Forget a version; requests under way keep it until they end.

        Raises:
            VersionNotLoadedError: It is not loaded.
            ValueError: It is the current version: choose another first, so that one is always served.
        """
        with self._write_lock:
            self.get(version)
            held, current = self._state
            if version == current:
                raise ValueError(
                    f"version {version} is the current one of this {self._server}: load or choose another version "
                    f"before retiring it (loaded: {', '.join(held)})"
                )
            self._state = ({known: loaded for known, loaded in held.items() if known != version}, current)

    def get(self, version: str) -> T:
        """What was loaded under a version.

        Raises:
            VersionNotLoadedError: It is not loaded; the error lists the versions that are.
        """
        held, _ = self._state
        if not version:
            listed = ", ".join(held) or "none"
            raise VersionNotLoadedError(
                f"no version is the current one of this {self._server}; loaded: {listed}", loaded=tuple(held)
            )
        if version not in held:
            listed = ", ".join(held) or "none"
            raise VersionNotLoadedError(
                f"version {version} is not loaded by this {self._server}; loaded: {listed}", loaded=tuple(held)
            )
        return held[version]

    def resolve(self, wanted: str) -> tuple[str, T]:
        """The version to answer with, and what was loaded under it.

        Args:
            wanted: A version, or empty for the current one.

        Raises:
            VersionNotLoadedError: The wanted version is not loaded, or none is.
        """
        held, current = self._state
        version = wanted or current
        return version, self.get(version) if version not in held else held[version]

    def items(self) -> tuple[tuple[str, T], ...]:
        """Pairs of version and what was loaded, the oldest first, all of one moment."""
        return tuple(self._state[0].items())
