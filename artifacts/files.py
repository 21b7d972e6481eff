"""What an artefact needs of the file system: listing, hashing, syncing and atomic renames."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from multifacet.artifacts.manifest import ArtifactError

_READ_BYTES: Final = 4 << 20
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
# A file system without these flags (some network ones), or a kernel without the call.
_RENAME_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})


def list_files(root: Path) -> dict[str, int]:
    """Lists the plain files below a directory.

    Args:
        root: The directory.

    Returns:
        Name relative to the root, with '/', -> bytes; sorted by name.

    Raises:
        ArtifactError: There is a symbolic link or a special file (named).
    """
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


def hash_file(path: Path, *, sync: bool = False) -> tuple[str, int]:
    """Reads a file to its end, with a large buffer and without following a link.

    Args:
        path: The file.
        sync: Whether to fsync it first.

    Returns:
        Its sha256 (hex) and its bytes.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    num_bytes = 0
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as stream:
        if sync:
            os.fsync(stream.fileno())
        while count := stream.readinto(buffer):
            digest.update(view[:count])
            num_bytes += count
    return digest.hexdigest(), num_bytes


def sync_directories(root: Path) -> None:
    """Fsyncs a directory and all directories below it, so that their entries survive a power cut."""
    for directory, _, _ in os.walk(root):
        sync_directory(Path(directory))


def sync_directory(path: Path) -> None:
    """Fsyncs one directory."""
    with _opened_directory(path) as descriptor:
        sync_open(descriptor)


def sync_open(descriptor: int) -> None:
    """Fsyncs what is open."""
    os.fsync(descriptor)


@contextlib.contextmanager
def _opened_directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def rename_new(source: Path, target: Path) -> bool:
    """Renames a non-empty directory to a name that is free.

    Returns:
        False, and nothing has changed, if the name is taken.
    """
    try:
        if not _renameat2(source, target, _RENAME_NOREPLACE):
            # A plain rename replaces nothing but an empty directory.
            source.rename(target)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
            return False
        raise
    return True


def exchange(source: Path, target: Path) -> bool:
    """Swaps two existing directories in one atomic step; False if the file system has none."""
    return _renameat2(source, target, _RENAME_EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Linux's renameat2, which Python's os lacks; False if the system or the file system does not offer it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _RENAME_UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def link_or_copy(source: Path, destination: Path) -> None:
    """Give a file that is never changed a second name; copy it where the file system has no links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def sync_file(path: Path) -> None:
    """Fsyncs a file that is closed."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool) -> Iterator[Path]:
    """Give a hidden path beside a file's place, and put what was written there into the place: whole or not at all.

    After an error nothing is left beside the place, and what stood in it stands there still.

    Args:
        path: The file's place; its folder exists.
        durable: Whether the file must outlive a power cut: it is fsynced before it gets its name, and its folder after.

    Yields:
        Where to write.
    """
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}-{threading.get_ident()}")
    with contextlib.ExitStack() as opened:
        # Before the file has its name: a process that is out of descriptors must not fail behind that, with the file changed.
        folder = opened.enter_context(_opened_directory(path.parent)) if durable else None
        try:
            yield unfinished
            if folder is not None:
                sync_file(unfinished)
            unfinished.replace(path)
            if folder is not None:
                sync_open(folder)
        finally:
            unfinished.unlink(missing_ok=True)


def write_file(path: Path, content: str, *, durable: bool) -> None:
    """Write a text, UTF-8, whole or not at all; see `replacing`."""
    with replacing(path, durable=durable) as unfinished:
        unfinished.write_text(content, encoding="utf-8")
