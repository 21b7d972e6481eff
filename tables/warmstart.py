"""Starting a training from an older snapshot: old ids keep their vectors, new ids begin, and a pull may hold the old ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field
from typing_extensions import override

from multifacet.tables.configuration import Configuration
from multifacet.tables.drift import compare_tables, match_ids
from multifacet.tables.rowwise import RowwiseAdagrad
from multifacet.tables.snapshot import Snapshot, SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["PulledAdagrad", "WarmStart", "WarmStartConfig"]

logger = logging.getLogger(__name__)


class WarmStartConfig(Configuration):
    """How a training starts from an older snapshot."""

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
    ) -> dict[str, Tensor]:
        """Moves the snapshot's rows into tables that were drawn as from scratch, in place.

        Args:
            tables: node type -> float32 [N, D].
            optimizers: node type -> its optimiser; exchanged for one that pulls if there is a pull.
            node_ids: gives the external ids of a node type, [N].
            facet: the pretrainer's.

        Returns:
            Node type -> which rows came from the snapshot, bool [N].

        Raises:
            ValueError: The snapshot is of another facet, dimension or type of id, or shares no trained id at all.
        """
        if self.snapshot.facet != facet:
            raise ValueError(
                f"{self.snapshot.path} holds {self.snapshot.facet!r} vectors, which a {facet!r} training cannot go on with"
            )
        taken = {}
        for node_type, table in tables.items():
            taken[node_type] = torch.zeros(len(table), dtype=torch.bool)
            if node_type in self.snapshot.node_types:
                taken[node_type][self._apply_to(node_type, table, optimizers, node_ids(node_type))] = True
            else:
                logger.info("warm start: the snapshot has no table %r; all of its rows begin anew", node_type)
        if not any(bool(rows.any()) for rows in taken.values()):
            raise ValueError(
                f"{self.snapshot.path} shares no id with this graph: its tables are {self.snapshot}, those to train are "
                f"{ {name: len(table) for name, table in tables.items()} }"
            )
        return taken

    def check_config(self, config: Mapping[str, Any], *, same: Sequence[str], told: Sequence[str] = ()) -> None:
        """Compares how the snapshot was trained with how this training goes on.

        Args:
            config: This training's configuration, JSON-able.
            same: Fields that say what a vector means: they must be alike.
            told: Fields that a training may change, but that its user should know of: they are logged.

        Raises:
            ValueError: A field of `same` differs; what the snapshot does not say is only logged.
        """
        before = self.snapshot.config
        unknown = [name for name in same if name not in before]
        if unknown:
            logger.warning("%s does not say its %s: is it of such a training as this?", self.snapshot.path, ", ".join(unknown))
        for name in same:
            if name in before and before[name] != config.get(name):
                raise ValueError(
                    f"{self.snapshot.path} was trained with {name}={before[name]!r}, and vectors of {name}="
                    f"{config.get(name)!r} mean something else: set {name}={before[name]!r}, or train without a warm start"
                )
        changed = [
            f"{name}={config.get(name)!r} (was {before[name]!r})"
            for name in told
            if name in before and before[name] != config.get(name)
        ]
        if changed:
            logger.warning("warm start from %s with other settings: %s", self.snapshot.path, ", ".join(changed))

    def drift(
        self, vectors: Mapping[str, Tensor], node_ids: Callable[[str], Any], trained: Mapping[str, Tensor] | None = None
    ) -> dict[str, Any]:
        """Reports how far trained tables have moved from the snapshot, JSON-able; see `tables.drift`."""
        tables = {
            name: SnapshotTable(ids=node_ids(name), vectors=table, trained=(trained or {}).get(name))
            for name, table in vectors.items()
        }
        return {name: drift.to_dict() for name, drift in compare_tables(self.snapshot, tables).items()}

    def _apply_to(self, node_type: str, table: Tensor, optimizers: dict[str, RowwiseAdagrad], ids: Any) -> Tensor:
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
        marked = snapshot.trained(node_type)
        if marked is not None:
            trained &= marked[old_row_of[rows]]
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
        return rows


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
