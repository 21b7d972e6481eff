"""What a contrastive pretraining run gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tables.snapshot import Snapshot, SnapshotTable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from contrastive.config import PositivesConfig
    from graphdb import GraphView
    from tables.snapshot import OptimizerRows
    from tables.warmstart import WarmStart

__all__ = ["ContrastiveResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveResult:
    """Trained tables and how the training went.

    Attributes:
        config: the configuration, with every default filled in.
        vectors: node type -> float32 [num_nodes, dim], row = idx of the view. Under cosine similarity a row has length 1;
            a row that training never touched is zero.
        history: one row an epoch: epoch, loss, seconds, pairs_per_s and the validation's metrics.
        metrics: the last row's figures without the timings, and the number of held-out pairs.
        optimizer: node type -> what a warm start needs of each row.
        warm_start: what the training started from, or None.
        facet: what the snapshot is called.
    """

    config: PositivesConfig
    vectors: dict[str, Tensor]
    history: list[dict[str, float]]
    metrics: dict[str, float]
    optimizer: dict[str, OptimizerRows] = field(default_factory=dict)
    warm_start: WarmStart | None = None
    facet: str = "contrastive"

    def write_snapshot(self, path: str | Path, view: GraphView) -> Snapshot:
        """Write the tables beside the external ids of their rows.

        Args:
            path: directory to write; it must not exist.
            view: the view that was trained on.

        Returns:
            The snapshot, of this result's facet.

        Raises:
            ValueError: if the view's node counts are not those of the tables.
        """
        for node_type, vectors in self.vectors.items():
            if view.num_nodes.get(node_type) != len(vectors):
                raise ValueError(
                    f"table {node_type!r} has {len(vectors)} rows, but the view has {view.num_nodes.get(node_type)} "
                    "nodes of that type; pass the view that these tables were trained on"
                )
        window: dict[str, Any] = {
            "since": view.since.isoformat() if view.since else None,
            "as_of": view.as_of.isoformat() if view.as_of else None,
            "relations": [relation.name for relation in view.relations],
        }
        metrics: dict[str, Any] = dict(self.metrics)
        parents = [view.fingerprint]
        if self.warm_start is not None:
            metrics["drift"] = self.warm_start.drift(self.vectors, view.node_ids)
            parents.append(self.warm_start.snapshot.fingerprint)
        return Snapshot.write(
            path,
            facet=self.facet,
            tables={
                node_type: SnapshotTable(
                    ids=view.node_ids(node_type),
                    vectors=vectors,
                    optimizer=self.optimizer.get(node_type),
                    trained=vectors.any(1),
                )
                for node_type, vectors in self.vectors.items()
            },
            parents=parents,
            window=window,
            metrics=metrics,
            config=self.config.model_dump(mode="json"),
        )
