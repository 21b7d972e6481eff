"""What a search is of: how a configuration is made, trained, and how long that takes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from multifacet.training.lifecycle import Lifecycle, StepProgress
    from multifacet.training.search.space import Family, Recipe

__all__ = ["Program", "Pruned", "Trial", "measure_epoch"]

Trial = Any  # a configuration of the program's own


class Pruned(Exception):  # noqa: N818 - it ends a trial, which is no error
    """A trial that is not worth going on with."""


class Program(Protocol):
    """One pretrainer's side of a search.

    Attributes:
        families: what may be chosen, by name.
        recipes: where to begin.
        max_epochs: most epochs of a trial.
        data: the sha256 of what is learned from, for checkpoints to be told apart by.
    """

    families: Mapping[str, Family]
    recipes: Sequence[Recipe]
    max_epochs: int
    data: str

    def configure(self, family: str, values: Mapping[str, Any], *, epochs: int, every: int, seed: int) -> Trial:
        """Make a configuration; `every` is how many epochs lie between two validations."""

    def train(self, config: Trial, *, lifecycle: Lifecycle, on_score: Callable[[float, float], None] | None) -> float:
        """Train, and give the validation's score at the end, of all of the validation part if there is no `on_score`.

        Args:
            config: from `configure`.
            lifecycle: checkpoints and stopping.
            on_score: called with the share of training done and the score, after each validation.

        Returns:
            The score, larger is better; 0 where the loss stopped being a number.
        """


def measure_epoch(program: Program, family: str, values: Mapping[str, Any], *, limit: float, lifecycle: Lifecycle) -> float:
    """Measure what an epoch costs, by training for a short while.

    The first step is not counted, since it may compile.

    Args:
        program: what is searched.
        family: name of the family.
        values: of its space.
        limit: CPU seconds after which enough is known.
        lifecycle: whose `stop` ends this as well.

    Returns:
        CPU seconds an epoch.

    Raises:
        KeyboardInterrupt: if `lifecycle.stop` is set.
    """
    clock = _Clock(limit, lifecycle)
    config = program.configure(family, values, epochs=4, every=4, seed=0)
    began = time.process_time()
    probed = replace(lifecycle, checkpoint=None, resume=False, on_step=clock.on_step, stop=clock.stop)
    try:
        program.train(config, lifecycle=probed, on_score=_stop_at_validation)
    except (KeyboardInterrupt, Pruned):
        if lifecycle.stop is not None and lifecycle.stop.is_set():
            raise KeyboardInterrupt from None
    if clock.epoch_seconds is None:
        return (time.process_time() - began) / 4
    return clock.epoch_seconds


def _stop_at_validation(share: float, score: float) -> None:
    del share, score
    raise Pruned


class _Clock:
    """CPU seconds an epoch, from its steps."""

    def __init__(self, limit: float, lifecycle: Lifecycle) -> None:
        self.stop = threading.Event()
        self.epoch_seconds: float | None = None
        self._limit = limit
        self._lifecycle = lifecycle
        self._first: tuple[float, int] | None = None

    def on_step(self, progress: StepProgress) -> None:
        """Count a step."""
        now, step = time.process_time(), progress.epoch * progress.num_steps + progress.step
        outer = self._lifecycle.stop
        if outer is not None and outer.is_set():
            self.stop.set()
        if self._first is None:
            self._first = now, step
            return
        began, first = self._first
        self.epoch_seconds = (now - began) / (step - first) * progress.num_steps
        if now - began > self._limit:
            self.stop.set()
