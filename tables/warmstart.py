"""Starting a training from an older snapshot: old ids keep their vectors, new ids begin, and a pull may hold the old ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import override

from tables.drift import compare_tables, match_ids
from tables.rowwise import RowwiseAdagrad
from tables.snapshot import Snapshot, SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["PulledAdagrad", "WarmStart", "WarmStartConfig"]

logger = logging.getLogger(__name__)


class WarmStartConfig(BaseModel):
    """How a training starts from an older snapshot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pull: float = Field(
        default=0.0,
        ge=0,
        description="weight of the mean squared distance of a step's old rows from where they started, added to its loss",
    )
    keep_state: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of an old row's accumulated squares that it keeps: 1 goes on with its small steps, 0 forgets them",
    )
    new_rows: Literal["random", "mean"] = Field(
        default="random",
        description="where ids begin that the snapshot lacks: as in a training from scratch, or there plus the mean of their "
        "type's old rows; they begin with no accumulated squares, so with full steps",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStart:
    """An older snapshot and how to start from it.

    Attributes:
        snapshot: of the same pretrainer and dimension.
        config: how.
    """

    snapshot: Snapshot
    config: WarmStartConfig

    @classmethod
    def load(cls, path: str | Path, **settings: Any) -> Self:
        """Opens a snapshot to start from; settings are the fields of `WarmStartConfig`."""
        return cls(snapshot=Snapshot.load(path), config=WarmStartConfig(**settings))

    def identity(self) -> dict[str, Any]:
        """What of it decides a training's result, JSON-able."""
        return {"snapshot": self.snapshot.fingerprint, **self.config.model_dump(mode="json")}

    def apply(
        self,
        tables: Mapping[str, Tensor],
        optimizers: dict[str, RowwiseAdagrad],
        node_ids: Callable[[str], Any],
        *,
        facet: str,
    ) -> None:
        """Moves the snapshot's rows into tables that were drawn as from scratch, in place.

        Args:
            tables: node type -> float32 [N, D].
            optimizers: node type -> its optimiser; exchanged for one that pulls if there is a pull.
            node_ids: gives the external ids of a node type, [N].
            facet: the pretrainer's.

        Raises:
            ValueError: The snapshot is of another facet, dimension or type of id, or shares no id at all.
        """
        if self.snapshot.facet != facet:
            raise ValueError(
                f"{self.snapshot.path} holds {self.snapshot.facet!r} vectors, which a {facet!r} training cannot go on with"
            )
        num_matched = 0
        for node_type, table in tables.items():
            if node_type in self.snapshot.node_types:
                num_matched += self._apply_to(node_type, table, optimizers, node_ids(node_type))
            else:
                logger.info("warm start: the snapshot has no table %r; all of its rows begin anew", node_type)
        if not num_matched:
            raise ValueError(
                f"{self.snapshot.path} shares no id with this graph: its tables are {self.snapshot}, those to train are "
                f"{ {name: len(table) for name, table in tables.items()} }"
            )

    def drift(self, vectors: Mapping[str, Tensor], node_ids: Callable[[str], Any]) -> dict[str, Any]:
        """Reports how far trained tables have moved from the snapshot, JSON-able; see `tables.drift`."""
        trained = {name: SnapshotTable(ids=node_ids(name), vectors=table) for name, table in vectors.items()}
        return {name: drift.to_dict() for name, drift in compare_tables(self.snapshot, trained).items()}

    def _apply_to(self, node_type: str, table: Tensor, optimizers: dict[str, RowwiseAdagrad], ids: Any) -> int:
        snapshot, config, optimizer = self.snapshot, self.config, optimizers[node_type]
        if snapshot.dim(node_type) != table.shape[1]:
            raise ValueError(
                f"{snapshot.path}: table {node_type!r} has dimension {snapshot.dim(node_type)}, this training has "
                f"{table.shape[1]}; set dim={snapshot.dim(node_type)}"
            )
        try:
            old_row_of = torch.from_numpy(match_ids(snapshot.ids(node_type), ids))
        except TypeError as error:
            raise ValueError(f"{snapshot.path}, table {node_type!r}: {error}") from error
        vectors, kept = snapshot.vectors(node_type), snapshot.optimizer(node_type)
        rows = torch.nonzero(old_row_of >= 0).flatten()
        old = vectors[old_row_of[rows]].float()
        if kept is None:
            logger.warning(
                "%s keeps no optimiser state for %r: its rows start with full steps and will move far",
                snapshot.path,
                node_type,
            )
        else:
            old *= kept.lengths[old_row_of[rows]][:, None]
            optimizer.state[rows] = config.keep_state * kept.adagrad[old_row_of[rows]]
        trained = (old != 0).any(1)
        if not bool(trained.all()):
            # Never touched by a gradient, so as good as new.
            rows, old = rows[trained], old[trained]
            optimizer.state[torch.nonzero(old_row_of >= 0).flatten()[~trained]] = 0.0
        is_new = torch.ones(len(table), dtype=torch.bool)
        is_new[rows] = False
        table[rows] = old
        if config.new_rows == "mean" and len(rows):
            table[is_new] += old.mean(0)
        if config.pull:
            optimizers[node_type] = PulledAdagrad(optimizer, anchors=table.clone(), is_anchored=~is_new, weight=config.pull)
        logger.info("warm start: %s: %d rows matched, %d new", node_type, len(rows), int(is_new.sum()))
        return len(rows)


class PulledAdagrad(RowwiseAdagrad):
    """Row-wise Adagrad that also pulls rows towards where they were.

    It adds the gradient of weight * mean over the step's n rows of |row - anchor|^2 to the gradients of anchored rows.

    Args:
        optimizer: Whose learning rate and state it takes over.
        anchors: float32 [N, D].
        is_anchored: bool [N]; the other rows are free.
        weight: The pull's weight.
    """

    def __init__(self, optimizer: RowwiseAdagrad, *, anchors: Tensor, is_anchored: Tensor, weight: float) -> None:
        super().__init__(len(anchors), optimizer.lr, optimizer.eps)
        self.state = optimizer.state
        self.anchors = anchors
        self.is_anchored = is_anchored
        self.weight = weight

    @override
    def step(self, table: Tensor, rows: Tensor, gradients: Tensor) -> None:
        away = table.index_select(0, rows).sub_(self.anchors.index_select(0, rows))
        away.mul_(self.is_anchored.index_select(0, rows)[:, None])
        super().step(table, rows, gradients.detach().add(away, alpha=2.0 * self.weight / max(1, len(rows))))
