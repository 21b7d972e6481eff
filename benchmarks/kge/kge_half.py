"""Tables in FP16 and BF16, stochastically rounded, beside FP32: the filtered MRR that they reach, edges a second and bytes.

ComplEx of dimension 100 with sampled negatives learns FB15k-237 for some epochs in each format, from the same first values and
the same batches. MRR is that of the validation triples. Where FB15k-237 is not found, planted groups of users and pins are
learned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.knowledge_graphs import load_split
from benchmarks.kge.kge_partitioned import planted_groups
from benchmarks.kge.kge_speed import BASE, EDGES_PER_CORE_S, EDGES_PER_S
from multifacet.kge import KgeConfig, TripleSplit, evaluate, known_pairs
from multifacet.kge.sampled.trainer import Trainer
from multifacet.training import TrainingRun

FILTERED_MRR = Metric(name="filtered_mrr", unit="", better=HIGHER)
TABLE_BYTES = Metric(name="table_bytes", unit="bytes", better=LOWER)
_FORMATS = ("fp32", "fp16", "bf16")


def run(quick: bool) -> Iterator[Row]:
    """Three epochs when quick, else ten."""
    split = load_split("fb15k-237")
    dataset = "fb15k-237" if split is not None else "planted groups"
    split = split if split is not None else planted_groups(1000)
    known, peers = known_pairs(*split), dict[str, float]()
    for table_dtype in _FORMATS:
        config = KgeConfig.model_validate(
            BASE | {"model": "complex", "reciprocal": True, "epochs": 3 if quick else 10, "table_dtype": table_dtype}
        )
        found = train(split, config)
        predictor = found.pop("predictor")
        found["filtered_mrr"] = evaluate(predictor, split.valid.edges(), known)["filtered_mrr"]
        described = {"dataset": dataset, "threads": torch.get_num_threads(), "table_dtype": table_dtype}
        described |= config.model_dump(mode="json", include={*BASE, "model", "epochs", "reciprocal"})
        for metric in (FILTERED_MRR, EDGES_PER_S, EDGES_PER_CORE_S, TABLE_BYTES):
            value = found[metric.name]
            peer = Peer(name="fp32", value=peers[metric.name]) if table_dtype != "fp32" else None
            peers.setdefault(metric.name, value)
            yield Row(case=table_dtype, metric=metric, value=value, peer=peer, config=described)


def train(split: TripleSplit, config: KgeConfig) -> dict[str, Any]:
    """Train, and give what scores, edges_per_s (of the fastest epoch), edges_per_core_s and table_bytes."""
    trainer, run = Trainer(split, config, np.random.default_rng(config.seed)), TrainingRun(num_epochs=config.epochs)
    rates, core_rates = [], []
    for _ in range(config.epochs):
        begin = time.process_time()
        rates.append(trainer.run_epoch(run)["edges_per_s"])
        core_rates.append(len(split.train) / (time.process_time() - begin))
    return {
        "predictor": trainer.predictor(),
        "edges_per_s": max(rates),
        "edges_per_core_s": max(core_rates),
        "table_bytes": float(sum(table.numel() * table.element_size() for table in trainer.state.tables.values())),
    }
