"""How often a client may ask twice: a share of its requests, so that retries never multiply an overload."""

from __future__ import annotations

import threading

from multifacet.serving.forks import renew_in_children


class RetryBudget:
    """Retries and hedges that may still be made; safe to share between threads.

    Each request earns a fraction of one, up to a reserve; each retry or hedge costs one. While servers are well the reserve
    fills, and bears the loss of a replica with all that was in flight there. When every server fails, what is left is the
    fraction.

    Args:
        ratio: What a request earns.
        reserve: What there is at the start, and at most.

    Example:
        >>> budget = RetryBudget(ratio=0.5, reserve=1)
        >>> budget.spend(), budget.spend()
        (True, False)
        >>> budget.earn(), budget.earn(), budget.spend()
        (None, None, True)
    """

    def __init__(self, *, ratio: float, reserve: int):
        self._ratio = ratio
        self._reserve = float(reserve)
        self._left = float(reserve)
        self._lock = threading.Lock()
        renew_in_children(self)

    def renew(self) -> None:
        """Take a new lock; called in a process that was forked."""
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Count a request."""
        with self._lock:
            self._left = min(self._reserve, self._left + self._ratio)

    def has(self) -> bool:
        """Whether there is one to take."""
        return self._left >= 1

    def spend(self) -> bool:
        """Take one retry or hedge; whether there was one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True
