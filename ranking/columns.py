"""Examples as tensors whose ids are looked up: what a training step and scoring read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from multifacet.ranking.examples import Examples
    from multifacet.ranking.model import RankingModel
    from multifacet.tables import IdMap


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Examples as contiguous tensors, ids already looked up.

    Attributes:
        dense: float32 [n, F].
        rows: int32 [n, columns], as the model's columns are laid out.
        num_recent: How many recent pins there are, int32 [n]; 0 for a model without a sequence.
        ctr: float32 [n].
        cvr: float32 [n], 0 where unknown.
        cvr_known: float32 [n], 1 where the CVR label is known, else 0.
        weight: What each example counts for, float32 [n]; None for 1.
    """

    dense: Tensor
    rows: Tensor
    num_recent: Tensor
    ctr: Tensor
    cvr: Tensor
    cvr_known: Tensor
    weight: Tensor | None = None

    @staticmethod
    def of(examples: Examples, model: RankingModel, id_maps: Mapping[str, IdMap]) -> Columns:
        """Look the ids of examples up.

        Args:
            examples: The examples.
            model: The model that will read them.
            id_maps: Id map of each feature that has tables.

        Raises:
            ValueError: If the model has a sequence, and the examples have no recent pins, or another number of them.
        """
        rows = model.layout.rows(examples, id_maps)
        recent = examples.recent if model.layout.num_recent else None
        known = np.isfinite(examples.cvr_label)
        return Columns(
            dense=torch.from_numpy(examples.dense),
            rows=rows,
            num_recent=torch.zeros(len(examples), dtype=torch.int32) if recent is None else torch.from_numpy(recent.num_recent),
            ctr=torch.from_numpy(examples.ctr_label),
            cvr=torch.from_numpy(np.where(known, examples.cvr_label, np.float32(0))),
            cvr_known=torch.from_numpy(known.astype(np.float32)),
            weight=None if examples.weight is None else torch.from_numpy(examples.weight),
        )

    def __len__(self) -> int:
        return len(self.ctr)

    def take(self, chosen: Tensor | slice) -> Columns:
        """Return chosen rows of every column."""
        return self._map(lambda column: column[chosen])

    def to(self, device: torch.device) -> Columns:
        """Return the columns on a device; themselves, if they are there."""
        if self.ctr.device == device:
            return self
        return self._map(lambda column: column.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Columns:
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped: dict[str, Any] = {name: None if column is None else function(column) for name, column in columns.items()}
        return Columns(**mapped)
