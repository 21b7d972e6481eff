"""A LightGCN facet through PyG: the "existing embedding" that tables trained from scratch overlap with."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch_geometric.nn import LGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor

from contrastive.draws import PositiveDraws
from contrastive.evaluation import evaluate

if TYPE_CHECKING:
    from torch import Tensor

    from contrastive.positives import Positives

__all__ = ["LightGcnConfig", "train_lightgcn"]

logger = logging.getLogger(__name__)


class LightGcnConfig(BaseModel):
    """Configuration of `train_lightgcn`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(default=64, ge=1, description="width of a vector")
    num_layers: int = Field(default=3, ge=0, description="propagations; a vector is the mean over the layers and its own row")
    epochs: int = Field(default=20, ge=1, description="epochs of as many draws as there are positives")
    batch_size: int = Field(default=8192, ge=1, description="positives a step; the whole graph is propagated at each")
    lr: float = Field(default=0.01, gt=0, description="learning rate (Adam)")
    l2: float = Field(default=1e-4, ge=0, description="weight of half the squared lengths of a triple's own rows")
    init_scale: float = Field(default=0.1, gt=0, description="standard deviation of the first values")
    seed: int = Field(default=0, ge=0, description="seed of initial values, positives and negatives")


def train_lightgcn(
    positives: Positives, config: LightGcnConfig, *, held_out: Positives | None = None, k: int = 20
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Learn vectors by BPR on the propagated rows of the whole graph (LightGCN; He et al., SIGIR 2020).

    Args:
        positives: the graph, and what is learned; drawn by weight.
        config: the model and how it is trained.
        held_out: pairs to rank at the end; None for none.
        k: length of the ranked list.

    Returns:
        Vectors of the queries, float32 [num_queries, D], of the items, float32 [num_items, D], and metrics: the loss, and those
        of `evaluate`. The vectors are propagated: plain rows from here on.
    """
    generator = np.random.default_rng(config.seed)
    num_queries, num_items = positives.num_queries, positives.num_items
    seeded = torch.Generator().manual_seed(config.seed)
    rows = torch.nn.Parameter(torch.randn(num_queries + num_items, config.dim, generator=seeded) * config.init_scale)
    adjacency = _normalized_adjacency(positives)
    convolution = LGConv(normalize=False)
    optimizer = torch.optim.Adam([rows], lr=config.lr)
    draws, known = PositiveDraws(positives, 1), positives.index()
    loss_sum, num_steps = 0.0, math.ceil(len(positives) / config.batch_size)
    for epoch in range(1, config.epochs + 1):
        began, loss_sum = time.perf_counter(), 0.0
        for _ in range(num_steps):
            pairs = draws.draw(config.batch_size, generator)
            queries, chosen = positives.queries[pairs], positives.items[pairs]
            others = generator.integers(0, num_items, len(pairs), dtype=np.int32)
            hits = known.contains(queries, others)
            others[hits] = generator.integers(0, num_items, int(hits.sum()), dtype=np.int32)
            ends = [torch.from_numpy(end.astype(np.int64)) for end in (queries, chosen + num_queries, others + num_queries)]
            vectors = _propagate(rows, adjacency, convolution, config.num_layers)
            query, positive, negative = (vectors[end] for end in ends)
            loss = F.softplus((query * (negative - positive)).sum(1)).mean()
            own = sum(rows[end].square().sum() for end in ends)
            optimizer.zero_grad()
            (loss + 0.5 * config.l2 * own / len(pairs)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += float(loss.detach())
        if not math.isfinite(loss_sum):
            raise ValueError(f"the loss of epoch {epoch} is {loss_sum}; lower lr")
        logger.info("lightgcn epoch %d: loss %.4f, %.1f s", epoch, loss_sum / num_steps, time.perf_counter() - began)
    with torch.no_grad():
        vectors = _propagate(rows, adjacency, convolution, config.num_layers)
    query_vectors, item_vectors = vectors[:num_queries].contiguous(), vectors[num_queries:].contiguous()
    metrics = {"loss": loss_sum / num_steps}
    if held_out is not None:
        metrics |= evaluate(query_vectors, item_vectors, relevant=held_out.index(), seen=known, k=k)
    return query_vectors, item_vectors, metrics


def _normalized_adjacency(positives: Positives) -> Tensor:
    """Give the symmetric adjacency of queries and items, each edge over the root of its ends' degrees, as sparse rows."""
    num_nodes = positives.num_queries + positives.num_items
    query = torch.from_numpy(positives.queries.astype(np.int64))
    item = torch.from_numpy(positives.items.astype(np.int64)) + positives.num_queries
    edges = torch.stack([torch.cat([query, item]), torch.cat([item, query])])
    index, weight = gcn_norm(edges, None, num_nodes, add_self_loops=False)
    adjacency: Tensor = to_torch_csr_tensor(index, weight, size=(num_nodes, num_nodes))
    return adjacency


def _propagate(rows: Tensor, adjacency: Tensor, convolution: LGConv, num_layers: int) -> Tensor:
    total = vectors = rows
    for _ in range(num_layers):
        vectors = convolution(vectors, adjacency)
        total = total + vectors
    return total / (num_layers + 1)
