"""What a forked process does not share with its parent: connections, locks, and lookups under way.

A fork copies a client with its open sockets. Used by both processes, they would deal the answers out between them, so that one
gets the rows that the other asked for. So each client is made new in the child, before any of its code runs. The parent keeps
what it has.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Protocol

from multifacet.serving.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable


class Renewable(Protocol):
    """What has state that a child must not share."""

    def renew(self) -> None:
        """Start anew in a child: with new locks and without connections. No other thread runs meanwhile."""


_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()
_num_forks = 0


def renew_in_children(thing: Renewable) -> None:
    """Have `thing.renew` called in every process that is forked from this one."""
    _renewables.add(thing)


def num_forks() -> int:
    """How many forks lie between the first process and this one: an object that was made at another number is the parent's."""
    return _num_forks


def refuse_inherited(made_at: int, server: str) -> None:
    """Refuse to wait for a lookup that the parent sent.

    Args:
        made_at: `num_forks` when it was sent.
        server: How messages name the other end.

    Raises:
        UnavailableError: It was sent before this process was forked.
    """
    if made_at != _num_forks:
        raise UnavailableError(
            f"{server}: this lookup was sent before the process was forked: its answer is the parent's. Ask again"
        )


def let_go(descriptors: Iterable[int]) -> None:
    """Exchange inherited sockets for the null device, in a child.

    The numbers stay taken, so that whoever still holds one cannot hit a file that is opened later. Nothing is shut down: the
    parent goes on to use its connections.
    """
    for descriptor in descriptors:
        if descriptor < 0:
            continue
        os.close(descriptor)  # first, so that there is a number left for the null device
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if null != descriptor:
            os.dup2(null, descriptor, inheritable=False)
            os.close(null)


def _renew_all() -> None:
    global _num_forks  # noqa: PLW0603  (one process, one number)
    _num_forks += 1
    for thing in list(_renewables):
        thing.renew()


os.register_at_fork(after_in_child=_renew_all)
