"""A worker process of a lookup server: answers the framed connections that the server passes on to it.

The server starts it as ``python -m multifacet.serving.lookup.worker`` with three connected sockets:

    commands     JSON from the server, each answered: hold or forget a version, say which, count, read files again, stop
    streams      connected sockets of clients, passed on one by one
    questions    from here: what does the server say of itself; a description must be the group's, and not this process's

It ends when the server does, however it does: then `commands` ends.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multifacet.kernels.memory import give_freed_memory_back
from multifacet.serving.config import LookupConfig
from multifacet.serving.errors import ServingError, UnavailableError, VersionNotLoadedError
from multifacet.serving.framed.server import FramedServer
from multifacet.serving.lookup.answering import LookupAnswers
from multifacet.serving.lookup.opening import open_half
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.server.metrics import ServerMetrics
from multifacet.serving.server.versions import LoadedVersions
from multifacet.serving.tracing import TraceFormatter, start_exporting

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("multifacet.serving.worker")

_ANSWER_S = 5.0
_LIST_BYTES = 16
_LOOK_EVERY_S = 0.5


class LookupWorker(LookupAnswers):
    """Holds what the server says, and answers.

    Args:
        config: The server's.
        questions: Where to ask the server.
    """

    def __init__(self, config: LookupConfig, questions: Connection):
        super().__init__(config, LoadedVersions("lookup server"), ServerMetrics("lookup", ("total",)))
        self._questions = questions
        self._asking = threading.Lock()
        self.framed = FramedServer(config, self._answer_frame, self.metrics, self._answer_quickly)

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what the server says; what to answer."""
        match command["do"]:
            case "hold":
                half = open_half(Path(command["path"]), self.config, dict(self._loaded.items()).get)
                if half.release.version != command["version"]:
                    return {"error": f"{command['path']} is version {half.release.version} now, not {command['version']}"}
                self._loaded.put(half.release.version, half)
            case "forget":
                with contextlib.suppress(ValueError):  # it is not held: nothing is left to do
                    if command["version"] in self._loaded:
                        self._loaded.close(command["version"])
                        self._loaded.forget(command["version"])
            case "count":
                return {"tally": self.metrics.tally(), "connections": self.framed.num_connections}
            case "versions":
                return {"versions": self._loaded.versions}
            case "reload":
                self.framed.token.reload()
        return {}

    def _describe(self) -> lookup_pb2.LookupDescription:
        with self._asking:
            try:
                self._questions.send_bytes(b"describe")
                if not self._questions.poll(_ANSWER_S):
                    raise UnavailableError("this worker process got no answer from its server in time")
                description = lookup_pb2.LookupDescription()
                description.ParseFromString(self._questions.recv_bytes())
            except (OSError, EOFError) as error:
                raise UnavailableError(f"this worker process has lost its server: {error}") from error
            return description

    def watch_files(self) -> None:
        """Look at the mapped files, whether requests come or not; a thread's work."""
        while True:
            time.sleep(_LOOK_EVERY_S)
            for version in self._loaded.versions:
                with contextlib.suppress(VersionNotLoadedError):  # forgotten just now
                    self._loaded.get(version).files.examine()


def adopt_all(streams: socket.socket, framed: FramedServer) -> None:
    """Take the clients' sockets that the server passes on, until it ends; a thread's work."""
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(streams, 1, _LIST_BYTES)
        except OSError:
            return
        if not data:
            return
        for descriptor in descriptors:
            framed.adopt(socket.socket(fileno=descriptor))


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer until the server says to stop, or ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-json", required=True)
    for name in ("commands", "streams", "questions"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parsed = parser.parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TraceFormatter(f"%(asctime)s %(levelname)s %(name)s[{os.getpid()}]: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    faulthandler.enable()
    give_freed_memory_back()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a whole group may get them; the server says when to stop
    config = LookupConfig.model_validate_json(parsed.config_json)
    if config.tracing == "otlp":
        start_exporting("multifacet-lookup")
    commands = Connection(parsed.commands)
    worker = LookupWorker(config, Connection(parsed.questions))
    worker.framed.start_adopting()
    threading.Thread(target=worker.watch_files, name="mapped-files", daemon=True).start()
    streams = socket.socket(fileno=parsed.streams)
    threading.Thread(target=adopt_all, args=(streams, worker.framed), name="adopt", daemon=True).start()
    while True:
        try:
            command = json.loads(commands.recv_bytes())
            if command["do"] == "stop":
                worker.framed.stop(command["drain_timeout_s"])
                commands.send_bytes(b"{}")
                return 0
            try:
                answer = worker.obey(command)
            except (ServingError, OSError, ValueError) as error:
                answer = {"error": str(error) or repr(error)}
            commands.send_bytes(json.dumps(answer).encode())
        except (OSError, EOFError):
            logger.warning("the server is gone: so is its worker process")
            return 1


if __name__ == "__main__":
    sys.exit(main())
