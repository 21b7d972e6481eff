"""Tables as they are trained turned into vectors as they are compared: blended, normalised, smoothed, lengthened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from multifacet.contrastive.vectors import History, normalize_

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.contrastive.config import ContrastiveConfig
    from multifacet.contrastive.towers import Tower

__all__ = ["Finisher"]


class Finisher:
    """Makes vectors of rows in place, a range of a table at a time, so that processes can share a table out.

    Args:
        towers: the items' tower first, then the composed ones.
        config: what vectors are made of.
        history: the items of each query that its vector may be blended with.
    """

    def __init__(self, towers: list[Tower], config: ContrastiveConfig, history: History) -> None:
        self._config = config
        self._history = history
        self._lengths: Mapping[str, Tensor] = {}
        if config.popularity_power:
            self._lengths = {tower.node_type: torch.from_numpy(tower.popularity_lengths()) for tower in towers}

    def finish_(
        self,
        node_type: str,
        rows: Tensor,
        *,
        first: int,
        touched: Tensor,
        items: Tensor,
        queries: Tensor | None = None,
    ) -> None:
        """Turn a range of rows into vectors: under cosine of length 1, or of their popularity's; zero where no gradient was.

        Args:
            node_type: of the table.
            rows: float32 [n, D]; changed in place.
            first: number of the first of them in the table.
            touched: which of them have had a gradient, bool [n].
            items: the items' table as it is trained, float32 [num_items, D]; read for queries only.
            queries: the queries' vectors, finished, float32 [num_queries, D]; read for items that are smoothed.
        """
        config = self._config
        numbers = np.arange(first, first + len(rows), dtype=np.int32)
        if node_type == config.query_type and self._history.share:
            self._history.blend_(rows.numpy(), numbers, items.numpy())
            degrees = np.diff(self._history.items.indptr[first : first + len(rows) + 1])
            touched = touched | torch.from_numpy(degrees > 0)
        if config.similarity == "cosine":
            normalize_(rows.numpy())
        if node_type == config.item_type and config.smoothing:
            if queries is None:
                raise ValueError("smoothed items need their queries' vectors: finish the queries first")
            means = np.zeros_like(rows.numpy())
            History(share=1.0, items=self._history.items.transposed).blend_(means, numbers, queries.numpy())
            normalize_(means)
            rows.add_(torch.from_numpy(means), alpha=config.smoothing)
            normalize_(rows.numpy())
        if node_type in self._lengths:
            rows.mul_(self._lengths[node_type][first : first + len(rows), None])
        rows.mul_(touched[:, None])

    def trained_lengths(self, node_type: str, table: Tensor) -> Tensor:
        """Give what a finished row is multiplied by to get the trained one, float32 [N]; blending and smoothing aside."""
        lengths = table.norm(dim=1) if self._config.similarity == "cosine" else torch.ones(len(table))
        return lengths / self._lengths[node_type] if node_type in self._lengths else lengths
