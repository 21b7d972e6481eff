"""Test triples ranked a second, both sides, filtered: ComplEx d=100 on FB15k-237; and the memory that 1M entities take.

The peers rank some of the same triples with the same vectors: `torch` by chunks of one product, a known-answer mask and two
comparisons; `pykeen` by its own evaluator. Each must find the same MRR for what both ranked, or the run fails. Vectors are
random: a rank costs the same whatever it is. Where FB15k-237 is not found, a random graph of its size stands in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import ComplEx
from pykeen.triples import CoreTriplesFactory
from torch import Tensor

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.knowledge_graphs import load_split
from multifacet.kge import KgeConfig, LinkPredictor, TripleSet, TripleSplit, build_model, evaluate, known_pairs
from multifacet.kge.models.relations import RelationParameters

TRIPLES_PER_S = Metric(name="triples_per_s", unit="triples/s", better=HIGHER)
PEAK_BYTES = Metric(name="peak_bytes", unit="bytes", better=LOWER)
DIM = 100
MANY_ENTITIES = 1_000_000
# A process of its own, without the peers' packages, whose peak is what a user's would be.
_MEASURE_MEMORY = """
import resource, sys
import numpy as np, torch
from multifacet.kge import KgeConfig, LinkPredictor, TripleSet, build_model, evaluate, known_pairs
from multifacet.kge.models.relations import RelationParameters

num_entities, dim = map(int, sys.argv[1:])
heads, tails = np.random.default_rng(0).integers(0, num_entities, size=(2, 64)).astype(np.int32)
triples = TripleSet(heads=heads, relations=np.zeros(64, np.int32), tails=tails, relation_names=("r",),
                    ends={"r": ("entity", "entity")}, num_nodes={"entity": num_entities})
