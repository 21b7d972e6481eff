"""Where compiled kernels are kept when the installation cannot be written to.

numba keeps them beside the source, and refuses to import a function that it may not keep anywhere: a server that runs as a user
of its own, on a read-only tree, would not start.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_VARIABLE = "NUMBA_CACHE_DIR"
_FOLDER = "multifacet-numba"


def settle() -> None:
    """Let numba keep its code where this user may write.

    That is, the first of: NUMBA_CACHE_DIR; the folder of the source; CACHE_DIRECTORY, as systemd sets it; XDG_CACHE_HOME or
    ~/.cache; a folder
    that goes with the process.
    """
    if os.environ.get(_VARIABLE) or _may_write_beside_the_source():
        return
    folder = _kept() or _thrown_away()
    os.environ[_VARIABLE] = str(folder)
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = str(folder)


def _may_write_beside_the_source() -> bool:
    source = Path(__file__).resolve().parent
    cache = source / "__pycache__"
    return os.access(cache if cache.is_dir() else source, os.W_OK)


def _kept() -> Path | None:
    # systemd may list several folders, with a colon between them.
    given = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0] or os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "")
    for parent in (given, f"{home}/.cache" if home else ""):
        if not parent:
            continue
        folder = Path(parent) / _FOLDER
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        status = folder.stat()
        # What lies there is run: nobody else may have put it there.
        if status.st_uid == os.geteuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    return None


def _thrown_away() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="multifacet-numba-"))
    maker = os.getpid()

    def remove() -> None:
        if os.getpid() == maker:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    logger.warning(
        "compiled kernels cannot be kept: each start compiles them anew. Give CacheDirectory= in the unit, or %s", _VARIABLE
    )
    return folder
