"""What a contrastive pretraining run gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from multifacet.contrastive.positives.pairs import Pairs
from multifacet.tables import Snapshot, SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from multifacet.contrastive.config import PositivesConfig
    from multifacet.graphdb import GraphView
    from multifacet.tables import OptimizerRows
    from multifacet.training import SearchReport, WarmStart

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

    def write_snapshot(
        self, path: str | Path, source: GraphView | Pairs | Mapping[str, Any], *, search: SearchReport | None = None
    ) -> Snapshot:
        """Write the tables beside the external ids of their rows.

        Args:
            path: directory to write; it must not exist.
            source: what was trained on: the view, the pairs, or the external ids by node type.
            search: what chose the configuration; its trials are kept among the metrics.

        Returns:
            The snapshot, of this result's facet.

        Raises:
            ValueError: if the source's node counts are not those of the tables.
        """
        parents, window, node_ids = _origin(source, self.config)
        ids = {node_type: node_ids(node_type) for node_type in self.vectors}
        for node_type, vectors in self.vectors.items():
            num_ids = None if ids[node_type] is None else len(ids[node_type])
            if num_ids != len(vectors):
                raise ValueError(
                    f"table {node_type!r} has {len(vectors)} rows, but there are {num_ids} "
                    "nodes of that type; pass the view, or the ids, that these tables were trained on"
                )
        metrics: dict[str, Any] = dict(self.metrics)
        if search is not None:
            metrics["search"] = search.to_dict()
        if self.warm_start is not None:
            metrics["drift"] = self.warm_start.drift(self.vectors, ids.__getitem__)
            parents.append(self.warm_start.snapshot.fingerprint)
        return Snapshot.write(
            path,
            facet=self.facet,
            tables={
                node_type: SnapshotTable(
                    ids=ids[node_type],
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


def _origin(
    source: GraphView | Pairs | Mapping[str, Any], config: PositivesConfig
) -> tuple[list[str], dict[str, Any], Callable[[str], Any]]:
    """Give a snapshot's parents, its window, and what knows the ids of a node type."""
    if isinstance(source, Mapping):
        return [], {}, source.get
    if isinstance(source, Pairs):
        return [source.fingerprint()], {}, partial(source.node_ids, config)
    window = {
        "since": source.since.isoformat() if source.since else None,
        "as_of": source.as_of.isoformat() if source.as_of else None,
        "relations": [relation.name for relation in source.relations],
    }
    return [source.fingerprint], window, lambda name: source.node_ids(name) if name in source.num_nodes else None
