"""Which releases a server holds, kept in a file, so that one that is killed comes back with what it was told to serve."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from multifacet.serving.errors import InvalidRequestError, OverloadedError
from multifacet.serving.versions import LoadedVersions
from multifacet.tables.artifact import ArtifactError

T = TypeVar("T")


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    releases: tuple[Path, ...]
    current: str


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there as before or as wanted, whenever the process or the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Deployed(Generic[T]):
    """The releases of one server, by path, and the file that remembers them.

    Every change may be repeated: what is done already is not done again.

    Args:
        loaded: The server's versions.
        load: Opens the release at a path: its version, and what is served of it.
        check: Whether a version may be chosen; raises otherwise.
        state_file: Where to remember; None forgets when the process ends.
    """

    def __init__(
        self,
        loaded: LoadedVersions[T],
        load: Callable[[Path], tuple[str, T]],
        *,
        check: Callable[[str], None] = lambda _version: None,
        state_file: Path | None = None,
    ):
        self._loaded = loaded
        self._load = load
        self._check = check
        self._state_file = state_file
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()

    def path(self, version: str) -> Path | None:
        """Where a version was loaded from."""
        return self._paths.get(version)

    def open(self, releases: Sequence[Path]) -> None:
        """Load what the state file remembers; without one, these releases, of which the last becomes the current one.

        Raises:
            ArtifactError: A release is damaged, or the state file is none.
        """
        current = None
        if self._state_file is not None and self._state_file.exists():
            try:
                document = _Document.model_validate_json(self._state_file.read_bytes())
            except ValidationError as error:
                raise ArtifactError(
                    f"{self._state_file} is not a server's state: {error}. Remove it to start afresh."
                ) from error
            releases, current = document.releases, document.current
        for path in releases:
            self.load(path, current=True)
        if current is not None:
            self._loaded.choose(current)
        with self._lock:
            self._remember()

    def load(self, path: Path, *, current: bool = False) -> str:
        """Load a release beside the others; its version."""
        with self._lock:
            version, opened = self._load(path)
            self._loaded.add(version, opened, current=current)
            self._paths.setdefault(version, path)
            self._remember()
            return version

    def choose(self, version: str) -> None:
        """Make a loaded version the current one."""
        with self._lock:
            self._loaded.get(version)
            self._check(version)
            self._loaded.choose(version)
            self._remember()

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
        with self._lock:
            held = dict(self._loaded.items())
            if version not in held:
                return
            self._loaded.retire(version)
            if timeout_s and not self._loaded.wait_for_readers(version, timeout_s):
                self._loaded.add(version, held[version], current=False)
                readers = self._loaded.num_readers(version)
                raise OverloadedError(f"version {version} still has {readers} readers after {timeout_s:g} s: it stays loaded")
            self._paths.pop(version, None)
            self._remember()

    def _remember(self) -> None:
        if self._state_file is None:
            return
        paths = [str(self._paths[version]) for version in self._loaded.versions if version in self._paths]
        write_whole(self._state_file, json.dumps({"releases": paths, "current": self._loaded.current}, indent=2) + "\n")


def inside(path: str, folder: Path) -> Path:
    """A path that a caller names, if it is within a folder once all links are followed.

    Raises:
        InvalidRequestError: It is not.
    """
    resolved = Path(path).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise InvalidRequestError(f"{path} is not below {folder}, from where this server may load releases")
    return resolved
