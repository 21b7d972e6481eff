"""Training against all entities, by float32 and by bfloat16 products, beside 1-vs-all in plain torch: edges a second.

ComplEx with N3 and Adagrad on FB15k-237, each edge learned from both sides against all 14,541 entities. The peer is the usual
program: a batch of edges in both directions, one score matrix, `cross_entropy`, autograd, `torch.optim.Adagrad`. Ours scores
each distinct query once for all of its answers; both count the edges that they have learned from. The ways take turns, and the
fastest turn of each is given. Where FB15k-237 is not found, planted groups of users and pins are learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Literal

import numpy as np
import torch
from torch.nn import functional

from benchmarks.harness import Peer, Row
from benchmarks.harness.knowledge_graphs import load_split
from benchmarks.kge.kge_partitioned import planted_groups
from benchmarks.kge.kge_speed import EDGES_PER_CORE_S, EDGES_PER_S
from multifacet.kernels.memory import keep_freed_memory
from multifacet.kge import FullSoftmaxConfig, KgeConfig, TripleSplit
from multifacet.kge.full.trainer import FullTrainer

_BATCH: Final = 1000
_LR: Final = 0.1
_N3: Final = 0.1


def run(quick: bool) -> Iterator[Row]:
    """Width 200 when quick, else 200 and 512."""
    keep_freed_memory()
    split = load_split("fb15k-237")
    dataset = "fb15k-237" if split is not None else "planted groups"
    split = split if split is not None else planted_groups(1000)
    for dim in (200,) if quick else (200, 512):
        ways = {
            "torch": plain_torch(split, dim),
            "fp32": ours(split, dim, "fp32"),
            "bf16": ours(split, dim, "bf16"),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(2 if quick else 5):
            for name, take_steps in ways.items():
                rates[name].append(_timed(take_steps))
        best = {name: [max(turns[i] for turns in found) for i in (0, 1)] for name, found in rates.items()}
        for name in ("fp32", "bf16"):
            described = {"dataset": dataset, "dim": dim, "batch_size": _BATCH, "n3": _N3, "threads": torch.get_num_threads()}
            for metric, value, peer in zip((EDGES_PER_S, EDGES_PER_CORE_S), best[name], best["torch"], strict=True):
                yield Row(
                    case=f"{name}, width {dim}",
                    metric=metric,
                    value=value,
                    peer=Peer(name="torch", value=peer),
                    config=described | {"products": name},
                )


def ours(split: TripleSplit, dim: int, products: Literal["fp32", "bf16"]) -> Callable[[], float]:
    """Our trainer; each call takes some steps and gives the edges learned from, both sides of an edge being one."""
    config = KgeConfig(
        model="complex",
        dim=dim,
        reciprocal=True,
        batch_size=_BATCH,
        lr=_LR,
        relation_lr=_LR,
        n3=_N3,
        l2=0.0,
        full_softmax=FullSoftmaxConfig(products=products),
    )
    trainer = FullTrainer(split, config, np.random.default_rng(0))
    steps = iter(trainer._draw_steps(np.random.default_rng(0)))

    def take_steps() -> float:
        num_answers = 0
        for _ in range(3):
            pieces = next(steps)
            num_answers += sum(int(np.diff(group.indptr)[queries].sum()) for group, queries in pieces)
            trainer.step(pieces)
        return num_answers / 2

    return take_steps


def plain_torch(split: TripleSplit, dim: int) -> Callable[[], float]:
    """1-vs-all as it is usually written; each call takes some steps."""
    (num_entities,) = set(split.train.num_nodes.values())
    num_relations = len(split.train.relation_names)
    generator = torch.Generator().manual_seed(0)
    entities = torch.nn.Embedding(num_entities, dim)
    relations = torch.nn.Embedding(2 * num_relations, dim)
    for table in (entities, relations):
        table.weight.data.copy_(torch.randn(table.weight.shape, generator=generator) * 0.01)
    optimizer = torch.optim.Adagrad([entities.weight, relations.weight], lr=_LR)
    edges = torch.from_numpy(np.stack([split.train.heads, split.train.relations, split.train.tails], axis=1)).long()
    inverse = edges[:, [2, 1, 0]] + torch.tensor([0, num_relations, 0])
    examples = torch.cat([edges, inverse])
    batches = iter(torch.split(examples[torch.randperm(len(examples), generator=generator)], _BATCH))

    def take_steps() -> float:
        num_examples = 0
        for _ in range(3):
            batch = next(batches)
            known, relation, answer = entities(batch[:, 0]), relations(batch[:, 1]), entities(batch[:, 2])
            real, imaginary = known.chunk(2, dim=1)
            relation_real, relation_imaginary = relation.chunk(2, dim=1)
            queries = torch.cat(
                [real * relation_real - imaginary * relation_imaginary, real * relation_imaginary + imaginary * relation_real],
                dim=1,
            )
            loss = functional.cross_entropy(queries @ entities.weight.t(), batch[:, 2])
            moduli = [torch.hypot(*rows.chunk(2, dim=1)) for rows in (known, relation, answer)]
            loss = loss + _N3 * sum(modulus.pow(3).sum() for modulus in moduli) / len(batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            num_examples += len(batch)
        return num_examples / 2

    return take_steps


def _timed(take_steps: Callable[[], float]) -> tuple[float, float]:
    """Edges a second, and edges a CPU second."""
    wall, cpu = time.perf_counter(), time.process_time()
    num_edges = take_steps()
    return num_edges / (time.perf_counter() - wall), num_edges / (time.process_time() - cpu)
