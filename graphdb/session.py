"""An open store: its connection, its transactions, and its file as a whole."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb

from multifacet.graphdb.database import create_database, open_database, read_schema, remove_database, rewrite_database
from multifacet.graphdb.edgelog import sweep
from multifacet.graphdb.locks import Site, site_of
from multifacet.graphdb.schema import GraphSchema
from multifacet.graphdb.sql import GraphError, begin_reading, first_line, run
from multifacet.graphdb.storage import Storage, log_folder

logger = logging.getLogger(__name__)


class Session:
    """A handle on a store's file.

    Attributes:
        path: The store's file.
        read_only: Whether the handle cannot write.
        storage: Where the store keeps its edges.
        site: What this process's handles on the store share.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[], tuple[duckdb.DuckDBPyConnection, GraphSchema, Storage]],
        site: Site,
        *,
        read_only: bool,
    ) -> None:
        self.path = path
        self.read_only = read_only
        self.site = site
        self._connect = connect
        self._connection, self.schema, self.storage = connect()
        self._schema_text = ""
        self._asking = threading.local()
        self._cursors: list[duckdb.DuckDBPyConnection] = []
        self._is_open = True

    @classmethod
    def create(
        cls, path: Path, schema: GraphSchema, storage: Storage, memory_limit: str | None, threads: int | None
    ) -> Session:
        """Creates an empty store, and a handle on it that can write.

        Raises:
            GraphError: Something is at `path`, or where its log would be, already.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        site = site_of(path)
        site.enter()
        try:
            create_database(path, schema, storage, memory_limit, threads).close()
            return cls(path, lambda: open_database(path, False, memory_limit, threads), site, read_only=False)
        except BaseException:
            site.leave()
            raise

    @classmethod
    def open(cls, path: Path, memory_limit: str | None, threads: int | None, *, read_only: bool) -> Session:
        """Gives a handle on a store.

        Raises:
            GraphError: There is no store at `path`, another process writes to it, or another version wrote it.
        """
        site = site_of(path)
        connect = lambda: open_database(path, read_only, memory_limit, threads)  # noqa: E731 - one line
        if read_only or not path.is_file():
            return cls(path, connect, site, read_only=read_only)
        site.enter()
        try:
            session = cls(path, connect, site, read_only=False)
            if site.num_writers == 1:
                # A writer has the store for itself: nothing reads the files that an earlier one left.
                remove_database(path.with_name(f"{path.name}.rewriting"))
                session.sweep()
        except BaseException:
            site.leave()
            raise
        return session

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The handle's connection, to make cursors of."""
        return self._connection

    def close(self) -> None:
        """Closes the file; what was opened by the handle ends with it."""
        if not self._is_open:
            return
        self._is_open = False
        if self.read_only:
            self._connection.close()
            return
        try:
            # The last handle on a file moves what was committed into it.
            with self.site.changing_files():
                self._connection.close()
        finally:
            self.site.leave()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """This thread's cursor for questions: a cursor's first query costs more than all that follow."""
        if getattr(self._asking, "of", None) is not self._connection:
            self._asking.of = self._connection
            self._asking.cursor = self._connection.cursor()
            self._cursors.append(self._asking.cursor)
        cursor: duckdb.DuckDBPyConnection = self._asking.cursor
        return cursor

    @contextlib.contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yields a cursor in a transaction that cannot write."""
        with self._connection.cursor() as cursor:
            begin_reading(cursor)
            yield cursor

    @contextlib.contextmanager
    def transaction(self, what: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yields a cursor in a transaction that is committed in the end, or rolled back after an error.

        Args:
            what: What it does, for messages.

        Raises:
            GraphError: The handle cannot write, or DuckDB could not do it.
        """
        if self.read_only:
            msg = f"{self.path} is open read-only; open it with GraphStore.open(path) to write"
            raise GraphError(msg)
        with self.site.writing, self._told(what):
            cursor = self._connection.cursor()
            try:
                cursor.begin()
                try:
                    self._refresh(cursor)
                    yield cursor
                except BaseException:
                    cursor.rollback()
                    raise
                with self.site.changing_files():
                    cursor.commit()
                    # A copy of the file alone is to hold what was loaded; a long-running reader can be in the way.
                    with contextlib.suppress(duckdb.TransactionException):
                        run(cursor, "CHECKPOINT")
                self.site.ids.clear()
            finally:
                cursor.close()

    @contextlib.contextmanager
    def changing_schema(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yields a cursor in a transaction that changes the schema."""
        try:
            with self.transaction("changing the schema") as cursor:
                yield cursor
        finally:
            self.refresh()

    def refresh(self) -> None:
        """Takes up what another handle of this process changed in the schema."""
        with self.reading() as cursor:
            self._refresh(cursor)

    def _refresh(self, cursor: duckdb.DuckDBPyConnection) -> None:
        text = read_schema(cursor)
        if text != self._schema_text:
            self._schema_text, self.schema = text, GraphSchema.model_validate_json(text)

    def sweep(self) -> None:
        """Removes the files of the log that earlier changes left, unless a view may read them still."""
        log = self.storage.log
        if log is not None and not self.read_only and all(view.is_closed for view in self.site.views):
            with self.transaction("sweeping the log") as cursor, self.site.changing_files():
                sweep(cursor, log)

    def rewrite(self) -> bool:
        """Puts a file that holds the store's rows alone in the place of its file; returns False where that is in use."""
        with self.site.writing, self._told("rewriting the store"):
            if self.site.num_writers > 1 or not all(view.is_closed for view in self.site.views):
                return False
            with self.site.changing_files():
                fresh = rewrite_database(self._connection, self.path)
                for cursor in self._cursors:
                    cursor.close()
                self._cursors.clear()
                self._connection.close()
                fresh.replace(self.path)
                self._connection, self.schema, self.storage = self._connect()
            return True

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Tells DuckDB's errors in our words."""
        try:
            yield
        except duckdb.OutOfMemoryException as error:
            msg = (
                f"{what}: out of memory: {first_line(error)}; nothing was changed. Give it more by memory_limit, or load "
                f"smaller files"
            )
            raise GraphError(msg) from error
        except duckdb.Error as error:
            msg = f"{what}: {first_line(error)}; nothing was changed"
            raise GraphError(msg) from error


def back_up(path: Path, to: Path) -> None:
    """Copies a store while another process, or this one, may write to it: what was committed last.

    Args:
        path: The store's file.
        to: The file to make.

    Raises:
        GraphError: There is no store at `path`, or something at `to`.
    """
    if not path.is_file():
        msg = f"there is no store at {path} to copy"
        raise GraphError(msg)
    log, log_copy = log_folder(path), log_folder(to)
    for taken in (to, log_copy):
        if taken.exists():
            msg = f"{taken} exists; remove it, or choose another path"
            raise GraphError(msg)
    to.parent.mkdir(parents=True, exist_ok=True)
    unfinished = to.with_name(f".{to.name}.unfinished")
    remove_database(unfinished)
    unfinished_log = log_folder(unfinished)
    shutil.rmtree(unfinished_log, ignore_errors=True)
    try:
        with site_of(path).changing_files():
            for suffix in ("", ".wal"):
                part = path.with_name(path.name + suffix)
                if part.exists():
                    _copy(part, unfinished.with_name(unfinished.name + suffix))
            if log.exists():
                shutil.copytree(log, unfinished_log)
        # DuckDB takes the changes in the log of the copy into its file.
        duckdb.connect(str(unfinished)).close()
        if unfinished_log.exists():
            unfinished_log.replace(log_copy)
        unfinished.replace(to)
    finally:
        remove_database(unfinished)
        shutil.rmtree(unfinished_log, ignore_errors=True)


def _copy(file: Path, to: Path) -> None:
    # In a process of its own: DuckDB's lock on a file ends when its process closes any handle on it.
    done = subprocess.run(["cp", "--reflink=auto", "--", file, to], check=False, capture_output=True, text=True)  # noqa: S607 - of any PATH
    if done.returncode:
        msg = f"cannot copy {file}: {done.stderr.strip()}"
        raise GraphError(msg)
