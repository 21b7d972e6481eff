"""The hidden sibling directories in which artefacts are written before they get their name."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Final

from multifacet.inputs import PATH, kind, takes

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"\.(?P<name>.+)\.tmp-(?P<pid>[1-9][0-9]{0,9})-[0-9a-f]+", re.DOTALL)


def temporary_sibling(path: Path) -> Path:
    """Gives an unused hidden name beside a path, which tells the process that writes there."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(6)}")


@takes(parent=PATH, name=kind(str))
def remove_stale_temporaries(parent: str | os.PathLike[str], *, name: str | None = None) -> list[Path]:
    """Removes what killed `ArtifactWriter`s left in a directory.

    Only directories named as a writer's temporary are touched, and of those only the ones whose process no longer
    exists and whose lock nobody holds.

    Args:
        parent: The directory in which artefacts are written.
        name: The artefact whose leftovers are meant; None means all.

    Returns:
        The removed directories, sorted.
    """
    removed = []
    with os.scandir(parent) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match is None or (name is not None and match["name"] != name):
                continue
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False) and not _has_writer(path, int(match["pid"])):
                remove_tree(path)
                logger.info("Removed %s, left by a killed writer.", path)
                removed.append(path)
    return sorted(removed)


def _has_writer(directory: Path, pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        descriptor = lock(directory)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False
    except PermissionError:
        return True
    return True


def lock(directory: Path) -> int | None:
    """Locks a temporary directory; gives the open descriptor that holds the lock.

    None means that another process holds it, that the file system has no locks, or that the directory is gone.

    The kernel drops the lock with its process: a held one tells that a writer lives, even where its process id means
    nothing (another container on the same volume).
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        logger.debug("%s cannot be locked: %s.", directory, error.strerror)
        return None
    return descriptor


def remove_tree(directory: Path) -> None:
    """Removes a directory and what is in it; warns of what cannot be removed."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        logger.warning("%s could not be removed whole; remove it by hand.", directory)
