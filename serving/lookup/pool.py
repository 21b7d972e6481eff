"""The worker processes of a lookup server: as many as cores, one mapping of the release's files, one address.

The server accepts framed connections and passes them on to its workers in turns. It alone is told what to hold, and remembers
it. It publishes a version only once every worker holds it, so that none is ever asked for what it has not. A worker that dies
is replaced by one that holds all of that before it gets a connection. Until then the others get them, or the server answers
itself.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multifacet.artifacts import ArtifactError

if TYPE_CHECKING:
    from multifacet.serving.config import LookupConfig

logger = logging.getLogger(__name__)

_ROOT: Final = Path(__file__).resolve().parents[3]
_HOLD_S: Final = 900.0
_COUNT_S: Final = 5.0
_WATCH_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0


class WorkerDiedError(Exception):
    """A worker process ended, or says nothing."""


class Worker:
    """One process, and the server's ends of its three sockets; see `serving.lookup.worker`."""

    def __init__(self, config: LookupConfig, describe: Callable[[], bytes]):
        ends = [socket.socketpair() for _ in range(3)]
        mine, theirs = zip(*ends, strict=True)
        settings = config.model_copy(update={"verify": False}).model_dump(mode="json", exclude_unset=True) | {"verify": False}
        options = [f"--{name}={end.fileno()}" for name, end in zip(("commands", "streams", "questions"), theirs, strict=True)]
        search_path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "multifacet.serving.lookup.worker", "--config-json", json.dumps(settings), *options],
            stdin=subprocess.DEVNULL,
            pass_fds=[end.fileno() for end in theirs],
            env={**os.environ, "PYTHONPATH": search_path},
        )
        for end in theirs:
            end.close()
        self._commands = Connection(mine[0].detach())
        self._streams = mine[1]
        self._streams.setblocking(False)
        self._questions = Connection(mine[2].detach())
        self.last_tally: dict[str, Any] = {}
        threading.Thread(target=self._answer, args=(describe,), name="worker-questions", daemon=True).start()

    def ask(self, command: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Have it do something.

        Raises:
            WorkerDiedError: It ended, or does not answer in time; it is killed then.
        """
        try:
            self._commands.send_bytes(json.dumps(command).encode())
            if self._commands.poll(timeout_s):
                answer: dict[str, Any] = json.loads(self._commands.recv_bytes())
                return answer
        except (OSError, EOFError) as error:
            raise WorkerDiedError(f"worker process {self.process.pid} ended") from error
        self.process.kill()
        raise WorkerDiedError(f"worker process {self.process.pid} said nothing for {timeout_s:g} s and was killed")

    def hold(self, version: str, path: str) -> None:
        """Have it hold a release.

        Raises:
            WorkerDiedError: It ended, or refuses.
        """
        answer = self.ask({"do": "hold", "version": version, "path": path}, _HOLD_S)
        if answer.get("error"):
            raise WorkerDiedError(f"worker process {self.process.pid} refuses {path}: {answer['error']}")

    def pass_on(self, stream: socket.socket) -> bool:
        """Give it a client's connection; whether it took it."""
        try:
            socket.send_fds(self._streams, [b"c"], [stream.fileno()])
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Kill it if it lives, and let go of it."""
        self.process.kill()
        self.process.wait()
        self._streams.close()
        self._commands.close()

    def _answer(self, describe: Callable[[], bytes]) -> None:
        try:
            while True:
                self._questions.recv_bytes()
                self._questions.send_bytes(describe())
        except (OSError, EOFError):
            self._questions.close()


class WorkerPool:
    """Starts, tells, watches and replaces the workers of one server.

    Args:
        config: The server's configuration; `processes` is how many workers there are.
        describe: The server's description, for clients that ask a worker.
    """

    def __init__(self, config: LookupConfig, describe: Callable[[], bytes]):
        self._config = config
        self._describe = describe
        self._lock = threading.RLock()
        self._held: dict[str, tuple[str, object]] = {}
        self._turn = 0
        self._ended_tallies: list[dict[str, Any]] = []
        self._num_replaced = 0
        self._stopping = threading.Event()
        self._workers: list[Worker | None] = [Worker(config, describe) for _ in range(config.processes)]
        self._watcher = threading.Thread(target=self._watch, name="worker-watch", daemon=True)
        self._watcher.start()

    @property
    def num_alive(self) -> int:
        """Workers that hold all versions and take connections."""
        return sum(worker is not None for worker in self._workers)

    @property
    def num_replaced(self) -> int:
        """Workers that ended and had to be replaced."""
        return self._num_replaced

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that take connections."""
        return [worker.process.pid for worker in self._workers if worker is not None]

    def hold(self, version: str, path: Path, half: object) -> None:
        """Have every worker hold a release; the server may publish it then.

        Args:
            version: The release's version.
            path: Its folder.
            half: What the server itself opened there, for `forget` to know it by.

        Raises:
            ArtifactError: One of them refuses; none holds it then.
        """
        with self._lock:
            self._held[version] = str(path), half
            for place, worker in enumerate(self._workers):
                refusal = "" if worker is None else self._tell(place, worker, version)
                if refusal:
                    self.forget(version)
                    raise ArtifactError(f"a worker process refuses {path}: {refusal}")

    def forget(self, version: str, half: object = None) -> None:
        """Have every worker let go of a version; each first answers what it is at.

        Args:
            version: A version; one that is not held is forgotten already.
            half: Only if this is what it is held as; None whatever it is.
        """
        with self._lock:
            if version not in self._held or half not in (None, self._held[version][1]):
                return
            del self._held[version]
            for place, worker in enumerate(self._workers):
                if worker is not None:
                    self._ask(place, worker, {"do": "forget", "version": version}, _COUNT_S)

    def reload(self) -> None:
        """Have every worker read its token again."""
        with self._lock:
            for place, worker in enumerate(self._workers):
                if worker is not None:
                    self._ask(place, worker, {"do": "reload"}, _COUNT_S)

    def pass_on(self, stream: socket.socket) -> bool:
        """Give a client's connection to the next worker in turn; False if none takes it."""
        for _ in range(len(self._workers)):
            self._turn = (self._turn + 1) % len(self._workers)
            worker = self._workers[self._turn]
            if worker is not None and worker.pass_on(stream):
                return True
        return False

    def tallies(self) -> list[dict[str, Any]]:
        """What each worker counted, those that ended included up to when they were last asked."""
        if self._lock.acquire(timeout=_COUNT_S):  # while a release is loaded, the last ones do
            try:
                self._count()
            finally:
                self._lock.release()
        workers = [worker for worker in self._workers if worker is not None]
        return [*self._ended_tallies, *(worker.last_tally for worker in workers if worker.last_tally)]

    def stop(self, drain_timeout_s: float) -> None:
        """Let the workers answer what they are at, and end them."""
        self._stopping.set()
        self._watcher.join()
        with self._lock:
            self._count()
            workers = [worker for worker in self._workers if worker is not None]
            enders = [threading.Thread(target=_end, args=(worker, drain_timeout_s)) for worker in workers]
            for ender in enders:
                ender.start()
            for ender in enders:
                ender.join()
            self._ended_tallies += [worker.last_tally for worker in workers if worker.last_tally]
            self._workers = [None] * len(self._workers)

    def _count(self) -> None:
        for place, worker in enumerate(self._workers):
            answer = None if worker is None else self._ask(place, worker, {"do": "count"}, _COUNT_S)
            if worker is not None and answer:
                worker.last_tally = answer["tally"]

    def _tell(self, place: int, worker: Worker, version: str) -> str:
        command = {"do": "hold", "version": version, "path": self._held[version][0]}
        return str((self._ask(place, worker, command, _HOLD_S) or {}).get("error", ""))

    def _ask(self, place: int, worker: Worker, command: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The worker's answer; None if it is dead, which the watch sees to."""
        try:
            return worker.ask(command, timeout_s)
        except WorkerDiedError as error:
            if not self._stopping.is_set():
                logger.warning("%s: it is replaced", error)
            self._drop(place, worker)
            return None

    def _drop(self, place: int, worker: Worker) -> None:
        self._workers[place] = None
        if worker.last_tally:
            self._ended_tallies.append(worker.last_tally)
        worker.close()

    def _watch(self) -> None:
        """Replace workers that end; a thread's work."""
        pause_s = _WATCH_S
        while not self._stopping.wait(pause_s):
            pause_s = _WATCH_S
            for place, worker in enumerate(self._workers):
                if worker is not None and worker.process.poll() is not None:
                    with self._lock:
                        if self._workers[place] is worker:
                            logger.warning("worker process %d ended (%s)", worker.process.pid, worker.process.returncode)
                            self._drop(place, worker)
                if self._workers[place] is None and not self._replace(place):
                    pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s + 0.5)

    def _replace(self, place: int) -> bool:
        """Start a worker in place of one that ended; whether it holds everything."""
        started = time.monotonic()
        worker = Worker(self._config, self._describe)
        try:
            worker.ask({"do": "count"}, _HOLD_S)  # until it has imported everything, without the lock
            with self._lock:
                for version, (path, _) in self._held.items():
                    worker.hold(version, path)
                self._workers[place] = worker
                self._num_replaced += 1
        except WorkerDiedError as error:
            logger.warning("no worker process in place of one that ended: %s", error)
            worker.close()
            return False
        logger.info("worker process %d replaces one, after %.1f s", worker.process.pid, time.monotonic() - started)
        return True


def _end(worker: Worker, drain_timeout_s: float) -> None:
    try:
        worker.ask({"do": "stop", "drain_timeout_s": drain_timeout_s}, drain_timeout_s + _COUNT_S)
    except WorkerDiedError as error:
        logger.warning("%s while it was stopped", error)
    worker.close()
