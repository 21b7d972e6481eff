"""The best items of a query, by ids, of a snapshot's tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from multifacet.inputs import whole
from multifacet.tables import Snapshot
from multifacet.tables.ids import find_row

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor

__all__ = ["ItemPredictor", "Prediction"]


class Prediction(NamedTuple):
    """One item that may belong to a query.

    Attributes:
        id: its external id.
        score: larger is likelier; comparable within one query.
    """

    id: Any
    score: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemPredictor:
    """Tables of queries and items, compared as they were trained.

    Attributes:
        queries: float [Q, D].
        items: float [N, D].
        query_ids: external id of each query's row.
        item_ids: external id of each item's row.
        trained: which items a gradient has reached, bool [N]; None for all.

    Example:
        >>> ItemPredictor.from_snapshot("contrastive").top_items("user 7", k=10)  # doctest: +SKIP
        [Prediction(id='pin 3', score=0.8), ...]
    """

    queries: Tensor
    items: Tensor
    query_ids: pa.Array
    item_ids: pa.Array
    trained: Tensor | None = None

    @classmethod
    def from_snapshot(
        cls, snapshot: Snapshot | str | Path, *, query_type: str | None = None, item_type: str | None = None
    ) -> Self:
        """Open the tables of a snapshot; they stay in their files until they are read.

        Args:
            snapshot: of facet "contrastive" or "lightgcn", or its folder.
            query_type: node type that asks; None for the one that it was trained with.
            item_type: node type that answers, which may be a composed tower's; None likewise.

        Raises:
            ValueError: if the snapshot is of another facet, or has no such tables.
            ArtifactError: if there is no snapshot, or it is damaged.
        """
        opened = snapshot if isinstance(snapshot, Snapshot) else Snapshot.load(snapshot)
        if "query_type" not in opened.config:
            raise ValueError(
                f"{opened.path} is of facet {opened.facet!r}, which no query and item tables are; a link predictor's "
                "relations are "
                "asked by kge.LinkPredictor"
            )
        chosen = query_type or opened.config["query_type"], item_type or opened.config["item_type"]
        missing = [name for name in chosen if name not in opened.node_types]
        if missing:
            raise ValueError(f"{opened.path} has no tables of {missing}; it has {', '.join(opened.node_types)}")
        return cls(
            queries=opened.vectors(chosen[0]),
            items=opened.vectors(chosen[1]),
            query_ids=opened.ids(chosen[0]),
            item_ids=opened.ids(chosen[1]),
            trained=opened.trained(chosen[1]),
        )

    def top_items(self, query: Any, *, k: int = 10, known: Iterable[Any] = ()) -> list[Prediction]:
        """Give the best items of a query, by their ids.

        Args:
            query: external id.
            k: predictions to give; fewer if there are not so many.
            known: ids of items to leave out, such as those that the query has; unknown ones do no harm.

        Returns:
            The predictions, the best first. Items that no gradient has reached are none.

        Raises:
            KeyError: if there is no such query.
            TypeError: if an id is of another type.
            ValueError: if k is below 1, or the query has not been trained.
        """
        whole()("k", k)
        if isinstance(known, str | bytes) or not isinstance(known, Iterable):
            raise TypeError(f"known is a {type(known).__name__}; expected ids of items")
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1")
        row = find_row(self.query_ids, query, "query")
        vector = self.queries[row].float()
        if not bool(vector.any()):
            raise ValueError(f"the query {query!r} has no edge that was trained on: all items are alike to it")
        scores = self.items.float() @ vector
        if self.trained is not None:
            scores = scores.masked_fill(~self.trained, -torch.inf)
        for taken in known:
            place = find_row(self.item_ids, taken, "item", missing=-1)
            if place >= 0:
                scores[place] = -torch.inf
        best = scores.topk(min(k, len(scores)))
        return [
            Prediction(self.item_ids[place].as_py(), score)
            for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if score > -torch.inf
        ]
