"""What a knowledge graph embedding run gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kge.models import build_model
from kge.predictor import LinkPredictor
from tables.snapshot import Snapshot, SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from graphdb import GraphView
    from kge.config import KgeConfig
    from kge.relations import RelationParameters

__all__ = ["KgeResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KgeResult:
    """Trained tables and how the training went.

    Attributes:
        config: the configuration, with every default filled in.
        vectors: node type -> float32 [num_nodes, dim], row = idx of the view.
        relations: parameters of the relations.
        ends: relation name -> (node type of the heads, node type of the tails).
        history: one row an epoch: epoch, loss, seconds, edges_per_s and the validation's metrics.
        metrics: the last row's figures without the timings, and the number of held-out edges.
    """

    config: KgeConfig
    vectors: dict[str, Tensor]
    relations: RelationParameters
    ends: Mapping[str, tuple[str, str]]
    history: list[dict[str, float]]
    metrics: dict[str, float]

    def predictor(self) -> LinkPredictor:
        """Give the scores of the trained tables."""
        return LinkPredictor(model=build_model(self.config), vectors=self.vectors, relations=self.relations, ends=self.ends)

    def write_snapshot(self, path: str | Path, view: GraphView) -> Snapshot:
        """Write the tables beside the external ids of their rows.

        Args:
            path: directory to write; it must not exist.
            view: the view that was trained on.

        Returns:
            The snapshot, of facet "kge".

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
        return Snapshot.write(
            path,
            facet="kge",
            tables={
                node_type: SnapshotTable(ids=view.node_ids(node_type), vectors=vectors)
                for node_type, vectors in self.vectors.items()
            },
            parents=[view.fingerprint],
            window=window,
            metrics=self.metrics,
            config=self.config.model_dump(mode="json"),
        )
