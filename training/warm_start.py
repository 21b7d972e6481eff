"""Starting a training from an older snapshot: old ids keep their vectors, new ids begin, and a pull may hold the old ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field
from typing_extensions import override

from multifacet.inputs import Configuration
from multifacet.tables import IdMap, Snapshot, SnapshotTable
from multifacet.tables.drift import compare_tables
from multifacet.tables.optim import RowwiseAdagrad

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["OldRows", "PulledAdagrad", "WarmStart", "WarmStartConfig"]

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
        self.check_facet(facet)
        taken = {}
        for node_type, table in tables.items():
            taken[node_type] = torch.zeros(len(table), dtype=torch.bool)
            if node_type in self.snapshot.node_types:
                taken[node_type][self._apply_to(node_type, table, optimizers, node_ids(node_type))] = True
            else:
                logger.info("warm start: the snapshot has no table %r; all of its rows begin anew", node_type)
        if not any(bool(rows.any()) for rows in taken.values()):
            raise self.shares_nothing({name: len(table) for name, table in tables.items()})
        return taken

    def check_facet(self, facet: str) -> None:
        """Refuse a snapshot of another pretrainer.

        Raises:
            ValueError: It is one.
        """
        if self.snapshot.facet != facet:
            raise ValueError(
                f"{self.snapshot.path} holds {self.snapshot.facet!r} vectors, which a {facet!r} training cannot go on with"
            )

    def shares_nothing(self, num_rows: Mapping[str, int]) -> ValueError:
        """Give the error of a snapshot that shares no trained id with tables of so many rows."""
        return ValueError(
            f"{self.snapshot.path} shares no id with this graph: its tables are {self.snapshot}, those to train are "
            f"{dict(num_rows)}"
        )

    def old_rows(self, node_type: str, dim: int) -> OldRows:
        """Open a table's rows, to be found by external id.

        Raises:
            ValueError: The table has another dimension.
        """
        if self.snapshot.dim(node_type) != dim:
            raise ValueError(
                f"{self.snapshot.path}: table {node_type!r} has dimension {self.snapshot.dim(node_type)}, this training has "
                f"{dim}; set dim={self.snapshot.dim(node_type)}"
            )
        if self.snapshot.optimizer(node_type) is None:
            logger.warning(
                "%s keeps no optimiser state for %r: its rows start with full steps and will move far",
                self.snapshot.path,
                node_type,
            )
        return OldRows(self.snapshot, node_type, keep_state=self.config.keep_state)

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
        config, optimizer = self.config, optimizers[node_type]
        rows, old = self.old_rows(node_type, table.shape[1]).move(ids, table, optimizer.state)
        is_new = torch.ones(len(table), dtype=torch.bool)
        is_new[rows] = False
        if config.new_rows == "mean" and len(rows):
            table[is_new] += old.mean(0)
        if config.pull:
            optimizers[node_type] = PulledAdagrad(optimizer, anchors=table.clone(), is_anchored=~is_new, weight=config.pull)
        logger.info("warm start: %s: %d rows matched, %d new", node_type, len(rows), int(is_new.sum()))
        return rows


class OldRows:
    """A snapshot's rows of one node type, found by external id; its vectors stay in their file until they are found.

    Args:
        snapshot: The snapshot.
        node_type: The node type, of which it has a table.
        keep_state: Share of a row's accumulated squares that it keeps.
    """

    def __init__(self, snapshot: Snapshot, node_type: str, *, keep_state: float) -> None:
        self._where = f"{snapshot.path}, table {node_type!r}"
        self._ids = IdMap.exact(snapshot.ids(node_type))
        self._num_rows = len(snapshot.vectors(node_type))
        self._vectors, self._kept = snapshot.vectors(node_type), snapshot.optimizer(node_type)
        self._marked = snapshot.trained(node_type)
        self._keep_state = keep_state

    def move(self, ids: Any, table: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Move the rows of some ids into a table, or a range of one, in place; a row that was never trained stays behind.

        Args:
            ids: External ids of the table's rows, [n].
            table: float32 [n, D].
            squares: What Adagrad has accumulated, float32 [n], zeros.

        Returns:
            Which rows were moved, int64 [m], and what they hold now, float32 [m, D].

        Raises:
            ValueError: The ids are of another type.
        """
        try:
            found = torch.from_numpy(self._ids.rows(ids).astype("int64"))
        except TypeError as error:
            raise ValueError(f"{self._where}: {error}") from error
        rows = torch.nonzero(found < self._num_rows).flatten()
        old = self._vectors[found[rows]].float()
        if self._kept is not None:
            old *= self._kept.lengths[found[rows]][:, None]
        trained = (old != 0).any(1)
        if self._marked is not None:
            trained &= self._marked[found[rows]]
        rows, old = rows[trained], old[trained]
        places = rows.to(table.device)
        if self._kept is not None:
            squares[places] = (self._keep_state * self._kept.adagrad[found[rows]]).to(squares.device)
        table[places] = old.to(table.device)
        return rows, old


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
