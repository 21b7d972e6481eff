"""Queries a second and recall@10 of an approximate index of 1M rows of 64, beside exact search on the same queries.

Tables are drawn: 2,000 groups in 16 dimensions that are mixed into 64, with noise; for inner products each row is as long as
exp(s z), z normal. s = 0.2 is about a contrastive table of plain dot products; 0.5 is harder: few long rows suit everyone.
Half of the queries choose the effort, the other half are timed. Both arms run in this process with the threads that torch and
faiss have here; the peer is `find_neighbors` on torch, faster than faiss's exact search on this machine's one core.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from multifacet.tables import IndexConfig, IndexSource, Similarity, VectorIndex

RECALL = Metric(name="recall_at_10", unit="", better=HIGHER)
QUERIES_PER_S = Metric(name="queries_per_s", unit="1/s", better=HIGHER)
BUILD = Metric(name="build_cpu_s", unit="s", better=LOWER)
DIM = 64
_CASES: tuple[tuple[str, Similarity, float], ...] = (
    ("squared distance", "squared", 0.0),
    ("inner product, lengths exp(0.2 z)", "dot", 0.2),
    ("inner product, lengths exp(0.5 z)", "dot", 0.5),
)


def run(quick: bool) -> Iterator[Row]:
    """100,000 rows and 200 queries when quick, else 1M and 1,000."""
    num_rows, num_queries = (100_000, 200) if quick else (1_000_000, 1000)
    for case, similarity, spread in _CASES:
        vectors, queries = draw(num_rows, spread, seed=1), draw(num_queries, 0.0, seed=2)
        config = IndexConfig(structure="ivf", num_queries=num_queries)
        with tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            index, found = VectorIndex.write(
                Path(folder) / "index",
                ids=pa.array(range(num_rows)),
                vectors=vectors,
                similarity=similarity,
                queries=queries,
                source=IndexSource(snapshot="0" * 64, facet="drawn", node_type="row"),
                config=config,
            )
            cpu_seconds = time.process_time() - before
        told = {key: index.manifest[key] for key in ("structure", "effort", "fetch", "config")}
        told |= {"rows": num_rows, "dim": DIM, "similarity": similarity, "threads": torch.get_num_threads()}
        exact = Peer(name="exact search", value=found.exact_queries_per_s)
        yield Row(case=case, metric=QUERIES_PER_S, value=found.queries_per_s, peer=exact, config=told)
        yield Row(case=case, metric=RECALL, value=found.recall, config=told)
        yield Row(case=case, metric=BUILD, value=cpu_seconds, config=told | {"with": "the choice of the effort"})


def draw(rows: int, spread: float, *, seed: int) -> Tensor:
    """Draw rows of the same groups, float32 [rows, 64]."""
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    mixing, centers = torch.randn(16, DIM, generator=shared) / 4, torch.randn(2000, 16, generator=shared)
    latent = centers[torch.randint(2000, (rows,), generator=own)] + 0.6 * torch.randn(rows, 16, generator=own)
    vectors = latent @ mixing + 0.1 * torch.randn(rows, DIM, generator=own)
    return vectors * torch.exp(spread * torch.randn(rows, 1, generator=own))
