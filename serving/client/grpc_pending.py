"""Lookups under way over gRPC."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any

import grpc

from multifacet.serving.errors import BrokenAnswerError, ServingError, UnavailableError, from_rpc_error
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.wire.answers import Asked, LookupAnswer, read_lookup


class GrpcPendingLookup:
    """A lookup under way over gRPC.

    It is called as a stream of one answer, which on the wire is the same thing: gRPC for Python runs such a call on
    the threads that start and read it, but starts a thread of its own for each future, at a third of a millisecond.
    """

    def __init__(
        self, method: Any, request: lookup_pb2.LookupRequest, asked: Asked, server: str, timeout_s: float, metadata: Any
    ):
        self._asked = asked
        self._server = server
        self._started_ns = time.perf_counter_ns()
        self._call = method(request, timeout=timeout_s, metadata=metadata)
        self._cancelled = False
        self._is_over = False
        self.elapsed_us = 0
        """Microseconds from sending to reading the answer; 0 until it is read."""

    def cancel(self) -> None:
        """Give it up; safe from any thread."""
        self._cancelled = True
        self._call.cancel()

    def result(self) -> LookupAnswer:
        """Wait for the answer.

        Raises:
            ServingError: As `LookupClient.lookup`.
        """
        try:
            answer = next(self._call, None)
            next(self._call, None)  # the end, which came with it: the call is done, and never cancelled behind it
        except grpc.RpcError as error:
            raise error_of(error, self._server, cancelled=self._cancelled) from error
        finally:
            self._end()
        self.elapsed_us = (time.perf_counter_ns() - self._started_ns) // 1000
        if answer is None:
            raise BrokenAnswerError(f"{self._server}: it ended the lookup without an answer")
        return read_lookup(answer, self._asked, self._server)

    def _end(self) -> None:
        """Take the events that a failed call leaves behind: with them its channel stays, and connects again, though closed."""
        self._is_over = True
        state = getattr(self._call, "_state", None)
        while state is not None and state.due and state.code is not None:
            self._call._consume_next_event()

    def __del__(self) -> None:
        if not getattr(self, "_is_over", True):  # nobody asked for its answer
            with contextlib.suppress(Exception):
                self._call.cancel()
                next(self._call, None)
            with contextlib.suppress(Exception):
                self._end()


class GrpcWatchedLookup:
    """A lookup under way over gRPC that says when its answer is there.

    Args:
        method: The unary method.
        request: What to send.
        asked: What the answer must fit.
        server: How messages name the other end.
        timeout_s: Deadline in seconds.
        metadata: The token, if any.
    """

    def __init__(
        self, method: Any, request: lookup_pb2.LookupRequest, asked: Asked, server: str, timeout_s: float, metadata: Any
    ):
        self._asked = asked
        self._server = server
        self._lock = threading.Lock()
        self._cancelled = False
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._started_ns = time.perf_counter_ns()
        self._call = method.future(request, timeout=timeout_s, metadata=metadata)
        self._call.add_done_callback(self._note)
        self.elapsed_us = 0
        """Microseconds from sending to reading the answer; 0 until it is read."""

    def fileno(self) -> int:
        """For `select`: readable once the answer is there."""
        return self._descriptor

    def cancel(self) -> None:
        """Give it up; safe from any thread, but not while another one polls the descriptor."""
        self._cancelled = True
        self._call.cancel()
        self._close()

    def result(self) -> LookupAnswer:
        """Wait for the answer.

        Raises:
            ServingError: As `LookupClient.lookup`.
        """
        try:
            answer = self._call.result()
        except (grpc.FutureCancelledError, grpc.RpcError) as error:
            raise error_of(self._call, self._server, cancelled=self._cancelled) from error
        finally:
            self._close()
        self.elapsed_us = (time.perf_counter_ns() - self._started_ns) // 1000
        return read_lookup(answer, self._asked, self._server)

    def _note(self, _call: object) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.eventfd_write(self._descriptor, 1)

    def _close(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never whole
            self._close()


def error_of(error: Any, server: str, *, cancelled: bool) -> ServingError:
    """What a failed call means; a call that ends as cancelled although nobody here cancelled it was ended by the server."""
    if error.code() is grpc.StatusCode.CANCELLED and not cancelled:
        return UnavailableError(f"{server}: it stopped before it answered")
    return from_rpc_error(error, server)