generator = torch.Generator().manual_seed(0)
model = build_model(KgeConfig(model="complex", dim=dim))
relations = RelationParameters(model, ["r"], reciprocal=False, generator=generator)
vectors = {"entity": torch.randn(num_entities, dim, generator=generator)}
predictor = LinkPredictor(model=model, vectors=vectors, relations=relations, ends=triples.ends)
evaluate(predictor, triples.edges(), known_pairs(triples))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def run(quick: bool) -> Iterator[Row]:
    """The first 4,000 test triples when quick, else all; the peers rank fewer, and are given by their rate."""
    split = load_split("fb15k-237")
    dataset = "fb15k-237" if split is not None else "random graph of fb15k-237's size"
    split = split if split is not None else random_split()
    tested = split.test.take(slice(4000 if quick else None))
    predictor = random_predictor(tested, DIM)
    known = known_pairs(*split)
    evaluate(predictor, tested.take(slice(100)).edges(), known)  # compiles, and sorts the known pairs by tail
    seconds = []
    for _ in range(1 if quick else 3):
        begin = time.perf_counter()
        evaluate(predictor, tested.edges(), known)
        seconds.append(time.perf_counter() - begin)
    config = {"dataset": dataset, "model": "complex", "dim": DIM, "triples": len(tested), "threads": torch.get_num_threads()}
    sides: list[tuple[str, Callable[..., Any], Callable[..., float], int]] = [
        ("torch", index_answers, rank_with_torch, 500 if quick else 2000),
        ("pykeen", build_pykeen, rank_with_pykeen, 100 if quick else 500),
    ]
    for name, prepare, peer, num_triples in sides:
        part = tested.take(slice(num_triples))
        prepared = prepare(predictor, split)
        peer(predictor, part.take(slice(16)), prepared)  # warm
        begin = time.perf_counter()
        mrr = peer(predictor, part, prepared)
        peer_seconds = time.perf_counter() - begin
        own_mrr = evaluate(predictor, part.edges(), known)["filtered_mrr"]
        if abs(mrr - own_mrr) > 1e-6:
            raise RuntimeError(f"{name} finds a filtered MRR of {mrr} where evaluate finds {own_mrr}")
        yield Row(
            case="complex d=100",
            metric=TRIPLES_PER_S,
            value=len(tested) / min(seconds),
            peer=Peer(name=name, value=len(part) / peer_seconds),
            config=config | {"peer_triples": len(part), "mrr_difference": abs(mrr - own_mrr)},
        )
    child = subprocess.run(
        [sys.executable, "-c", _MEASURE_MEMORY, str(MANY_ENTITIES), str(DIM)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env=dict(os.environ),
    )
    yield Row(
        case="1M entities, d=100, a process's whole memory",
        metric=PEAK_BYTES,
        value=float(child.stdout),
        config={"entities": MANY_ENTITIES, "dim": DIM, "triples": 64},
    )


def random_split() -> TripleSplit:
    """A graph of as many entities, relations and triples as FB15k-237 has, degrees as uneven."""
    random = np.random.default_rng(0)
    sizes = 272_115, 17_535, 20_466
    num_triples = sum(sizes)
    popularity = 1.0 / (1.0 + np.arange(14_541)) ** 0.6
    names = tuple(f"r{number}" for number in range(237))
    heads, tails = random.choice(14_541, size=(2, num_triples), p=popularity / popularity.sum()).astype(np.int32)
    everything = TripleSet(
        heads=heads,
        relations=random.integers(0, 237, num_triples).astype(np.int32),
        tails=tails,
        relation_names=names,
        ends=dict.fromkeys(names, ("entity", "entity")),
        num_nodes={"entity": 14_541},
    ).distinct()
    num_tested = sizes[1] + sizes[2]
    return TripleSplit(
        train=everything.take(slice(num_tested, None)),
        valid=everything.take(slice(sizes[1])),
        test=everything.take(slice(sizes[1], num_tested)),
    )


def random_predictor(triples: TripleSet, dim: int) -> LinkPredictor:
    """ComplEx with random vectors."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(KgeConfig(model="complex", dim=dim))
    relations = RelationParameters(model, triples.relation_names, reciprocal=False, generator=generator)
    for values in relations.values.values():
        for value in values.values():
            value.normal_(generator=generator)
    vectors = {node_type: torch.randn(count, dim, generator=generator) for node_type, count in triples.num_nodes.items()}
    return LinkPredictor(model=model, vectors=vectors, relations=relations, ends=triples.ends)


Answers = dict[str, dict[tuple[int, int], Tensor]]


def index_answers(predictor: LinkPredictor, split: TripleSplit) -> Answers:
    """Index the known answers by side and query."""
    del predictor
    return {side: _answers_by_query(split, side) for side in ("head", "tail")}


def rank_with_torch(predictor: LinkPredictor, triples: TripleSet, known: Answers) -> float:
    """Filtered MRR by the plain way: one product a chunk, known answers masked, two comparisons."""
    table = next(iter(predictor.vectors.values()))
    total, half = 0.0, table.shape[1] // 2
    parameters = [predictor.relations.values[name] for name in triples.relation_names]
    real, imaginary = torch.stack([p["real"] for p in parameters]), torch.stack([p["imaginary"] for p in parameters])
    for begin in range(0, len(triples), 256):
        part = triples.take(slice(begin, begin + 256))
        rows = torch.from_numpy(part.relations).long()
        for side in ("head", "tail"):
            given, asked = (part.tails, part.heads) if side == "head" else (part.heads, part.tails)
            vectors = table[torch.from_numpy(given).long()]
            turn = -imaginary[rows] if side == "head" else imaginary[rows]
            queries = torch.cat(
                [
                    vectors[:, :half] * real[rows] - vectors[:, half:] * turn,
                    vectors[:, :half] * turn + vectors[:, half:] * real[rows],
                ],
                dim=1,
            )
            scores = queries @ table.t()
            answers = torch.from_numpy(asked).long()[:, None]
            own = scores.gather(1, answers)
            for row, query in enumerate(zip(part.relations.tolist(), given.tolist(), strict=True)):
                scores[row, known[side][query]] = -torch.inf
            scores.scatter_(1, answers, own)
            greater, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
            total += float((1.0 / (1.0 + greater + 0.5 * equal)).sum())
    return total / (2 * len(triples))


def _answers_by_query(split: TripleSplit, side: str) -> dict[tuple[int, int], Tensor]:
    answers: dict[tuple[int, int], list[int]] = {}
    for part in split:
        given, asked = (part.tails, part.heads) if side == "head" else (part.heads, part.tails)
        for relation, query, answer in zip(part.relations.tolist(), given.tolist(), asked.tolist(), strict=True):
            answers.setdefault((relation, query), []).append(answer)
    return {query: torch.tensor(found) for query, found in answers.items()}


def build_pykeen(predictor: LinkPredictor, split: TripleSplit) -> tuple[ComplEx, Tensor]:
    """Build PyKEEN's ComplEx of the same vectors, and the known triples [T, 3]."""
    table = next(iter(predictor.vectors.values()))
    columns = [np.stack([part.heads, part.relations, part.tails], axis=1) for part in split]
    known = torch.from_numpy(np.concatenate(columns)).long()
    factory = CoreTriplesFactory(known, num_entities=len(table), num_relations=len(split.train.relation_names))
    model = ComplEx(triples_factory=factory, embedding_dim=table.shape[1] // 2, random_seed=0)
    parameters = [predictor.relations.values[name] for name in split.train.relation_names]
    relation_rows = torch.stack([torch.complex(p["real"], p["imaginary"]) for p in parameters])
    with torch.no_grad():
        for representation, rows in (
            (model.entity_representations[0], torch.complex(*table.chunk(2, dim=1))),
            (model.relation_representations[0], relation_rows),
        ):
            weights = next(representation.parameters())
            weights.copy_(torch.view_as_real(rows).reshape(weights.shape))
    return model, known


def rank_with_pykeen(predictor: LinkPredictor, triples: TripleSet, prepared: tuple[ComplEx, Tensor]) -> float:
    """Filtered MRR by PyKEEN's rank-based evaluator."""
    del predictor
    model, known = prepared
    mapped = torch.from_numpy(np.stack([triples.heads, triples.relations, triples.tails], axis=1)).long()
    result = RankBasedEvaluator(clear_on_finalize=True).evaluate(
        model,
        mapped,
        additional_filter_triples=[known],
        batch_size=64,
        use_tqdm=False,
        pre_filtered_triples=False,
        do_time_consuming_checks=False,
    )
    return float(result.get_metric("both.realistic.inverse_harmonic_mean_rank"))
