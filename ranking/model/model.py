"""The ranker: TorchRec embedding tables per (feature, facet), and an upper model that reads their rows."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multifacet.ranking.model.layout import RowLayout

with warnings.catch_warnings():
    # fbgemm_gpu's CPU build warns about kernels that only its CUDA build has.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
    from torchrec.modules.embedding_configs import DataType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multifacet.ranking.model.layout import TableSpec
    from multifacet.ranking.model.sequence import SequencePooling
    from multifacet.ranking.model.upper import UpperModel

_DATA_TYPES: Final[dict[str, Any]] = {"fp32": DataType.FP32, "fp16": DataType.FP16}


class RankingModel(nn.Module):
    """Embedding tables and the upper model.

    Ids come as rows whose columns are laid out as `layout` says.

    Args:
        specs: The tables; all of one dimension. Empty: a ranker without ids.
        upper: Upper model; its slots are the tables', and one "recent_pins" a facet with a sequence.
        pooling: How recent pins become one row a facet; None for a ranker without a sequence.
        table_device: Where the tables are: "meta" for tables that get their memory when they are sharded, or from a file.
        table_dtype: Type of the tables, "fp32" or "fp16"; what is above them reads their rows in FP32.
        id_dropout: Share of the slots that a step of training hides from the upper model, each example's own; the others are
            longer by as much. No slot then carries alone what another could tell.

    Raises:
        ValueError: If the parts do not fit.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        upper: UpperModel,
        pooling: SequencePooling | None = None,
        *,
        table_device: str = "cpu",
        table_dtype: str = "fp32",
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        wrong = [spec.name for spec in specs if spec.dim != upper.dim]
        if wrong:
            raise ValueError(f"tables {wrong} are of another dim than the upper model's {upper.dim}")
        self.specs = tuple(specs)
        self.layout = RowLayout(specs, upper.slots, 0 if pooling is None else pooling.length)
        if pooling is not None and pooling.facets != self.layout.facets:
            raise ValueError(f"pooling is of the facets {pooling.facets}, the pins' tables of {self.layout.facets}")
        self.upper, self.pooling = upper, pooling
        self.id_dropout = id_dropout
        self.tables = (
            EmbeddingCollection(
                tables=[
                    EmbeddingConfig(
                        name=spec.name,
                        embedding_dim=spec.dim,
                        num_embeddings=spec.num_rows,
                        feature_names=[spec.feature],
                        data_type=_DATA_TYPES[table_dtype],
                    )
                    for spec in specs
                ],
                device=torch.device(table_device),
            )
            if specs
            else None
        )

    def table(self, name: str) -> Tensor:
        """Return a table's weights, [num_rows, dim] of the tables' type; writing to them changes the model.

        Raises:
            KeyError: If there is no such table.
        """
        if self.tables is None or name not in self.tables.embeddings:
            raise KeyError(f"no table {name!r}; there are {[spec.name for spec in self.specs]}")
        weights: Tensor = self.tables.embeddings[name].weight.detach()
        return weights

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """Read rows straight from whole tables, without TorchRec's dispatch and without a gradient to the tables.

        Args:
            rows: int32 [B, columns].

        Returns:
            Feature of each group -> float32 [B, columns of the group, facets, D].
        """
        return self.layout.gather(rows, self.table)

    def look_up(self, rows: Tensor) -> dict[str, Tensor]:
        """Look rows up through TorchRec: differentiable, and the way of a model under DistributedModelParallel.

        Args:
            rows: int32 [B, columns].

        Returns:
            As `gather`.
        """
        if self.tables is None:
            return {}
        parts = [rows[:, group.columns] for group in self.layout.groups]
        shares = [group.shares(part) for group, part in zip(self.layout.groups, parts, strict=True)]
        parts = [part if share is None else part.clamp(min=0) for part, share in zip(parts, shares, strict=True)]
        # A feature's rows as one bag: TorchRec takes a batch of no examples for one without features.
        lengths = torch.tensor([part.numel() for part in parts], dtype=torch.int32, device=rows.device)
        values = torch.cat([part.reshape(-1) for part in parts])
        jagged = KeyedJaggedTensor(keys=list(self.layout.features), values=values, lengths=lengths)
        # A sharded collection gives what is not there yet: asking for its items waits.
        found = dict(self.tables(jagged).items())
        looked_up = {}
        for group, part, share in zip(self.layout.groups, parts, shares, strict=True):
            names = [f"{group.feature}@{spec.name}" if len(group.specs) > 1 else group.feature for spec in group.specs]
            by_facet = [found[name].values().view(*part.shape, self.upper.dim) for name in names]
            rows_of_group = torch.stack(by_facet, dim=2).float()
            looked_up[group.feature] = rows_of_group if share is None else rows_of_group * share[:, :, None, None]
        return looked_up

    def score(self, dense: Tensor, looked_up: Mapping[str, Tensor], num_recent: Tensor | None = None) -> Tensor:
        """Score examples whose rows are looked up.

        Args:
            dense: Raw dense features, float32 [B, F].
            looked_up: What `gather` or `look_up` gave.
            num_recent: How many recent pins there are, int [B]; for a model with a sequence only.

        Returns:
            Logits of (ctr, cvr), float32 [B, 2].
        """
        if self.pooling is not None and num_recent is None:
            raise ValueError("this model has a sequence: give num_recent, the number of recent pins of each example")
        counts = num_recent if num_recent is not None else dense.new_zeros(len(dense), dtype=torch.int32)
        if looked_up:
            embeddings = self.layout.slots(looked_up, counts, self.pooling)
            if self.training and self.id_dropout:
                embeddings = embeddings * F.dropout(embeddings.new_ones(*embeddings.shape[:2], 1), self.id_dropout)
        else:
            embeddings = dense.new_zeros((len(dense), 0, self.upper.dim))
        logits: Tensor = self.upper(dense, embeddings)
        return logits

    def forward(self, dense: Tensor, rows: Tensor, num_recent: Tensor | None = None, *, learns_tables: bool = True) -> Tensor:
        """Score examples, looking their rows up through TorchRec.

        Args:
            dense: Raw dense features, float32 [B, F].
            rows: int32 [B, columns]; [B, 0] for a model without tables.
            num_recent: How many recent pins there are, int [B]; for a model with a sequence only.
            learns_tables: Whether a backward pass reaches the tables.

        Returns:
            Logits of (ctr, cvr), float32 [B, 2].
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns_tables):
            looked_up = self.look_up(rows)
        return self.score(dense, looked_up, num_recent)
