"""The life of a training around its steps: where it stands, when it is saved, and how it goes on after a kill."""

from __future__ import annotations

import logging
import platform
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from multifacet.inputs import FLAG, expect_type, number
from multifacet.training.checkpoint import Checkpoint, CheckpointError, SavedState, list_differences
from multifacet.training.warm_start import WarmStart

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping

    from multifacet.training.step_threads import Lanes, PreparingThread

__all__ = ["Lifecycle", "Position", "StepProgress", "TrainerState", "TrainingRun"]

logger = logging.getLogger(__name__)

_Drawn = TypeVar("_Drawn")
_Batch = TypeVar("_Batch")


@dataclass(kw_only=True, slots=True)
class Position:
    """Where a training stands, between two steps.

    Attributes:
        generator: source of all that is drawn while training.
        epoch: epochs finished.
        step: steps done of the current epoch.
        totals: the current epoch's sums, by name; "examples" counts what has been learned from.
        seconds: what the current epoch took before the process that now runs it.
        history: one row a finished epoch.
        epoch_start: the generator's state when the current epoch began.
    """

    generator: np.random.Generator
    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    epoch_start: dict[str, Any] | None = None

    def begin_epoch(self, draw: Callable[[np.random.Generator], _Drawn]) -> _Drawn:
        """Draws the order of an epoch's steps; in the middle of an epoch the very one that it began with.

        Args:
            draw: Draws from the generator what the whole epoch follows, such as a permutation of the edges.

        Returns:
            What `draw` gave. The first `step` steps of it are done.
        """
        bits = self.generator.bit_generator
        if self.epoch_start is None:
            self.epoch_start = dict(bits.state)
            return draw(self.generator)
        reached = bits.state
        bits.state = self.epoch_start
        try:
            return draw(self.generator)
        finally:
            bits.state = reached

    def add(self, **amounts: float) -> None:
        """Adds to the epoch's totals, and counts a step."""
        for name, amount in amounts.items():
            self.totals[name] = self.totals.get(name, 0.0) + amount
        self.step += 1

    def end_epoch(self) -> dict[str, float]:
        """Counts an epoch, and gives its totals."""
        totals = self.totals
        self.epoch, self.step, self.totals, self.seconds, self.epoch_start = self.epoch + 1, 0, {}, 0.0, None
        return totals

    def to_fields(self) -> dict[str, Any]:
        """Gives all of it as JSON-able values; floats and the generator's integers survive exactly."""
        return {
            "generator": dict(self.generator.bit_generator.state),
            "epoch": self.epoch,
            "step": self.step,
            "totals": dict(self.totals),
            "seconds": self.seconds,
            "history": [dict(row) for row in self.history],
            "epoch_start": self.epoch_start,
        }

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Goes to where `to_fields` was called."""
        self.generator.bit_generator.state = fields["generator"]
        self.epoch, self.step = fields["epoch"], fields["step"]
        self.totals, self.seconds = dict(fields["totals"]), fields["seconds"]
        self.history[:] = [dict(row) for row in fields["history"]]
        self.epoch_start = fields["epoch_start"]


class TrainerState(Protocol):
    """What a trainer has to remember, as its checkpoints see it."""

    @property
    def position(self) -> Position:
        """Where it stands."""

    def save(self) -> SavedState:
        """Gives all of it; tensors may be the living ones, for they are written before the next step."""

    def restore(self, saved: SavedState) -> None:
        """Goes to where `save` was called, in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepProgress:
    """How far a training is, after a step.

    Attributes:
        epoch: epochs finished.
        step: steps done of the current epoch.
        num_steps: steps of an epoch.
        num_epochs: epochs in all.
        examples: examples (edges, pairs) learned from in the current epoch.
        seconds: what the current epoch took so far.
    """

    epoch: int
    step: int
    num_steps: int
    num_epochs: int
    examples: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifecycle:
    """What a training does beside learning; by default, nothing.

    Attributes:
        checkpoint: folder to keep the last state in; None to keep none.
        every_seconds: time between two checkpoints, which are taken between two steps. A run that ends sooner writes none.
        resume: go on from the checkpoint, if there is one.
        warm_start: vectors to start from.
        on_step: called after each step.
        stop: once it is set, the step is finished, a checkpoint is written, and KeyboardInterrupt raised.
    """

    checkpoint: Path | None = None
    every_seconds: float = 600.0
    resume: bool = False
    warm_start: WarmStart | None = None
    on_step: Callable[[StepProgress], None] | None = None
    stop: threading.Event | None = None

    def __post_init__(self) -> None:
        FLAG("resume", self.resume)
        number()("every_seconds", self.every_seconds)
        if self.checkpoint is not None:
            expect_type("checkpoint", self.checkpoint, Path)
        if self.resume and self.checkpoint is None:
            raise ValueError("resume=True goes on from a checkpoint: name its folder with `checkpoint`")
        if self.every_seconds < 0:
            raise ValueError(f"every_seconds is {self.every_seconds}; expected 0 (after every step) or more")


