"""Edges a second of training on FB15k-237's shape, and the share of the machine's matrix product speed that this is.

Every model trains with dimension 100, batches of 1000 edges in chunks of 100, 100 in-batch and 100 uniform negatives a
side, softmax loss and row-wise Adagrad. The peer torch is the same model, loss and optimiser in plain torch (autograd,
index_add), fed with the very same batches by the same sampler, on the same threads; the losses of the two stand side by
side. The peer pykeen is its own training loop with 100 negatives a positive, the closest that it has. Where KGE_DATA names a
folder with train.txt.gz of FB15k-237, that graph is learned; elsewhere one of the same size, degrees by a power law.

The speed of a shared machine changes by a third within seconds, so the sides take turns, a second each, in five rounds, and
the medians stand; config has every round. The ceiling of a round is the best matrix product of size 1024 right before or after
it, a quarter of a second each. edges_per_core_s is edges by seconds of processor time: it says what a core does where others
want the machine too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from multifacet.kge import KgeConfig, TripleSet, TripleSplit
from multifacet.kge.batches.batch import Batch
from multifacet.kge.batches.epochs import EpochSource
from multifacet.kge.models.projections import ProjectionKind
from multifacet.kge.models.relations import RelationParameters
from multifacet.kge.sampled.trainer import Trainer
from multifacet.kge.triples.feeds import FeedSplit
from multifacet.training import Lanes, Position

EDGES_PER_S = Metric(name="edges_per_s", unit="edges/s", better=HIGHER)
GEMM_FRACTION = Metric(name="gemm_fraction", unit="", better=HIGHER)
EDGES_PER_CORE_S = Metric(name="edges_per_core_s", unit="edges/s", better=HIGHER)
LOSS = Metric(name="loss_per_epoch", unit="nats", better=LOWER)

BASE: dict[str, Any] = {
    "dim": 100,
    "batch_size": 1000,
    "chunk_size": 100,
    "num_uniform": 100,
    "num_degree": 0,
    "l2": 0.0,
    "lr": 0.1,
}
_MODELS: dict[str, dict[str, Any]] = {
    "complex": {"model": "complex"},
    "distmult": {"model": "distmult"},
    "transe": {"model": "transe"},
    "transe l2": {"model": "transe", "distance": "l2"},
    "transe l1": {"model": "transe", "distance": "l1"},
    "rotate": {"model": "rotate"},
    "rotate moduli": {"model": "rotate", "distance": "l1"},
    "transra": {"model": "transra"},
    "transr": {"model": "transr"},
}
_CURVE: dict[str, dict[str, Any]] = {
    "complex, d=64": {"model": "complex", "dim": 64},
    "complex, d=128": {"model": "complex", "dim": 128},
    "complex, d=256": {"model": "complex", "dim": 256},
    "complex, 1000 negatives": {"model": "complex", "num_uniform": 900},
}


def run(quick: bool) -> Iterator[Row]:
    """Some bursts of batches a case; whole epochs only for the comparison of losses, and only when not quick."""
    num_rounds = 2 if quick else 5
    split, graph = read_graph()
    shared: dict[str, Any] = {"graph": graph, "threads": torch.get_num_threads(), "rounds": num_rounds}
    cases = {**_MODELS, **({} if quick else _CURVE)}
    for case, settings in cases.items():
        config = KgeConfig.model_validate(BASE | settings)
        has_peer = config.distance == "squared" and case not in _CURVE
        kinds: tuple[type[Ours | PlainTorch], ...] = (Ours, PlainTorch) if has_peer else (Ours,)
        race = run_race([Course(split, config, kind) for kind in kinds], num_rounds)
        speeds, speeds_per_core = race.edges_per_s[0], race.edges_per_core_s[0]
        peer = Peer(name="torch", value=median(race.edges_per_s[1])) if has_peer else None
        described = (
            shared
            | {"gemm_gflops": [round(flops / 1e9) for flops in race.gemm_flops_per_s]}
            | {"rounds_edges_per_s": [[round(speed) for speed in kind] for kind in race.edges_per_s]}
            | config.model_dump(mode="json", include={*BASE, "model", "distance", "rank"})
        )
        yield Row(case=case, metric=EDGES_PER_S, value=median(speeds), peer=peer, config=described)
        flops = 6 * (config.chunk_size + config.num_uniform) * config.dim * 2
        around = [max(pair) for pair in pairwise(race.gemm_flops_per_s)]
        fraction = median(speed * flops / ceiling for speed, ceiling in zip(speeds, around, strict=True))
        yield Row(case=case, metric=GEMM_FRACTION, value=fraction, config=described)
        yield Row(case=case, metric=EDGES_PER_CORE_S, value=median(speeds_per_core), config=described)
        if case == "complex":
            pykeen = Peer(name="pykeen", value=measure_pykeen(split, num_triples=2_000 if quick else 10_000))
            yield Row(case=case, metric=EDGES_PER_S, value=median(speeds), peer=pykeen, config=described)
    if not quick:
        config = KgeConfig.model_validate(BASE | {"model": "complex"})
        losses = [epoch_losses(split, config, kind, 3) for kind in (Ours, PlainTorch)]
        for epoch, (ours, plain) in enumerate(zip(*losses, strict=True), start=1):
            peer = Peer(name="torch", value=plain)
            yield Row(case=f"complex, epoch {epoch}", metric=LOSS, value=ours, peer=peer, config=shared)


def read_graph() -> tuple[TripleSplit, str]:
    """FB15k-237 where it is at hand, else a graph of its size."""
    folder = os.environ.get("KGE_DATA")
    if folder:
        return TripleSplit.from_files(train=Path(folder) / "train.txt.gz"), "fb15k-237"
    return power_law_graph(num_nodes=14_541, num_relations=237, num_edges=272_115), "power law of fb15k-237's size"


def power_law_graph(*, num_nodes: int, num_relations: int, num_edges: int) -> TripleSplit:
    """Ends and relations drawn by power laws, so that hubs and rare relations occur as in real graphs."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return (count * generator.random(num_edges) ** 2).astype(np.int32)

    names = tuple(f"relation {number}" for number in range(num_relations))
    triples = TripleSet(
        heads=draw(num_nodes),
        relations=draw(num_relations),
        tails=draw(num_nodes),
        relation_names=names,
        ends=dict.fromkeys(names, ("entity", "entity")),
        num_nodes={"entity": num_nodes},
    )
    return TripleSplit(train=triples, valid=triples.take(slice(0)), test=triples.take(slice(0)))


