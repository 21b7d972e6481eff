"""A directory that exists whole or not at all, described and checked by one manifest."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"

_RESERVED_FIELDS: Final = frozenset({"schema_version", "kind", "files"})
_READ_BYTES: Final = 4 << 20
_TEMPORARY_NAME: Final = re.compile(r"\.(?P<name>.+)\.tmp-(?P<pid>[0-9]+)-[0-9a-f]+", re.DOTALL)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
# A file system without these flags (some network ones), or a kernel without the call.
_RENAME_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})


class ArtifactError(ValueError):
    """An artefact that cannot be written, or that is not what its manifest says."""


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
        self.directory: Path = self.path.parent / (f".{self.path.name}.tmp-{os.getpid()}-{secrets.token_hex(6)}")
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, kind={self.kind!r}, replace={self.replace})"

    def __enter__(self) -> Self:
        self._refuse_destination()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(self.path.parent, name=self.path.name)
        self.directory.mkdir()
        # The kernel drops this lock with the process: a held one tells `remove_stale_temporaries` that the writer
        # lives, even when its process id means nothing here (another container on the same volume).
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            shutil.rmtree(self.directory, ignore_errors=True)
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
        taken = sorted(_RESERVED_FIELDS & self.manifest.keys())
        if taken:
            raise ArtifactError(f"The manifest's fields {taken} are written by ArtifactWriter; remove them.")
        _check_json(self.manifest, "manifest")
        sizes = _list_files(self.directory)
        if MANIFEST_NAME in sizes:
            raise ArtifactError(f"{MANIFEST_NAME} is written by ArtifactWriter; name the file otherwise.")
        for name in sizes:
            _check_name(name, self.path)
        with ThreadPoolExecutor(_num_readers(len(sizes))) as pool:
            digests = pool.map(lambda name: _hash_file(self.directory / name, sync=True), sizes)
            files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in zip(sizes, digests, strict=True)}
        document = {**self.manifest, "schema_version": SCHEMA_VERSION, "kind": self.kind, "files": files}
        with (self.directory / MANIFEST_NAME).open("xb") as stream:
            stream.write(_canonical(document))
            stream.flush()
            os.fsync(stream.fileno())
        for directory, _, _ in os.walk(self.directory):
            _sync_directory(Path(directory))
        self._move()
        _sync_directory(self.path.parent)
        logger.info("Wrote %s %s (%d files, %d bytes).", self.kind, self.path, len(files), sum(sizes.values()))

    def _move(self) -> None:
        try:
            if not _rename(self.directory, self.path, _RENAME_NOREPLACE):
                # An artefact is never an empty directory, so a plain rename cannot replace one either.
                self.directory.rename(self.path)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
        else:
            return
        self._refuse_destination()
        if not _rename(self.directory, self.path, _RENAME_EXCHANGE):
            aside = self.path.parent / f".{self.path.name}.tmp-{os.getpid()}-{secrets.token_hex(6)}"
            self.path.rename(aside)
            self.directory.rename(self.path)
            shutil.rmtree(aside, ignore_errors=True)


class Artifact:
    """An artefact on disk, opened and checked against its manifest.

    Attributes:
        path: The directory, with symbolic links resolved, so that a moved link does not change an open artefact.
        manifest: The manifest's fields.
        fingerprint: The sha256 (hex) of the canonical manifest. It covers every file's sha256 and holds no clock and
            no path: equal content has an equal fingerprint.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], fingerprint: str) -> None:
        self.path: Path = path
        self.manifest: dict[str, Any] = manifest
        self.fingerprint: str = fingerprint
        self._identity: tuple[int, int] = _identity(path)

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
    def open(cls, path: str | os.PathLike[str], *, kind: str | None = None, verify: bool = True) -> Self:
        """Opens an artefact and refuses one that differs from its manifest.

        Args:
            path: The artefact's directory, or a symbolic link to it.
            kind: The kind that the caller needs; None takes any.
            verify: Whether to read every file and compare its sha256. The list of files and their sizes are
                compared in any case.

        Raises:
            ArtifactError: There is no artefact, its manifest is not canonical, of an unknown ``schema_version`` or
                of another kind, or a file is missing, extra, truncated or changed (named in the message).
        """
        root = Path(path).resolve()
        raw, manifest = _read_manifest(root)
        if kind is not None and manifest["kind"] != kind:
            raise ArtifactError(f"{root} is an artefact of kind {manifest['kind']!r}; expected {kind!r}.")
        artifact = cls(root, manifest, hashlib.sha256(raw).hexdigest())
        artifact._check_files(verify=verify)
        artifact.check_unreplaced()
        return artifact

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
        try:
            unreplaced = _identity(self.path) == self._identity
        except FileNotFoundError:
            unreplaced = False
        if not unreplaced:
            raise ArtifactError(f"{self.path} was replaced or removed after it was opened; open it again.")

    def _check_files(self, *, verify: bool) -> None:
        files: dict[str, dict[str, Any]] = self.manifest["files"]
        found = _list_files(self.path)
        found.pop(MANIFEST_NAME, None)
        faults = [f"{name}: missing" for name in sorted(files.keys() - found.keys())]
        faults += [f"{name}: not in the manifest" for name in sorted(found.keys() - files.keys())]
        faults += [
            f"{name}: {found[name]} bytes, expected {entry['bytes']}"
            for name, entry in sorted(files.items())
            if name in found and found[name] != entry["bytes"]
        ]
        if not faults and verify:
            with ThreadPoolExecutor(_num_readers(len(files))) as pool:
                digests = pool.map(lambda name: _hash_file(self.path / name, sync=False), files)
                faults = [
                    f"{name}: sha256 {digest}, expected {entry['sha256']}"
                    for (name, entry), (digest, _) in zip(files.items(), digests, strict=True)
                    if digest != entry["sha256"]
                ]
        if faults:
            shown = "; ".join(faults[:10]) + ("; ..." if len(faults) > 10 else "")
            raise ArtifactError(
                f"{self.path} is not what its manifest says ({len(faults)} faults): {shown}. "
                "Write it again or fetch an intact copy."
            )


