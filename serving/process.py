"""A server as a whole process: runs until SIGTERM or SIGINT, then drains."""

from __future__ import annotations

import faulthandler
import gc
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from multifacet.serving.addresses import Address
from multifacet.serving.log_limit import limit_log
from multifacet.serving.tracing import start_exporting

if TYPE_CHECKING:
    from multifacet.serving.config import ListenConfig, LookupConfig, RankerConfig
    from multifacet.serving.lookup.server import LookupServer
    from multifacet.serving.ranker.server import RankerServer

logger = logging.getLogger(__name__)

_LOOK_S = 0.1


def serve_lookup(config: LookupConfig) -> None:
    """Serve rows until SIGTERM or SIGINT; then let requests in flight end, and return.

    Call it in the main thread: it installs signal handlers for its duration.

    Raises:
        ArtifactError: A release is damaged; the file is named.
        OSError: The address cannot be bound.
    """
    faulthandler.enable()  # a mapped file that is cut while its rows are read ends the process: with a line at least
    _check_addresses(config.listen, config.framed_listen, config.metrics_listen)
    if config.tracing == "otlp":
        start_exporting("multifacet-lookup")
    with _until_signalled() as stop:
        # Imported here, so that a wrong configuration is told before seconds of imports.
        from multifacet.kernels.memory import give_freed_memory_back  # noqa: PLC0415
        from multifacet.serving.lookup.server import LookupServer  # noqa: PLC0415

        give_freed_memory_back()
        server = LookupServer(config)
        try:
            if not stop.is_set():
                server.start()
            _run(server, stop, config)
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
    _check_addresses(config.listen, config.metrics_listen)
    if config.tracing == "otlp":
        start_exporting("multifacet-ranker")
    with _until_signalled() as stop:
        import torch  # noqa: PLC0415

        from multifacet.kernels.memory import give_freed_memory_back  # noqa: PLC0415
        from multifacet.serving.ranker.server import RankerServer  # noqa: PLC0415

        give_freed_memory_back()
        torch.set_num_threads(config.intra_op_threads)
        server = RankerServer(config)
        try:
            server.start(stopped=stop.is_set)
            _run(server, stop, config)
        finally:
            server.stop()


def _check_addresses(*addresses: str | None) -> None:
    """Refuse what cannot be listened on before releases are read, which may take minutes."""
    for address in addresses:
        if address is not None:
            Address.parse(address).check_free()


def _run(server: LookupServer | RankerServer, stop: _Stop, config: ListenConfig) -> None:
    """Serve until told to end; then let load balancers see it before requests are refused."""
    # What stays is not looked through again. So full collections are cheap, come often, and take what calls that were cut off
    # leave behind in circles; else that grows until it is a quarter of all objects of torch and its like.
    gc.collect()
    gc.freeze()
    while stop.wait():
        logger.info("SIGHUP: tokens and certificates are read again")
        server.reload()
    server.say_stopping()
    time.sleep(config.drain_delay_s)


class _Stop:
    """Whether the process was told to end, or to read files again.

    A signal handler sets it, so it has no lock. The main thread alone runs handlers, and a signal that the kernel hands to
    another thread does not wake it: so it looks now and then.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._reloads = False

    def ask_reload(self) -> None:
        """Tell it to read files again."""
        self._reloads = True

    def set(self) -> None:
        """Tell it."""
        self._is_set = True

    def is_set(self) -> bool:
        """Say whether it was told."""
        return self._is_set

    def wait(self) -> bool:
        """Wait until it is told something; whether that is to read files again, and not to end."""
        while not self._is_set:
            if self._reloads:
                self._reloads = False
                return True
            time.sleep(_LOOK_S)
        return False


@contextmanager
def _until_signalled() -> Iterator[_Stop]:
    stop = _Stop()

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stop.set()

    def note_reload(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stop.ask_reload()

    limit_log()
    before_reload = signal.signal(signal.SIGHUP, note_reload)
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        signal.signal(signal.SIGHUP, before_reload)
        # A process that was told to end is ending: told once more, it must not be cut off with another exit status.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if stop.is_set() else before[signal.SIGTERM])