def gemm_flops_per_s(size: int = 1024, seconds: float = 0.25) -> float:
    """The best speed of a square product of float32 on all threads."""
    left, right, product = (torch.randn(size, size) for _ in range(3))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        torch.mm(left, right, out=product)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


class Ours:
    """The trainer's own step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def learn(self, batch: Batch, lanes: Lanes) -> float:
        """Take a step; gives the sum of its edges' losses."""
        return self._trainer.learn(batch, lanes)

    def lanes(self) -> Lanes:
        """Start the threads that it runs on."""
        return Lanes().__enter__()


class PlainTorch:
    """The same step by autograd over the rows of a batch, then index_add and row-wise Adagrad; torch's own threads."""

    def __init__(self, trainer: Trainer) -> None:
        self._model, self._config = trainer.model, trainer.config
        (self._table,) = trainer.state.tables.values()
        (optimizer,) = trainer.state.optimizers.values()
        self._squares = optimizer.state
        self._relations: RelationParameters = trainer.state.relations
        shapes = next(iter(self._relations.values.values()))
        self._sizes = {name: value.shape for name, value in shapes.items()}

    def lanes(self) -> Lanes:
        """Start the threads that it runs on."""
        threads = torch.get_num_threads()
        lanes = Lanes().__enter__()
        torch.set_num_threads(threads)
        return lanes

    def learn(self, batch: Batch, lanes: Lanes) -> float:
        """Take a step; gives the sum of its edges' losses."""
        del lanes
        projects = self._model.projection.kind != ProjectionKind.NONE
        weights = torch.from_numpy(batch.weights)
        rows, leaves, keys, key_leaves, losses = [], [], [], [], []
        for side in batch.sides:
            for part in (side.known, side.candidates.rows):
                rows.append(torch.from_numpy(part))
                leaves.append(self._table[rows[-1]].requires_grad_())
            keys.append(torch.from_numpy(side.keys[:, :1] if projects else side.keys))
            key_leaves.append(self._relations.table[keys[-1]].requires_grad_())
            parameters = self._name(key_leaves[-1], projects=projects)
            known, candidates = (self._model.project(leaf, parameters) for leaf in leaves[-2:])
            queries = self._model.translate(known, parameters, side.side)
            scores = torch.bmm(queries, candidates.mT)
            if self._model.is_distance:
                scores = 2 * scores - candidates.square().sum(-1)[:, None]
            scores = scores + torch.from_numpy(side.candidates.bias)[:, None]
            targets = torch.from_numpy(side.candidates.targets).long()
            losses.append(torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none"))
        loss = torch.stack([(each * weights.flatten()).sum() for each in losses]).sum()
        gradients = torch.autograd.grad(loss, [*leaves, *key_leaves])
        with torch.no_grad():
            distinct, sums = _sum_by_row(rows, gradients[: len(rows)])
            squares = self._squares[distinct] + sums.square().mean(1)
            self._squares[distinct] = squares
            self._table.index_add_(0, distinct, sums / (squares.sqrt() + 1e-10)[:, None], alpha=-self._config.lr)
            distinct, sums = _sum_by_row(keys, gradients[len(rows) :])
            squares = self._relations.state[distinct] + sums.square()
            self._relations.state[distinct] = squares
            self._relations.table.index_add_(0, distinct, sums / (squares.sqrt() + 1e-10), alpha=-self._config.relation_lr)
            real = weights.flatten() > 0
            return float(sum(each.detach()[real].sum() for each in losses))

    def _name(self, numbers: Tensor, *, projects: bool) -> dict[str, Tensor]:
        parts = torch.split(numbers, [size.numel() for size in self._sizes.values()], dim=-1)
        named = {}
        for part, (name, size) in zip(parts, self._sizes.items(), strict=True):
            named[name] = torch.unflatten(part[:, 0], -1, size) if projects and len(size) == 2 else part
        return named


def _sum_by_row(rows: list[Tensor], gradients: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    distinct, places = torch.unique(torch.cat([part.flatten() for part in rows]), return_inverse=True)
    flat = torch.cat([gradient.flatten(0, -2) for gradient in gradients])
    return distinct, flat.new_zeros(len(distinct), flat.shape[1]).index_add_(0, places, flat)


class Course:
    """One side's training, in bursts: it goes on where the last one ended, epoch after epoch, drawing included."""

    def __init__(
        self,
        split: TripleSplit | FeedSplit,
        config: KgeConfig,
        kind: type[Ours | PlainTorch],
        *,
        source: EpochSource | None = None,
    ) -> None:
        self._trainer = Trainer(split, config, np.random.default_rng(0), source=source)
        self._side = kind(self._trainer)
        self._batches = self._endless()
        before = torch.get_num_threads()
        self._lanes = self._side.lanes()
        self._num_threads = torch.get_num_threads()
        torch.set_num_threads(before)

    def run(self, seconds: float) -> tuple[float, float]:
        """Give edges a second, and edges a second of processor time."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._num_threads)
        num_edges, begin, cpu_begin = 0, time.perf_counter(), time.process_time()
        following = self._lanes.prepare(lambda: next(self._batches))
        while True:
            batch = following.result()
            following = self._lanes.prepare(lambda: next(self._batches))
            self._side.learn(batch, self._lanes)
            num_edges += batch.num_edges
            passed = time.perf_counter() - begin
            if passed > seconds:
                break
        cpu = time.process_time() - cpu_begin
        following.result()
        torch.set_num_threads(before)
        return num_edges / passed, num_edges / cpu

    def close(self) -> None:
        """End its threads."""
        before = torch.get_num_threads()
        self._lanes.__exit__(None, None, None)
        torch.set_num_threads(before)

    def _endless(self) -> Iterator[Batch]:
        generator = np.random.default_rng(1)
        while True:
            yield from self._trainer.source.begin_epoch(Position(generator=generator)).batches


@dataclass(frozen=True, kw_only=True)
class Race:
    """What the bursts of a race gave.

    Attributes:
        edges_per_s: of each course, in each round.
        edges_per_core_s: likewise, by processor time.
        gemm_flops_per_s: before each round, and after the last.
    """

    edges_per_s: list[list[float]]
    edges_per_core_s: list[list[float]]
    gemm_flops_per_s: list[float]


def run_race(courses: Sequence[Course], num_rounds: int) -> Race:
    """Let courses take turns, a second each, after half a second to warm up; ends their threads."""
    try:
        for course in courses:
            course.run(0.5)
        gemm, rounds = [gemm_flops_per_s()], []
        for _ in range(num_rounds):
            rounds.append([course.run(1.0) for course in courses])
            gemm.append(gemm_flops_per_s())
    finally:
        for course in courses:
            course.close()
    by_course = list(zip(*rounds, strict=True))
    return Race(
        edges_per_s=[[speed for speed, _ in course] for course in by_course],
        edges_per_core_s=[[speed for _, speed in course] for course in by_course],
        gemm_flops_per_s=gemm,
    )


def epoch_losses(split: TripleSplit, config: KgeConfig, kind: type[Ours | PlainTorch], num_epochs: int) -> list[float]:
    """The mean loss of each epoch, both kinds fed with the same batches."""
    trainer = Trainer(split, config, np.random.default_rng(0))
    side, generator = kind(trainer), np.random.default_rng(1)
    means = []
    for _ in range(num_epochs):
        total, num_edges = 0.0, 0
        with Lanes() as lanes:
            for batch in trainer.source.begin_epoch(Position(generator=generator)).batches:
                total += side.learn(batch, lanes)
                num_edges += batch.num_edges
        means.append(total / num_edges)
    return means


def measure_pykeen(split: TripleSplit, *, num_triples: int) -> float:
    """Edges a second of PyKEEN's own loop: ComplEx of as many numbers, 100 negatives a positive, Adagrad."""
    from pykeen.models import ComplEx  # noqa: PLC0415 - importing it takes seconds
    from pykeen.training import SLCWATrainingLoop  # noqa: PLC0415
    from pykeen.triples import CoreTriplesFactory  # noqa: PLC0415

    triples = split.train
    columns = np.stack([triples.heads, triples.relations, triples.tails], axis=1)[:num_triples]
    factory = CoreTriplesFactory.create(
        torch.from_numpy(columns.astype(np.int64)),
        num_entities=next(iter(triples.num_nodes.values())),
        num_relations=len(triples.relation_names),
    )
    model = ComplEx(triples_factory=factory, embedding_dim=50, random_seed=0)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    loop = SLCWATrainingLoop(
        model=model, triples_factory=factory, optimizer=optimizer, negative_sampler_kwargs={"num_negs_per_pos": 100}
    )
    begin = time.perf_counter()
    loop.train(triples_factory=factory, num_epochs=1, batch_size=1000, use_tqdm=False)
    return len(columns) / (time.perf_counter() - begin)
