"""The life of a training that several processes run together: they save, stop and resume at the same step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from typing_extensions import override

from multifacet.tables.training import TrainingRun

if TYPE_CHECKING:
    from pathlib import Path

    from multifacet.tables.checkpoint import SavedState
    from multifacet.tables.training import TrainerState

__all__ = ["GroupRun", "are_several", "begin_run"]


def are_several() -> bool:
    """Whether this process is one of a group that trains together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def begin_run(*args: Any, **kwargs: Any) -> TrainingRun:
    """Begin a `TrainingRun`, the group's if there is one."""
    return GroupRun(*args, **kwargs) if are_several() else TrainingRun(*args, **kwargs)


class GroupRun(TrainingRun):
    """A `TrainingRun` of which every process of a group makes one, with the same arguments, in the same place.

    Whoever first finds that a checkpoint is due, or that it shall stop, decides for all. A state is saved by all processes
    (`save` of a trainer's state brings its shards together), and written by the first one, on a file system that all see.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Decisions are a byte on the host, whatever the tables' backend is.
        self._group = dist.new_group(backend="gloo")

    @override
    def save(self, state: TrainerState) -> None:
        if self.lifecycle.checkpoint is not None:
            super().save(state)
            dist.barrier(self._group)

    @override
    def _write(self, path: Path, saved: SavedState) -> None:
        if dist.get_rank() == 0:
            super()._write(path, saved)

    @override
    def _is_due(self) -> bool:
        return self.lifecycle.checkpoint is not None and self._any(super()._is_due())

    @override
    def _stops(self) -> bool:
        return self.lifecycle.stop is not None and self._any(super()._stops())

    def _any(self, answer: bool) -> bool:
        answers = torch.tensor([answer], dtype=torch.uint8)
        dist.all_reduce(answers, dist.ReduceOp.MAX, group=self._group)
        return bool(answers.item())
