"""Telling a caller how far a long load has come."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import duckdb

#: Called with the name of what is being done, and the share of its present step that is done, from 0 to 1.
Progress = Callable[[str, float], None]

_INTERVAL_S = 0.2


@contextlib.contextmanager
def watched(connection: duckdb.DuckDBPyConnection, progress: Progress | None, name: str) -> Iterator[None]:
    """Calls `progress` every fifth of a second, from a thread of its own, while the connection works."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_INTERVAL_S):
            progress(name, min(max(connection.query_progress() / 100, 0.0), 1.0))

    watcher = threading.Thread(target=watch, name="graphdb-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    progress(name, 1.0)
