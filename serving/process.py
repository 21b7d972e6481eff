"""A server as a whole process: runs until SIGTERM or SIGINT, then drains."""

from __future__ import annotations

import faulthandler
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from serving.config import LookupConfig, RankerConfig

logger = logging.getLogger(__name__)

_LOOK_S = 0.2


def serve_lookup(config: LookupConfig) -> None:
    """Serve rows until SIGTERM or SIGINT; then let requests in flight end, and return.

    Call it in the main thread: it installs signal handlers for its duration.

    Raises:
        ArtifactError: A release is damaged; the file is named.
        OSError: The address cannot be bound.
    """
    faulthandler.enable()  # a mapped file that is cut while its rows are read ends the process: with a line at least
    with _until_signalled() as stop:
        # Imported here, so that a wrong configuration is told before seconds of imports.
        from serving.lookup import LookupServer  # noqa: PLC0415

        server = LookupServer(config)
        try:
            if not stop.is_set():
                server.start()
            _wait(stop)
        finally:
            server.stop()


def serve_ranker(config: RankerConfig) -> None:
    """Serve scores until SIGTERM or SIGINT; then let requests in flight end, and return.

    Call it in the main thread: it installs signal handlers for its duration. It waits for the lookup server, and sets
    torch's number of threads for the whole process.

    Raises:
        ArtifactError: A release is damaged; the file is named.
        UnavailableError: The lookup server is not up in time, or lacks a version.
        OSError: The address cannot be bound.
    """
    with _until_signalled() as stop:
        import torch  # noqa: PLC0415

        from serving.ranker import RankerServer  # noqa: PLC0415

        torch.set_num_threads(config.intra_op_threads)
        server = RankerServer(config)
        try:
            server.start(stopped=stop.is_set)
            _wait(stop)
        finally:
            server.stop()


def _wait(stop: threading.Event) -> None:
    """Wait until told to stop.

    Now and then the main thread looks by itself: it alone runs signal handlers, and a signal that the kernel hands to another
    thread does not wake it.
    """
    while not stop.wait(_LOOK_S):
        pass


@contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    stop = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        # A process that was told to end is ending: told once more, it must not be cut off with another exit status.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if stop.is_set() else before[signal.SIGTERM])
