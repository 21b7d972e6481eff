"""The ranker: TorchRec embedding tables per (feature, facet), and an upper model that reads their rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # fbgemm_gpu's CPU build warns about kernels that only its CUDA build has.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

TASKS: tuple[str, ...] = ("ctr", "cvr")


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One embedding table: the rows of one id feature in one facet.

    Attributes:
        feature: Id feature, such as "user"; its rows come from the feature's id map.
        facet: Which pretraining the table's rows may start from, such as "kge".
        node_type: Node type of the ids in the graph.
        num_rows: Rows, the out-of-vocabulary row included.
        dim: Elements a row.
    """

    feature: str
    facet: str
    node_type: str
    num_rows: int
    dim: int

    @property
    def name(self) -> str:
        """The table's name: feature and facet."""
        return f"{self.feature}_{self.facet}"


class CrossLayer(nn.Module):
    """A low-rank cross layer of DCN-V2 (Wang et al. 2021, arXiv 2008.13535, equation 2).

    ``x_next = x_0 * (U V^T x + b) + x``

    Args:
        width: Elements of x.
        rank: Columns of U and V.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)

    def forward(self, first: Tensor, current: Tensor) -> Tensor:
        """Cross the input with the first layer's input.

        Args:
            first: x_0, [B, width].
            current: x, [B, width].

        Returns:
            [B, width].
        """
        crossed: Tensor = first * self.up(self.down(current)) + current
        return crossed


class UpperModel(nn.Module):
    """Everything above the tables: dense features and looked-up rows in, CTR and CVR logits out.

    ::

        dense [B, F] ------> standardise ----------------------------+
        embeddings [B, T, D] -> rows ------> normalise -> project ---+
          per facet: user * pin, user * advertiser -> normalise -> project -+-> cross layers -> MLP -> ctr, cvr
          the same summed (dots) ----------> normalise --------------+

    The elementwise products are what lets the ranker use pretrained tables: whether a user's and a pin's row
    point the same way is a product, which an MLP learns badly from the rows alone. Rows and products are projected
    to a few elements before they are crossed, so that a step costs little and ids are memorised less.

    Args:
        num_dense: Dense features F.
        slots: (feature, facet) of each embedding slot, in the order of `embeddings`' second axis.
        dim: Elements a row, D.
        projected: Elements that the rows, and the products, are projected to.
        cross_rank: Rank of the cross layers.
        num_cross_layers: Cross layers.
        hidden: Widths of the MLP's layers.
        dropout: Dropout after each MLP layer.
    """

    dense_mean: Tensor
    dense_scale: Tensor

    def __init__(
        self,
        *,
        num_dense: int,
        slots: Sequence[tuple[str, str]],
        dim: int,
        projected: int = 32,
        cross_rank: int = 32,
        num_cross_layers: int = 2,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(set(slots)) != len(slots):
            raise ValueError(f"slots are {list(slots)}; each (feature, facet) may occur once")
        self.pairs = [
            (left, right)
            for left, (feature, facet) in enumerate(slots)
            for right, (other, other_facet) in enumerate(slots)
            if feature == "user" and other != "user" and facet == other_facet
        ]
        self.num_dense, self.num_slots, self.dim = num_dense, len(slots), dim
        self.register_buffer("dense_mean", torch.zeros(num_dense))
        self.register_buffer("dense_scale", torch.ones(num_dense))
        width = num_dense
        if slots:
            self.rows = _normalise_and_project(len(slots) * dim, projected)
            width += projected
        if self.pairs:
            self.products = _normalise_and_project(len(self.pairs) * dim, projected)
            self.dots = nn.BatchNorm1d(len(self.pairs))
            width += projected + len(self.pairs)
        self.cross = nn.ModuleList(CrossLayer(width, cross_rank) for _ in range(num_cross_layers))
        layers: list[nn.Module] = []
        for size_in, size_out in zip([width, *hidden], hidden, strict=False):
            layers += [nn.Linear(size_in, size_out), nn.ReLU(), nn.Dropout(dropout)]
        self.bottom = nn.Sequential(*layers)
        self.heads = nn.Linear(hidden[-1], len(TASKS))

    def fit_normalisation(self, dense: Tensor) -> None:
        """Set the mean and scale of the dense features from training examples.

        Args:
            dense: Raw dense features, float32 [n, F].
        """
        self.dense_mean.copy_(dense.mean(0))
        self.dense_scale.copy_(1 / dense.std(0).clamp(min=1e-6))

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Score examples.

        Args:
            dense: Raw dense features, float32 [B, F].
            embeddings: Looked-up rows, float32 [B, T, D].

        Returns:
            Logits of (ctr, cvr), float32 [B, 2].
        """
        blocks = [(dense - self.dense_mean) * self.dense_scale]
        if self.num_slots:
            blocks.append(self.rows(embeddings.flatten(1)))
        if self.pairs:
            # Slices, not an index: an index's gradient is scattered one element at a time.
            slots = embeddings.unbind(1)
            products = torch.stack([slots[left] * slots[right] for left, right in self.pairs], dim=1)
            blocks += [self.products(products.flatten(1)), self.dots(products.sum(2))]
        first = torch.cat(blocks, dim=1)
        crossed = first
        for layer in self.cross:
            crossed = layer(first, crossed)
        logits: Tensor = self.heads(self.bottom(crossed))
        return logits


