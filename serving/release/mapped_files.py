"""Whether the files that a server has mapped are still what it opened.

A file that is written to in place changes the rows under a version that was checked, and one that is cut ends the process with
SIGBUS at the next row behind its end. A mapping follows neither a removal nor a rename: both are harmless.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
import weakref
from typing import TYPE_CHECKING, Final

from multifacet.artifacts import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

_READ_BYTES: Final = 4 << 20


def open_plain(path: Path) -> int:
    """A descriptor to read a plain file by; a pipe, a socket or a device is refused, and never waited for.

    Raises:
        ArtifactError: It is none, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be opened as a plain file: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path} is not a plain file; a release has plain files only")
    return descriptor


class MappedFiles:
    """Watches some files of a release by their time of change and size; safe to share between threads.

    Args:
        root: The release's directory.
        files: Names of the files and their sha256 (hex).

    Attributes:
        fault: What was changed; empty while nothing was.

    Raises:
        ArtifactError: One is not a plain file.
    """

    def __init__(self, root: Path, files: Sequence[tuple[str, str]]):
        self.fault = ""
        self._root = root
        self._files = tuple(files)
        self._descriptors: list[int] = []
        self._close = weakref.finalize(self, _close_all, self._descriptors)
        for name, _ in self._files:
            self._descriptors.append(open_plain(root / name))
        self._opened = [os.fstat(descriptor) for descriptor in self._descriptors]
        self._seen = [(status.st_ctime_ns, status.st_size) for status in self._opened]
        self._to_hash: set[int] = set()
        self._lock = threading.Lock()

    def is_intact(self) -> bool:
        """Look at every file now."""
        if self.fault:
            return False
        for place, descriptor in enumerate(self._descriptors):
            status = os.fstat(descriptor)
            if (status.st_ctime_ns, status.st_size) != self._seen[place]:
                self._compare(place, status)
        return not self.fault

    def is_whole(self) -> bool:
        """Look at every file's length now, which is cheaper: whether rows may be read, if not whether they are right."""
        if self.fault:
            return False
        for place, descriptor in enumerate(self._descriptors):
            if os.lseek(descriptor, 0, os.SEEK_END) != self._seen[place][1]:
                return self.is_intact()
        return True

    def examine(self) -> bool:
        """As `is_intact`; also read those files whose time of change moved while time and size are as before.

        That is so after a removal, a rename or a new mode, but also after a copy that set the old time again.
        """
        self.is_intact()
        while self._to_hash and not self.fault:
            with self._lock:
                place = self._to_hash.pop()
            name, expected = self._files[place]
            digest = _sha256(self._descriptors[place])
            if digest != expected:
                self._note(f"{name}: sha256 {digest}, expected {expected}")
        return not self.fault

    def _compare(self, place: int, status: os.stat_result) -> None:
        opened = self._opened[place]
        name = self._files[place][0]
        if status.st_size != opened.st_size:
            self._note(f"{name}: {status.st_size} bytes, opened with {opened.st_size}")
        elif status.st_mtime_ns != opened.st_mtime_ns:
            self._note(f"{name}: written to")
        else:
            with self._lock:
                self._seen[place] = (status.st_ctime_ns, status.st_size)
                self._to_hash.add(place)

    def _note(self, fault: str) -> None:
        with self._lock:
            if self.fault:
                return
            self.fault = fault
        logger.error(
            "%s was changed while it was served (%s): its version is refused from now on. Load an intact copy from another "
            "path, or put one there and load it or restart the server",
            self._root,
            fault,
        )


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _sha256(descriptor: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(descriptor, _READ_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
