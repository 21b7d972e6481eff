"""What a knowledge graph embedding run gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from kge.models import build_model
from kge.predictor import LinkPredictor
from tables.snapshot import OptimizerRows, Snapshot, SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from graphdb import GraphView
    from kge.config import KgeConfig
    from kge.relations import RelationParameters
    from kge.search import Search
    from tables.warmstart import WarmStart

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
        adagrad: node type -> accumulated squares of each row, float32 [num_nodes]: what a warm start needs.
        warm_start: what the training started from, or None.
        trained: node type -> which rows a gradient has reached, bool [num_nodes]; the others hold first values. None for all.
    """

    config: KgeConfig
    vectors: dict[str, Tensor]
    relations: RelationParameters
    ends: Mapping[str, tuple[str, str]]
    history: list[dict[str, float]]
    metrics: dict[str, float]
    adagrad: dict[str, Tensor] = field(default_factory=dict)
    warm_start: WarmStart | None = None
    trained: dict[str, Tensor] | None = None

    def predictor(self) -> LinkPredictor:
        """Give the scores of the trained tables."""
        return LinkPredictor(model=build_model(self.config), vectors=self.vectors, relations=self.relations, ends=self.ends)

    def write_snapshot(self, path: str | Path, view: GraphView, *, search: Search | None = None) -> Snapshot:
        """Write the tables beside the external ids of their rows.

        Args:
            path: directory to write; it must not exist.
            view: the view that was trained on.
            search: what chose the configuration; its trials are kept among the metrics.

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
        metrics: dict[str, Any] = dict(self.metrics)
        if search is not None:
            metrics["search"] = search.to_dict()
        parents = [view.fingerprint]
        if self.warm_start is not None:
            metrics["drift"] = self.warm_start.drift(self.vectors, view.node_ids, self.trained)
            parents.append(self.warm_start.snapshot.fingerprint)
        tables = {}
        for node_type, vectors in self.vectors.items():
            adagrad = self.adagrad.get(node_type)
            kept = None if adagrad is None else OptimizerRows(adagrad=adagrad, lengths=torch.ones(len(adagrad)))
            tables[node_type] = SnapshotTable(
                ids=view.node_ids(node_type), vectors=vectors, optimizer=kept, trained=(self.trained or {}).get(node_type)
            )
        return Snapshot.write(
            path,
            facet="kge",
            tables=tables,
            parents=parents,
            window=window,
            metrics=metrics,
            config=self.config.model_dump(mode="json"),
            parameters=self.relations.to_tensors(),
        )
