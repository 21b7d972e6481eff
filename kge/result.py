"""What a knowledge graph embedding run gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch

from multifacet.graphdb import Feed
from multifacet.kge.evaluation.predictor import LinkPredictor
from multifacet.kge.models.registry import build_model
from multifacet.kge.triples.triples import TripleSplit
from multifacet.tables import OptimizerRows, Snapshot, SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from multifacet.graphdb import GraphView
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.models.relations import RelationParameters
    from multifacet.training import SearchReport, WarmStart

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

    def write_snapshot(
        self, path: str | Path, source: GraphView | TripleSplit | Feed, *, search: SearchReport | None = None
    ) -> Snapshot:
        """Write the tables beside the external ids of their rows.

        Args:
            path: directory to write; it must not exist.
            source: what was trained on: the view, the feed, or the split, which must know its ids.
            search: what chose the configuration; its trials are kept among the metrics.

        Returns:
            The snapshot, of facet "kge".

        Raises:
            ValueError: if the source's node counts are not those of the tables, or it has no ids.
        """
        origin = _Origin.of(source)
        for node_type, vectors in self.vectors.items():
            if origin.num_nodes.get(node_type) != len(vectors):
                raise ValueError(
                    f"table {node_type!r} has {len(vectors)} rows, but {origin.what} has {origin.num_nodes.get(node_type)} "
                    f"nodes of that type; pass {origin.what} that these tables were trained on"
                )
        metrics: dict[str, Any] = dict(self.metrics)
        if search is not None:
            metrics["search"] = search.to_dict()
        parents = [origin.fingerprint]
        if self.warm_start is not None:
            metrics["drift"] = self.warm_start.drift(self.vectors, origin.node_ids, self.trained)
            parents.append(self.warm_start.snapshot.fingerprint)
        tables = {}
        for node_type, vectors in self.vectors.items():
            adagrad = self.adagrad.get(node_type)
            kept = None if adagrad is None else OptimizerRows(adagrad=adagrad, lengths=torch.ones(len(adagrad)))
            tables[node_type] = SnapshotTable(
                ids=origin.node_ids(node_type), vectors=vectors, optimizer=kept, trained=(self.trained or {}).get(node_type)
            )
        return Snapshot.write(
            path,
            facet="kge",
            tables=tables,
            parents=parents,
            window=origin.window | {"ends": {name: list(pair) for name, pair in self.ends.items()}},
            metrics=metrics,
            config=self.config.model_dump(mode="json"),
            parameters=self.relations.to_tensors(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Origin:
    """What tables were trained on, as their snapshot names it."""

    what: str
    num_nodes: Mapping[str, int]
    node_ids: Callable[[str], Any]
    window: dict[str, Any]
    fingerprint: str

    @classmethod
    def of(cls, source: GraphView | TripleSplit | Feed) -> Self:
        if isinstance(source, TripleSplit):
            ids = source.train.ids
            missing = [name for name in source.train.num_nodes if name not in ids]
            if missing:
                raise ValueError(
                    f"these triples have no ids of {missing}, and a snapshot's rows are found by id: read them by "
                    "kge.read_split, or "
                    "set TripleSet.ids"
                )
            return cls(
                what="the split",
                num_nodes=source.train.num_nodes,
                node_ids=lambda node_type: ids[node_type],
                window={"relations": list(source.train.relation_names)},
                fingerprint=source.fingerprint(),
            )
        is_feed = isinstance(source, Feed)
        return cls(
            what="the feed" if is_feed else "the view",
            num_nodes=source.num_nodes,
            node_ids=source.node_ids,
            window={
                "since": source.since.isoformat() if source.since else None,
                "as_of": source.as_of.isoformat() if source.as_of else None,
                "relations": [relation.name for relation in source.relations],
            }
            | ({"feed": source.fingerprint} if is_feed else {}),
            fingerprint=source.window if isinstance(source, Feed) else source.fingerprint,
        )
