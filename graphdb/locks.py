"""One writer for a store, whatever handles, threads and processes there are; and a moment in which its files can be copied.

DuckDB shares a file between the handles of a process, and keeps other processes out by a lock that ends when any handle on the
file is closed, a copy's included. So a store has a lock file of its own beside it, `<store>.lock`, of two bytes: a process that
may write holds the first for as long as it has the store open; the second is held while files change that a copy reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from multifacet.graphdb.neighborhood import IdCache
from multifacet.graphdb.sql import GraphError

_WRITER: Final = 0
_FILES: Final = 1


class Site:
    """What the handles of one process on one store share.

    Attributes:
        path: The store's file.
        writing: Held by the thread that writes.
        ids: What is known of ids that were asked for.
        views: The views that may read the store's files.
        num_writers: Handles of this process that may write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writing = threading.RLock()
        self.ids = IdCache()
        self.views: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock_path = path.with_name(f"{path.name}.lock")
        self._descriptor: int | None = None
        self._process = os.getpid()
        self.num_writers = 0

    def enter(self) -> None:
        """Makes this process the store's writer, or one handle more of it.

        Raises:
            GraphError: Another process is.
        """
        with self.writing:
            if self._process != os.getpid():
                msg = (
                    f"{self.path} was opened before this process was forked; open it with GraphStore.open in the process "
                    f"that uses it"
                )
                raise GraphError(msg)
            if self.num_writers == 0 and not self._take(_WRITER, wait=False):
                self._close()
                msg = (
                    f"cannot open {self.path} as a graph store: it is locked by process {self._holder()}, which writes to it. "
                    "Read a copy meanwhile: `multifacet graph backup` makes one beside a writer"
                )
                raise GraphError(msg)
            if self.num_writers == 0:
                os.pwrite(self._opened(), f"{os.getpid()}\n".encode(), 0)
            self.num_writers += 1

    def leave(self) -> None:
        """Gives the place of a writing handle back."""
        with self.writing:
            if self._process != os.getpid():
                return  # a fork's child never had it
            self.num_writers -= 1
            if self.num_writers == 0:
                self._end()

    @contextlib.contextmanager
    def changing_files(self) -> Iterator[None]:
        """Keeps copies from being made while the store's files change, or changes while they are copied."""
        with self.writing:
            self._take(_FILES, wait=True)
            try:
                yield
            finally:
                self._release(_FILES)
                if self.num_writers == 0:
                    self._end()

    def _opened(self) -> int:
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                msg = f"cannot write beside {self.path}: {error.strerror}; open it with read_only=True"
                raise GraphError(msg) from error
        return self._descriptor

    def _take(self, byte: int, *, wait: bool) -> bool:
        while True:
            descriptor = self._opened()
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
            except BlockingIOError:
                return False
            # Whoever held the lock may have removed its file meanwhile.
            if self._lock_path.exists() and os.path.samestat(os.fstat(descriptor), self._lock_path.stat()):
                return True
            self._close()

    def _release(self, byte: int) -> None:
        if self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)

    def _end(self) -> None:
        """Removes the lock file, unless another process uses it, and lets go."""
        if self._descriptor is None:
            return
        if self._take(_WRITER, wait=False) and self._take(_FILES, wait=False):
            self._lock_path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _holder(self) -> str:
        try:
            return self._lock_path.read_text().strip() or "unknown"
        except OSError:
            return "unknown"


_sites: weakref.WeakValueDictionary[str, Site] = weakref.WeakValueDictionary()
_sites_lock = threading.Lock()


def site_of(path: Path) -> Site:
    """Gives what the handles on a store share: the same for each name of its file."""
    key = os.path.realpath(path)
    with _sites_lock:
        site = _sites.get(key)
        if site is None or site._process != os.getpid():
            site = _sites[key] = Site(Path(key))
        return site