def _normalise_and_project(size_in: int, size_out: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(size_in), nn.Linear(size_in, size_out))


class RankingModel(nn.Module):
    """Embedding tables and the upper model.

    Args:
        specs: The tables, in slot order; all of one dimension. Empty: a ranker without ids.
        upper: Upper model with as many slots.
    """

    def __init__(self, specs: Sequence[TableSpec], upper: UpperModel) -> None:
        super().__init__()
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise ValueError(f"tables are named {names}; each name may occur once")
        wrong = [spec.name for spec in specs if spec.dim != upper.dim]
        if wrong or len(specs) != upper.num_slots:
            raise ValueError(
                f"{len(specs)} tables for an upper model of {upper.num_slots} slots and dim {upper.dim}; "
                f"of another dim: {wrong}"
            )
        self.specs = tuple(specs)
        self.features = tuple(dict.fromkeys(spec.feature for spec in specs))
        self.tables = (
            EmbeddingBagCollection(
                tables=[
                    EmbeddingBagConfig(
                        name=spec.name,
                        embedding_dim=spec.dim,
                        num_embeddings=spec.num_rows,
                        feature_names=[spec.feature],
                    )
                    for spec in specs
                ]
            )
            if specs
            else None
        )
        self.upper = upper

    def table(self, name: str) -> Tensor:
        """Return a table's weights, float32 [num_rows, dim]; writing to them changes the model.

        Args:
            name: The table's name.

        Raises:
            KeyError: If there is no such table.
        """
        if self.tables is None or name not in self.tables.embedding_bags:
            raise KeyError(f"no table {name!r}; there are {[spec.name for spec in self.specs]}")
        weights: Tensor = self.tables.embedding_bags[name].weight.detach()
        return weights

    def lookup(self, rows: Tensor | KeyedJaggedTensor) -> Tensor:
        """Look rows up, summed over a bag's values.

        Args:
            rows: int32 [B, features], columns in the order of `features`; or a KeyedJaggedTensor with a key a
                feature, for bags of any length.

        Returns:
            float32 [B, T, D], slots in the order of `specs`.
        """
        if self.tables is None:
            return torch.zeros((len(rows), 0, self.upper.dim))
        if isinstance(rows, Tensor):
            values = rows.T.reshape(-1)
            lengths = torch.ones(len(values), dtype=torch.int32)
            rows = KeyedJaggedTensor(keys=list(self.features), values=values, lengths=lengths)
        # EmbeddingBagCollection concatenates its tables in configuration order, which is slot order.
        pooled: Tensor = self.tables(rows).values()
        return pooled.view(-1, len(self.specs), self.upper.dim)

    def forward(self, dense: Tensor, rows: Tensor | KeyedJaggedTensor) -> Tensor:
        """Score examples.

        Args:
            dense: Raw dense features, float32 [B, F].
            rows: As for `lookup`; int32 [B, 0] for a model without tables.

        Returns:
            Logits of (ctr, cvr), float32 [B, 2].
        """
        logits: Tensor = self.upper(dense, self.lookup(rows))
        return logits