class TrainingRun:
    """One training under a `Lifecycle`: restores its state, saves it when it is time, and prepares batches ahead.

    A checkpoint is only right between two steps with nothing drawn ahead, since drawing moves the generator. So before a
    step after which one is due, the next batch is not prepared. With the same number of threads and versions, a run that
    was killed at any moment and resumed ends with the same bits as one that was not.

    Args:
        lifecycle: What to do; None for nothing beside the steps.
        config: The training's configuration, JSON-able.
        window: Fingerprint of the data that it reads; needed only for checkpoints.
        num_epochs: Epochs in all.

    Raises:
        CheckpointError: There is a checkpoint, and `resume` is not set.
    """

    def __init__(
        self,
        lifecycle: Lifecycle | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        window: str = "",
        num_epochs: int = 1,
    ) -> None:
        lifecycle = lifecycle or Lifecycle()
        self.lifecycle = lifecycle
        self.num_epochs = num_epochs
        warm_start = lifecycle.warm_start
        self.identity: dict[str, Any] = {
            "config": dict(config or {}),
            "window": window,
            "warm_start": warm_start.identity() if warm_start is not None else None,
        }
        # Taken here, as a `Lanes` block changes the number of threads for its length.
        self._environment = _environment()
        self._saved_at = time.monotonic()
        self._began_at = time.perf_counter()
        self._has_saved = False
        path = lifecycle.checkpoint
        if path is not None and path.exists() and not lifecycle.resume:
            raise CheckpointError(
                f"{path} holds the checkpoint of a run that did not end. Go on from it with resume=True (--resume), or "
                "remove it to start anew."
            )

    def resume(self, state: TrainerState) -> bool:
        """Restores a trainer's state if that is asked for and there is a checkpoint.

        Returns:
            Whether it did.

        Raises:
            CheckpointError: The checkpoint is of another configuration, window or warm start.
        """
        path = self.lifecycle.checkpoint
        if not self.lifecycle.resume or path is None:
            return False
        if not path.exists():
            logger.info("there is no checkpoint at %s yet: starting from the beginning", path)
            return False
        checkpoint = Checkpoint.load(path, identity=self.identity)
        differences = list_differences(checkpoint.fields["environment"], self._environment)
        if differences:
            logger.warning("resuming in another environment, so the last bits may differ: %s", "; ".join(differences))
        saved = checkpoint.state()
        state.position.restore(saved.fields["position"])
        state.restore(saved)
        self._has_saved = True
        logger.info("resumed at epoch %d, step %d", state.position.epoch, state.position.step)
        return True

    def steps(
        self, batches: Iterator[_Batch], lanes: Lanes | PreparingThread | None, state: TrainerState, *, num_steps: int
    ) -> Iterator[_Batch]:
        """Yields an epoch's remaining batches, each prepared beside the step before it.

        The loop's body learns from the batch and calls `state.position.add`; a checkpoint may be written after it.

        Args:
            batches: Draws a batch each; used by one thread at a time, in order.
            lanes: Where the next batch is prepared; None where that is not worth a thread.
            state: What to save.
            num_steps: Steps of a whole epoch.

        Raises:
            KeyboardInterrupt: A stop was asked for; the state is saved.
        """
        self._began_at = time.perf_counter()
        prepare: Callable[[Callable[[], _Batch | None]], Any] = lanes.prepare if lanes is not None else _at_once
        following = prepare(lambda: next(batches, None))
        while (batch := following.result()) is not None:
            pause = self._is_due() or self._stops()
            if not pause:
                following = prepare(lambda: next(batches, None))
            yield batch
            self._report(state.position, num_steps)
            if pause:
                self.save(state)
                if self._stops():
                    raise KeyboardInterrupt
                following = prepare(lambda: next(batches, None))

    def epoch_seconds(self, position: Position) -> float:
        """How long the current epoch has taken, the time before a kill included."""
        return position.seconds + time.perf_counter() - self._began_at

    def save(self, state: TrainerState) -> None:
        """Writes the checkpoint now, if the run has one.

        A disk that is full does not end the training: the error is logged, the checkpoint before stays, and the next one is
        tried when it is due.
        """
        path = self.lifecycle.checkpoint
        if path is None:
            return
        position = state.position
        fields = position.to_fields() | {"seconds": self.epoch_seconds(position) if position.epoch_start else 0.0}
        saved = state.save()
        saved = replace(saved, fields={**saved.fields, "position": fields, "environment": self._environment})
        try:
            self._write(path, saved)
            self._has_saved = True
        except OSError:
            if self._stops():
                raise
            logger.exception("the checkpoint at %s could not be written; the one before is kept, and training goes on", path)
        self._saved_at = time.monotonic()

    def finish(self, state: TrainerState) -> None:
        """Saves a run that was long enough to be saved before: what follows it may fail, and need not begin again."""
        if self._has_saved or self._is_due():
            self.save(state)

    def _write(self, path: Path, saved: SavedState) -> None:
        Checkpoint.write(path, saved, identity=self.identity)

    def _is_due(self) -> bool:
        if self.lifecycle.checkpoint is None:
            return False
        return time.monotonic() - self._saved_at >= self.lifecycle.every_seconds

    def _stops(self) -> bool:
        return self.lifecycle.stop is not None and self.lifecycle.stop.is_set()

    def _report(self, position: Position, num_steps: int) -> None:
        if self.lifecycle.on_step is not None:
            self.lifecycle.on_step(
                StepProgress(
                    epoch=position.epoch,
                    step=position.step,
                    num_steps=num_steps,
                    num_epochs=self.num_epochs,
                    examples=int(position.totals.get("examples", 0)),
                    seconds=self.epoch_seconds(position),
                )
            )


def _at_once(program: Callable[[], _Drawn]) -> Future[_Drawn]:
    future: Future[_Drawn] = Future()
    future.set_result(program())
    return future


def _environment() -> dict[str, Any]:
    """What the last bits of a training depend on, beside its configuration and its data."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": version("numba"),
        "machine": platform.machine(),
        "num_threads": torch.get_num_threads(),
    }
