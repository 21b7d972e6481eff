"""Recall@20 and NDCG@20 of contrastive tables, and of the LightGCN facet, on Gowalla (the LightGCN split), by full ranking.

The peers are the published figures of matrix factorisation with the cosine contrastive loss at dimension 64 (Mao et al., CIKM
2021) and of LightGCN (He et al., SIGIR 2020). Protocol: a mean over all users with test items, items of the training pairs left
out, NDCG's ideal cut at 20. The configurations were chosen on the validation pairs; the final fit has train and validation
together, and the test pairs are read for the last figure only. A run is cached by its configuration's hash, so that a table of
seeds grows run by run.

The data is looked for in $MULTIFACET_GOWALLA, then in ../shared/data/gowalla beside the project.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.harness import HIGHER, Metric, Peer, Row
from multifacet.contrastive import ContrastiveConfig, Positives, train_pairs
from multifacet.contrastive.lightgcn import LightGcnConfig, train_lightgcn_pairs

RECALL = Metric(name="recall_at_20", unit="", better=HIGHER)
NDCG = Metric(name="ndcg_at_20", unit="", better=HIGHER)
NUM_USERS: Final = 29_858
NUM_ITEMS: Final = 40_981
NUM_PAIRS: Final = {"train": 719_081, "valid": 91_047, "test": 217_242}
PUBLISHED: Final = {
    "MF with CCL (published)": {"recall@20": 0.1837, "ndcg@20": 0.1493},
    "LightGCN (published)": {"recall@20": 0.1820, "ndcg@20": 0.1547},
}
CONFIG: Final = ContrastiveConfig(
    dim=64,
    history=1.0,
    temperature=0.1,
    batch_size=8192,
    positives_per_query=16,
    num_uniform=4096,
    num_degree=0,
    optimizer="adam",
    momentum=0.0,
    lr=0.03,
    lr_schedule="cosine",
    init_scale=0.01,
    epochs=20,
    popularity_power=0.05,
)
LIGHTGCN: Final = LightGcnConfig(num_layers=2, epochs=25, popularity_power=0.05)
_CACHE: Final = Path(os.environ.get("MULTIFACET_BENCHMARK_CACHE", "runs/benchmarks/contrastive_quality"))


def run(quick: bool) -> Iterator[Row]:
    """One epoch on validation when quick, else the final fits: tables of $MULTIFACET_SEEDS (0,1,2), LightGCN of seed 0."""
    if quick:
        config = CONFIG.model_copy(update={"epochs": 1})
        yield from _rows(fit(config, final=False), config, "validation, one epoch", None)
        return
    for seed in (int(seed) for seed in os.environ.get("MULTIFACET_SEEDS", "0,1,2").split(",")):
        config = CONFIG.model_copy(update={"seed": seed})
        yield from _rows(cached(config, final=True), config, f"test, seed {seed}", "MF with CCL (published)")
    if os.environ.get("MULTIFACET_LIGHTGCN", "1") == "1":
        yield from _rows(cached(LIGHTGCN, final=True), LIGHTGCN, "LightGCN facet, test, seed 0", "LightGCN (published)")


def find_data() -> Path:
    """The folder of the three files.

    Raises:
        FileNotFoundError: It is nowhere; says where it was looked for.
    """
    places = [Path(os.environ.get("MULTIFACET_GOWALLA", "")), Path("../shared/data/gowalla")]
    for place in places:
        if (place / "train.txt.gz").exists():
            return place
    looked_in = [str(place) for place in places]
    raise FileNotFoundError(
        f"no train.txt.gz, valid.txt.gz and test.txt.gz of Gowalla in {looked_in}; set MULTIFACET_GOWALLA "
        "to their folder (a user a line, then its items)"
    )


def read_pairs(split: str) -> Positives:
    """Reads the pairs of a split, and checks their number."""
    users, items = [], []
    with gzip.open(find_data() / f"{split}.txt.gz", "rt") as file:
        for line in file:
            user, *own = map(int, line.split())
            users += [user] * len(own)
            items += own
    if len(users) != NUM_PAIRS[split]:
        raise ValueError(f"{split} has {len(users)} pairs, expected {NUM_PAIRS[split]}")
    return Positives.from_pairs(np.array(users), np.array(items), num_queries=NUM_USERS, num_items=NUM_ITEMS)


def fit(config: ContrastiveConfig | LightGcnConfig, *, final: bool) -> dict[str, float]:
    """Trains and ranks once, after the last epoch: the test pairs must choose nothing.

    Args:
        config: of either facet.
        final: fit on train and validation pairs, and rank the test pairs; else fit on train, and rank the validation pairs.
    """
    train, held_out = read_pairs("train"), read_pairs("test" if final else "valid")
    if final:
        valid = read_pairs("valid")
        train = Positives.from_pairs(
            np.concatenate([train.queries, valid.queries]),
            np.concatenate([train.items, valid.items]),
            num_queries=NUM_USERS,
            num_items=NUM_ITEMS,
        )
    config = config.model_copy(update={"validation": config.validation.model_copy(update={"every": config.epochs})})
    cpu, wall = time.process_time(), time.perf_counter()
    if isinstance(config, LightGcnConfig):
        result = train_lightgcn_pairs(train, config, held_out=held_out)
    else:
        result = train_pairs(train, config, held_out=held_out)
    spent = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    return result.metrics | spent | {"num_threads": float(torch.get_num_threads())}


def cached(config: ContrastiveConfig | LightGcnConfig, *, final: bool) -> dict[str, float]:
    """The metrics of `fit`, from the cache if they are there."""
    settings = json.dumps([type(config).__name__, final, config.model_dump(mode="json")], sort_keys=True)
    path = _CACHE / f"gowalla-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
    if path.exists():
        metrics: dict[str, float] = json.loads(path.read_text())
        return metrics
    metrics = fit(config, final=final)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(metrics))
    return metrics


def _rows(
    metrics: dict[str, float], config: ContrastiveConfig | LightGcnConfig, case: str, published: str | None
) -> Iterator[Row]:
    settings: dict[str, Any] = {"facet": type(config).__name__, "settings": config.model_dump(mode="json"), "metrics": metrics}
    for metric, name in ((RECALL, "recall@20"), (NDCG, "ndcg@20")):
        peer = Peer(name=published, value=PUBLISHED[published][name]) if published else None
        yield Row(case=case, metric=metric, value=metrics[name], peer=peer, config=settings)
