"""A LightGCN facet through PyG: the "existing embedding" that tables trained from scratch overlap with."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch_geometric.nn import LGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor
from typing_extensions import override

from multifacet.contrastive.config import ContrastiveConfig, PositivesConfig
from multifacet.contrastive.evaluation import evaluate
from multifacet.contrastive.objective.comparison import Comparison
from multifacet.contrastive.objective.losses import ScoreLoss
from multifacet.contrastive.positives.pairs import Pairs
from multifacet.contrastive.positives.positives import Positives, hold_out_latest, read_positives
from multifacet.contrastive.result import ContrastiveResult
from multifacet.contrastive.trainer.towers import Tower
from multifacet.inputs import expect_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from multifacet.contrastive.positives.positives import Positives
    from multifacet.contrastive.trainer.towers import Batch
    from multifacet.graphdb import GraphView

__all__ = ["LightGcnConfig", "train_lightgcn", "train_lightgcn_pairs"]

logger = logging.getLogger(__name__)


# A younger option that is at its default is not written, so that what is kept by configurations stays what it was.
def _is_softmax(value: object) -> bool:
    return value == "softmax"


def _is_cosine(value: object) -> bool:
    return value == "cosine"


def _is_one(value: object) -> bool:
    return value == 1


def _is_zero(value: object) -> bool:
    return value == 0


class LightGcnConfig(PositivesConfig):
    """Configuration of `train_lightgcn`."""

    dim: int = Field(default=64, ge=1, description="width of a vector")
    num_layers: int = Field(default=3, ge=0, description="propagations; a vector is the mean over the layers and its own row")
    weighted_graph: bool = Field(
        default=True, description="whether propagation counts an edge as often as its weight says; false: each pair once"
    )
    temperature: float = Field(default=0.1, gt=0, description="what cosines are divided by")
    loss: Literal["softmax", "bilateral"] = Field(
        default="softmax", description="as in `ContrastiveConfig`", exclude_if=_is_softmax
    )
    negative_weight: float = Field(
        default=1.0, gt=0, description="bilateral: weight of the log of the negatives' mean exponential", exclude_if=_is_one
    )
    logq: bool = Field(
        default=True,
        description="softmax: correct scores for the chance of being drawn as a negative; without it, in-batch negatives leave "
        "popularity to the vectors' lengths, which ranking='dot' lets in",
        exclude_if=_is_one,
    )
    ranking: Literal["cosine", "dot"] = Field(
        default="cosine",
        description="what vectors are given out for: of length 1, or as they are propagated, whose products count how often an "
        "item is a positive as well; training compares cosines either way",
        exclude_if=_is_cosine,
    )
    l2: float = Field(
        default=0.0,
        ge=0,
        description="weight of half the squared lengths of a batch's queries' and candidates' own rows, a positive",
        exclude_if=_is_zero,
    )
    epochs: int = Field(default=20, ge=1, description="epochs of as many draws as there are distinct positives")
    batch_size: int = Field(default=32_768, ge=2, description="positives a step; the whole graph is propagated at each")
    positives_per_query: int = Field(default=16, ge=1, description="positives drawn of a query together; they share its scores")
    num_uniform: int = Field(default=2048, ge=0, description="uniform negatives a batch, beside the batch's own")
    lr: float = Field(default=0.03, gt=0, description="learning rate (Adam), down to 0 along a half cosine")
    init_scale: float = Field(default=0.1, gt=0, description="standard deviation of the first values")
    popularity_power: float = Field(default=0.0, ge=0, description="as in `ContrastiveConfig`")
    seed: int = Field(default=0, ge=0, description="seed of initial values, positives, negatives and held-out items")

    def contrast(self) -> ContrastiveConfig:
        """How batches are drawn and compared, as tables without a network would be trained."""
        shared = PositivesConfig.model_fields.keys() | {"dim", "temperature", "batch_size", "positives_per_query"}
        shared |= {"num_uniform", "popularity_power", "seed"}
        return ContrastiveConfig(**self.model_dump(include=shared), num_degree=0)


def train_lightgcn(
    view: GraphView, config: LightGcnConfig, *, progress: Callable[[Mapping[str, float]], None] | None = None
) -> ContrastiveResult:
    """Learn vectors of a graph's queries and items; see `train_lightgcn_pairs`.

    Args:
        view: the graph window.
        config: positives, the model and how it is trained.
        progress: called with the history's row after each epoch.

    Returns:
        Tables, history and metrics; its snapshot is of facet "lightgcn".

    Raises:
        ValueError: if the configuration does not fit the view, or the loss stops being a number.
    """
    positives = read_positives(view, config)
    kept, held_out = hold_out_latest(positives, config.validation, np.random.default_rng(config.seed))
    return train_lightgcn_pairs(kept, config, held_out=held_out, progress=progress)


def train_lightgcn_pairs(
    positives: Positives | Pairs,
    config: LightGcnConfig,
    *,
    held_out: Positives | None = None,
    progress: Callable[[Mapping[str, float]], None] | None = None,
) -> ContrastiveResult:
    """Learn vectors by the sampled softmax of cosines of the propagated rows of the whole graph.

    The network is LightGCN (He et al., SIGIR 2020). Its own loss, BPR against one negative, needs hundreds of epochs; the
    softmax with logQ, known positives masked, against the batch's candidates, is what the tables of this room are trained by.

    Args:
        positives: the graph, and what is learned; drawn, and propagated along, as often as their weights say.
        config: the model and how it is trained.
        held_out: pairs to rank after each `validation.every` epochs; None for none.
        progress: called with the history's row after each epoch.

    Returns:
        Tables, history and metrics. The vectors are propagated: plain rows from here on.

    Raises:
        ValueError: if the loss stops being a number.
    """
    expect_type("positives", positives, Positives, Pairs, hint="contrastive.read_pairs makes them of plain pairs")
    expect_type("config", config, LightGcnConfig)
    if isinstance(positives, Pairs):
        positives = positives.positives
    if not len(positives):
        raise ValueError(
            f"there are no positives to learn from, of {positives.num_queries} queries and {positives.num_items} items"
        )
    generator = np.random.default_rng(config.seed)
    num_queries, num_items = positives.num_queries, positives.num_items
    seeded = torch.Generator().manual_seed(config.seed)
    rows = torch.nn.Parameter(torch.randn(num_queries + num_items, config.dim, generator=seeded) * config.init_scale)
    propagation = _Propagation(positives, config.num_layers, weighted=config.weighted_graph)
    optimizer = torch.optim.Adam([rows], lr=config.lr)
    num_steps = math.ceil(len(positives) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps * config.epochs)
    tower = Tower(config.item_type, positives, config.contrast(), share=1.0)
    relevant = None if held_out is None else held_out.index()

    def give_vectors() -> dict[str, Tensor]:
        # A row that no gradient has reached holds its first values: it is zero, as in the tables of this room.
        touched = optimizer.state[rows]["exp_avg_sq"].any(1, keepdim=True)
        propagated = propagation(rows.detach())
        vectors = (F.normalize(propagated) if config.ranking == "cosine" else propagated) * touched
        items = vectors[num_queries:] * torch.from_numpy(tower.popularity_lengths()[:, None])
        return {config.query_type: vectors[:num_queries].contiguous(), config.item_type: items}

    history: list[dict[str, float]] = []
    for epoch in range(1, config.epochs + 1):
        began, loss_sum = time.perf_counter(), 0.0
        for _ in range(num_steps):
            batch = tower.draw(generator)
            loss = _loss(config, batch, rows, propagation(rows), num_queries)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            loss_sum += float(loss.detach())
        if not math.isfinite(loss_sum):
            raise ValueError(f"the loss of epoch {epoch} is {loss_sum}; lower lr")
        seconds = time.perf_counter() - began
        row = {"epoch": float(epoch), "loss": loss_sum / num_steps, "seconds": seconds}
        row["pairs_per_s"] = num_steps * config.batch_size / seconds
        if relevant is not None and (epoch % config.validation.every == 0 or epoch == config.epochs):
            tables = give_vectors()
            row |= evaluate(
                tables[config.query_type],
                tables[config.item_type],
                relevant=relevant,
                seen=tower.known,
                k=config.validation.k,
            )
        history.append(row)
        if progress is not None:
            progress(row)  # who listens tells it, and the log need not again
        else:
            logger.info("lightgcn epoch %d: %s", epoch, row)
    metrics = {name: value for name, value in history[-1].items() if name not in ("seconds", "pairs_per_s")}
    return ContrastiveResult(
        config=config,
        vectors=give_vectors(),
        history=history,
        metrics=metrics | {"num_held_out": float(0 if held_out is None else len(held_out))},
        facet="lightgcn",
    )


def _loss(config: LightGcnConfig, batch: Batch, rows: Tensor, vectors: Tensor, num_queries: int) -> Tensor:
    """Give a batch's mean loss, of the propagated `vectors` of `rows`; the queries' rows come first."""
    own, compared = (torch.from_numpy(numbers) for numbers in (batch.queries, batch.candidates.rows + np.int32(num_queries)))
    queries, keys = F.normalize(vectors.index_select(0, own)), F.normalize(vectors.index_select(0, compared))
    inclusion = batch.candidates.log_inclusion
    bias = -inclusion if config.loss == "softmax" and config.logq else np.zeros_like(inclusion)
    of_scores = ScoreLoss(name=config.loss, negative_weight=config.negative_weight)
    loss: Tensor = Comparison.apply(queries, keys, batch.candidates, of_scores, 1.0 / config.temperature, bias)  # type: ignore[no-untyped-call]
    if config.l2:
        loss = loss + 0.5 * config.l2 / len(batch) * rows.index_select(0, torch.cat([own, compared])).square().sum()
    return loss


class _Propagation:
    """The mean of a graph's rows and of what LGConv makes of them, layer on layer.

    Args:
        positives: pairs of query and item; the graph's nodes are the queries, then the items.
        num_layers: how many layers.
        weighted: whether an edge counts as often as its weight says, or once.
    """

    def __init__(self, positives: Positives, num_layers: int, *, weighted: bool = True) -> None:
        num_nodes = positives.num_queries + positives.num_items
        query = torch.from_numpy(positives.queries.astype(np.int64))
        item = torch.from_numpy(positives.items.astype(np.int64)) + positives.num_queries
        edges = torch.stack([torch.cat([query, item]), torch.cat([item, query])])
        repetitions = torch.from_numpy(positives.weights).repeat(2) if weighted else None
        index, weight = gcn_norm(edges, repetitions, num_nodes, add_self_loops=False)
        self._adjacency: Tensor = to_torch_csr_tensor(index, weight, size=(num_nodes, num_nodes))
        self._convolution = LGConv(normalize=False)
        self._num_layers = num_layers

    def __call__(self, rows: Tensor) -> Tensor:
        vectors: Tensor = _SelfAdjoint.apply(rows, self._apply)  # type: ignore[no-untyped-call]
        return vectors

    def _apply(self, rows: Tensor) -> Tensor:
        total = vectors = rows
        for _ in range(self._num_layers):
            vectors = self._convolution(vectors, self._adjacency)
            total = total + vectors
        return total / (self._num_layers + 1)


class _SelfAdjoint(torch.autograd.Function):
    """A symmetric linear map: it carries gradients back as it carries rows forward.

    Autograd would transpose the sparse matrix at each step: four times the time, for the same numbers.
    """

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.linear = linear
        return linear(rows)

    @staticmethod
    @override
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.linear(gradients), None