def remove_stale_temporaries(parent: str | os.PathLike[str]) -> list[Path]:
    """Removes what killed `ArtifactWriter`s left in a directory.

    Only directories named as a writer's temporary are touched, and of those only the ones whose process no longer
    exists and whose lock nobody holds.

    Args:
        parent: The directory in which artefacts are written.

    Returns:
        The removed directories, sorted.
    """
    return _remove_stale(Path(parent), name=None)


def _remove_stale(parent: Path, name: str | None) -> list[Path]:
    removed = []
    for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
        match = _TEMPORARY_NAME.fullmatch(entry.name)
        if match is None or (name is not None and match["name"] != name):
            continue
        if entry.is_dir(follow_symlinks=False) and not _has_writer(Path(entry.path), int(match["pid"])):
            shutil.rmtree(entry.path, ignore_errors=True)
            logger.info("Removed %s, left by a killed writer.", entry.path)
            removed.append(Path(entry.path))
    return removed


def _has_writer(directory: Path, pid: int) -> bool:
    if pid == os.getpid() or Path(f"/proc/{pid}").exists():
        return True
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _canonical(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _check_json(value: object, where: str) -> None:
    """Refuses what JSON cannot hold exactly, naming its place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ArtifactError(f"{where} has the key {key!r}; JSON takes strings only.")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_json(item, f"{where}[{position}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ArtifactError(f"{where} is {value}, which JSON cannot hold; leave it out or write None.")
    elif value is not None and not isinstance(value, str | int):
        raise ArtifactError(
            f"{where} is a {type(value).__qualname__}, which JSON cannot hold; convert it to a plain number, string, "
            "list or dict."
        )


def _read_manifest(root: Path) -> tuple[bytes, dict[str, Any]]:
    path = root / MANIFEST_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise ArtifactError(f"There is no artefact at {root}: {MANIFEST_NAME} is missing.") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be opened as a plain file: {error.strerror}.") from error
    with os.fdopen(descriptor, "rb") as stream:
        raw = stream.read()
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}.") from error
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{path} holds a {type(manifest).__name__}; expected an object.")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"{path} has schema_version {version!r}; this version of multifacet reads {SCHEMA_VERSION}. "
            "Use the version that wrote it, or write it again."
        )
    if not isinstance(manifest.get("kind"), str):
        raise ArtifactError(f"{path}: the field 'kind' must be a string.")
    _check_file_entries(manifest.get("files"), path)
    try:
        canonical = _canonical(manifest)
    except ValueError as error:
        raise ArtifactError(f"{path} holds a value that JSON does not have: {error}.") from error
    if canonical != raw:
        raise ArtifactError(f"{path} is not in canonical form, so it was edited after it was written.")
    return raw, manifest


def _check_file_entries(files: object, manifest_path: Path) -> None:
    if not isinstance(files, dict):
        raise ArtifactError(f"{manifest_path}: the field 'files' must be an object.")
    for name, entry in files.items():
        _check_name(name, manifest_path)
        if not (
            isinstance(entry, dict)
            and entry.keys() == {"sha256", "bytes"}
            and isinstance(entry["sha256"], str)
            and _SHA256.fullmatch(entry["sha256"])
            and type(entry["bytes"]) is int
            and entry["bytes"] >= 0
        ):
            raise ArtifactError(f"{manifest_path}: files[{name!r}] must be {{'sha256': hex, 'bytes': count}}.")


def _check_name(name: str, where: Path) -> None:
    plain = bool(name) and name.isprintable() and "\\" not in name and name != MANIFEST_NAME
    if not plain or any(part in {"", ".", ".."} for part in name.split("/")) or PurePosixPath(name).is_absolute():
        raise ArtifactError(
            f"{where}: the file name {name!r} is refused; names are relative, with '/', and stay inside the artefact."
        )


def _list_files(root: Path) -> dict[str, int]:
    """Lists the plain files below a directory: relative name -> bytes, sorted by name."""
    sizes: dict[str, int] = {}
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(root).as_posix()
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(Path(entry.path))
                elif stat.S_ISREG(status.st_mode):
                    sizes[name] = status.st_size
                else:
                    raise ArtifactError(f"{root}: {name} is a link or a special file; an artefact has plain files only.")
    return dict(sorted(sizes.items()))


def _hash_file(path: Path, *, sync: bool) -> tuple[str, int]:
    """Gives a file's sha256 (hex) and bytes, reading with a large buffer; fsyncs it first if asked."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    total = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if sync:
            os.fsync(descriptor)
        while count := stream.readinto(buffer):
            digest.update(view[:count])
            total += count
    return digest.hexdigest(), total


def _num_readers(num_files: int) -> int:
    return max(1, min(num_files, len(os.sched_getaffinity(0)), 8))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Renames by Linux's renameat2; False if the system or the file system does not offer it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _RENAME_UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
