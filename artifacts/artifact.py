"""A directory that exists whole or not at all, described and checked by one manifest."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from multifacet.artifacts.files import exchange, hash_file, list_files, rename_new, sync_directories, sync_directory
from multifacet.artifacts.manifest import (
    MANIFEST_NAME,
    RESERVED_FIELDS,
    SCHEMA_VERSION,
    ArtifactError,
    canonical_bytes,
    check_file_name,
    check_json,
    read_manifest,
)
from multifacet.artifacts.temporaries import lock, remove_stale_temporaries, remove_tree, temporary_sibling
from multifacet.inputs import PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from types import TracebackType

__all__ = ["SCHEMA_VERSION", "Artifact", "ArtifactError", "ArtifactWriter", "remove_stale_temporaries"]

logger = logging.getLogger(__name__)

_MAX_HASHERS: Final = 8
_OPEN_ATTEMPTS: Final = 8


class ArtifactWriter:
    """Writes a directory beside its destination and moves it there in one step.

    Inside the ``with`` block, write files below `directory` and fill `manifest` with JSON-able fields. When the
    block ends without an error, every file is hashed and fsynced, the manifest is written, and the directory is
    renamed to ``path``; after an error, or when a step of this fails, the temporary directory is removed and
    nothing has changed at ``path``. A writer that is killed leaves only a hidden temporary directory, which the next
    writer of the same path, or `remove_stale_temporaries`, removes.

    Args:
        path: Where the artefact shall appear. Its parent directory is created when missing.
        kind: What the artefact is, e.g. ``"snapshot"``; readers ask for it.
        replace: Whether an artefact already at ``path`` is exchanged for the new one (in one atomic step where the
            file system offers one, as Linux's local ones do); otherwise an existing path is an error.

    Raises:
        ArtifactError: ``path`` exists and ``replace`` is false, a field is not JSON, or a file cannot be described.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with ArtifactWriter(Path(parent) / "greeting", kind="note") as writer:
        ...         _ = (writer.directory / "text").write_text("hello")
        ...         writer.manifest["language"] = "en"
        ...     Artifact.open(Path(parent) / "greeting", kind="note").manifest["language"]
        'en'
    """

    def __init__(self, path: str | os.PathLike[str], *, kind: str, replace: bool = False) -> None:
        if not kind:
            raise ArtifactError("An artefact's kind must be a non-empty string, such as 'snapshot'.")
        self.path: Path = Path(os.path.abspath(path))  # noqa: PTH100  (a link's own place, not its target)
        self.kind: str = kind
        self.replace: bool = replace
        self.manifest: dict[str, Any] = {}
        self.directory: Path = temporary_sibling(self.path)
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, kind={self.kind!r}, replace={self.replace})"

    def __enter__(self) -> Self:
        self._refuse_destination()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(self.path.parent, name=self.path.name)
        self.directory.mkdir()
        self._lock = lock(self.directory)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error_type is None:
                self._commit()
        finally:
            # After an exchange this name holds the replaced artefact; after a plain rename, nothing.
            remove_tree(self.directory)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _refuse_destination(self) -> None:
        if os.path.lexists(self.path):
            if not self.replace:
                raise ArtifactError(f"{self.path} already exists. Give another path, remove it, or pass replace=True.")
            if self.path.is_symlink() or not (self.path / MANIFEST_NAME).is_file():
                raise ArtifactError(
                    f"{self.path} is not an artefact (a directory with {MANIFEST_NAME}), so it is not replaced. "
                    "Give another path or remove it first."
                )

    def _commit(self) -> None:
        taken = sorted(RESERVED_FIELDS & self.manifest.keys())
        if taken:
            raise ArtifactError(f"The manifest's fields {taken} are written by ArtifactWriter; remove them.")
        check_json(self.manifest, "manifest")
        names = list_files(self.directory).keys()
        if MANIFEST_NAME in names:
            raise ArtifactError(f"{MANIFEST_NAME} is written by ArtifactWriter; name the file otherwise.")
        for name in names:
            check_file_name(name, self.path)
        files = {
            name: {"sha256": digest, "bytes": num_bytes}
            for name, (digest, num_bytes) in _hash_files(self.directory, names, sync=True)
        }
        document = {**self.manifest, "schema_version": SCHEMA_VERSION, "kind": self.kind, "files": files}
        with (self.directory / MANIFEST_NAME).open("xb") as stream:
            stream.write(canonical_bytes(document))
            stream.flush()
            os.fsync(stream.fileno())
        sync_directories(self.directory)
        self._move()
        sync_directory(self.path.parent)
        logger.info("Wrote %s %s (%d files).", self.kind, self.path, len(files))

    def _move(self) -> None:
        while not rename_new(self.directory, self.path):
            self._refuse_destination()
            try:
                if not exchange(self.directory, self.path):
                    self._replace_in_two_steps()
            except FileNotFoundError:
                continue  # another process removed the old artefact in between, so the name is free
            return

    def _replace_in_two_steps(self) -> None:
        # The old artefact's name is not a temporary's: if this process dies in between, nobody may sweep it away.
        aside = self.path.parent / f".{self.path.name}.replaced-{secrets.token_hex(6)}"
        self.path.rename(aside)
        try:
            self.directory.rename(self.path)
        except BaseException:
            aside.rename(self.path)
            raise
        remove_tree(aside)


class Artifact:
    """An artefact on disk, opened and checked against its manifest.

    Attributes:
        path: The directory, with symbolic links resolved, so that a moved link does not change an open artefact.
        manifest: The manifest's fields.
        fingerprint: The sha256 (hex) of the canonical manifest. It covers every file's sha256 and holds no clock and
            no path: equal content has an equal fingerprint.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], fingerprint: str, identity: tuple[int, ...]) -> None:
        self.path: Path = path
        self.manifest: dict[str, Any] = manifest
        self.fingerprint: str = fingerprint
        self._identity = identity

    def __repr__(self) -> str:
        files = self.manifest["files"]
        return (
            f"{type(self).__name__}(kind={self.kind}, files={len(files)}, bytes={sum(f['bytes'] for f in files.values())}, "
            f"fingerprint={self.fingerprint[:12]})"
        )

    @property
    def kind(self) -> str:
        """What the artefact is, as its writer named it."""
        return str(self.manifest["kind"])

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        kind: str | None = None,
        verify: bool = True,
        select: Callable[[Self], Collection[str]] | None = None,
    ) -> Self:
        """Opens an artefact and refuses one that differs from its manifest.

        Args:
            path: The artefact's directory, or a symbolic link to it.
            kind: The kind that the caller needs; None takes any.
            verify: Whether to read every file and compare its sha256. The list of files and their sizes are
                compared in any case.
            select: Gives the names of the files that the caller needs; the others may be absent, and are neither measured
                nor read. None needs all. A file that the manifest does not name is refused in any case.

        Raises:
            ArtifactError: There is no artefact, its manifest is not canonical, of an unknown ``schema_version`` or
                of another kind, or a file is missing, extra, truncated or changed (named in the message).
        """
        PATH("path", path)
        for _ in range(_OPEN_ATTEMPTS):
            root = Path(path).resolve()
            identity = _identity(root)
            try:
                artifact = cls._open_once(root, identity, kind=kind)
                artifact._check_files(artifact.manifest["files"] if select is None else select(artifact), verify=verify)
                artifact.check_unreplaced()
            except (ArtifactError, FileNotFoundError) as error:
                if identity == _identity(Path(path).resolve()):
                    if isinstance(error, ArtifactError):
                        raise
                    raise ArtifactError(f"{root}: {error.filename} disappeared while it was read.") from error
                logger.debug("%s was replaced while it was opened; opening it again.", root)
            else:
                return artifact
        raise ArtifactError(f"{path} was replaced {_OPEN_ATTEMPTS} times while it was opened; open it when that is over.")

    @classmethod
    def _open_once(cls, root: Path, identity: tuple[int, ...], *, kind: str | None) -> Self:
        raw, manifest = read_manifest(root)
        if kind is not None and manifest["kind"] != kind:
            raise ArtifactError(f"{root} is an artefact of kind {manifest['kind']!r}; expected {kind!r}.")
        return cls(root, manifest, hashlib.sha256(raw).hexdigest(), identity)

    def file(self, name: str) -> Path:
        """Gives the path of one of the artefact's files.

        Args:
            name: The file's name as the manifest has it, relative and with ``/``.

        Raises:
            ArtifactError: The manifest has no such file, or the artefact has been replaced since it was opened.
        """
        if name not in self.manifest["files"]:
            raise ArtifactError(f"{self.path} has no file {name!r}; it has {sorted(self.manifest['files'])}.")
        self.check_unreplaced()
        return self.path / name

    def check_unreplaced(self) -> None:
        """Raises `ArtifactError` if another artefact has taken this one's place since it was opened.

        Call it after opening (or mapping) several files, to know that all of them belong to this artefact.
        """
        if _identity(self.path) != self._identity:
            raise ArtifactError(f"{self.path} was replaced, changed or removed after it was opened; open it again.")

    def _check_files(self, needed: Collection[str], *, verify: bool) -> None:
        files: dict[str, dict[str, Any]] = self.manifest["files"]
        found = list_files(self.path)
        found.pop(MANIFEST_NAME, None)
        names = sorted(needed)
        faults = [f"{name}: missing" for name in names if name not in found]
        faults += [f"{name}: not in the manifest" for name in sorted(found.keys() - files.keys())]
        faults += [
            f"{name}: {found[name]} bytes, expected {files[name]['bytes']}"
            for name in names
            if name in found and found[name] != files[name]["bytes"]
        ]
        if not faults and verify:
            faults = [
                f"{name}: sha256 {digest}, expected {files[name]['sha256']}"
                for name, (digest, _) in _hash_files(self.path, names, sync=False)
                if digest != files[name]["sha256"]
            ]
        if faults:
            shown = "; ".join(faults[:10]) + ("; ..." if len(faults) > 10 else "")
            raise ArtifactError(
                f"{self.path} is not what its manifest says ({len(faults)} faults): {shown}. "
                "Write it again or fetch an intact copy."
            )


def _hash_files(root: Path, names: Iterable[str], *, sync: bool) -> list[tuple[str, tuple[str, int]]]:
    """Hashes files in parallel: (name, (sha256, bytes)) in the order of the names."""
    ordered = list(names)
    num_threads = max(1, min(len(ordered), len(os.sched_getaffinity(0)), _MAX_HASHERS))
    with ThreadPoolExecutor(num_threads) as pool:
        return list(zip(ordered, pool.map(lambda name: hash_file(root / name, sync=sync), ordered), strict=True))


def _identity(path: Path) -> tuple[int, ...]:
    """Tells one directory from another that takes its place; the time guards against a reused inode."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns
