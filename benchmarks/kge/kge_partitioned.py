"""Tables larger than a memory limit, in partitions and, in the same run, whole: the MRR, the speed and the memory of both.

Users click pins of their own group, ten to a group, and every ten groups share an advertiser; ComplEx learns it. Each training
is a process of its own, as a peak is a process's. The limit is 0.4 of what tables and optimiser state take (`memory_limit_gb`),
and the system holds the process to it: once everything is imported, compiled and read, it may not grow by more than the limit
and head room for edges, buckets and buffers (RLIMIT_DATA), which together are less than the tables. Whole tables must fail
under it, or the run does; then they are trained without it, as the peer.

memory_growth is the peak of the process's resident memory in training (VmHWM) less what was resident before. This process ranks
the held-out edges with both results: among all nodes of the right type, filtered.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import re
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from multifacet import kge
from multifacet.kge import KgeConfig, KgeValidation, LinkPredictor, TripleSet, TripleSplit, build_model, evaluate, known_pairs
from multifacet.kge.models.relations import RelationParameters

logger = logging.getLogger(__name__)

FILTERED_MRR: Final = Metric(name="filtered_mrr", unit="", better=HIGHER)
EDGES_PER_S: Final = Metric(name="edges_per_s", unit="edges/s", better=HIGHER)
PEAK_RSS: Final = Metric(name="peak_rss", unit="bytes", better=LOWER)
MEMORY_GROWTH: Final = Metric(name="memory_growth", unit="bytes", better=LOWER)
#: Of the tables and their optimiser state: the limit of what may be in memory, and what a training may take beside it.
LIMIT_SHARE: Final = 0.4
HEAD_ROOM_SHARE: Final = 0.35
#: The largest difference of filtered MRR that counts as the same quality.
TOLERANCE: Final = 0.01
_GROUP: Final = 10
_SPAWN: Final = multiprocessing.get_context("spawn")


def run(quick: bool) -> Iterator[Row]:
    """Tables of 0.62 GB; when quick of 0.25 GB."""
    num_groups = 12_000 if quick else 30_000
    split = planted_groups(num_groups)
    settings: dict[str, Any] = {
        "model": "complex",
        "dim": 256,
        "epochs": 1 if quick else 3,
        "batch_size": 1000,
        "chunk_size": 50,
        "num_uniform": 50,
        "num_degree": 0,
        "l2": 0.0,
        "validation": {"num_edges": 0},
    }
    table_bytes = sum(split.train.num_nodes.values()) * (settings["dim"] + 1) * 4
    limit, allowed = int(LIMIT_SHARE * table_bytes), int((LIMIT_SHARE + HEAD_ROOM_SHARE) * table_bytes)
    shared = settings | {"edges": len(split.train), "nodes": dict(split.train.num_nodes), "table_bytes": table_bytes}
    shared |= {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory(prefix="kge-partitioned-") as name:
        folder = Path(name)
        write_triples(split.train, folder)
        whole = train(folder, settings, None)
        whole_mrr = rank(folder, split, settings)
        cut = train(folder, settings | {"memory_limit_gb": limit / 1e9}, allowed)
        logger.info("whole tables under the limit: %s", cut["refusal"])
        cut_mrr = rank(folder, split, settings)
    if abs(cut_mrr - whole_mrr) > TOLERANCE:
        logger.warning("filtered MRR %.4f in partitions, %.4f whole: further apart than %g", cut_mrr, whole_mrr, TOLERANCE)
    for case, found, mrr, settled in (
        ("whole, without a limit", whole, whole_mrr, shared),
        ("partitions, limited", cut, cut_mrr, shared | {"memory_limit_gb": limit / 1e9, "may_grow_by": allowed}),
    ):
        config = settled | {"cpu_seconds": found["cpu_seconds"], "resident_before": found["before"]}
        for metric, value, peer in (
            (FILTERED_MRR, mrr, whole_mrr),
            (EDGES_PER_S, found["edges_per_s"], whole["edges_per_s"]),
            (PEAK_RSS, found["peak"], whole["peak"]),
            (MEMORY_GROWTH, found["peak"] - found["before"], whole["peak"] - whole["before"]),
        ):
            beside = None if found is whole else Peer(name="whole", value=float(peer))
            yield Row(case=case, metric=metric, value=float(value), peer=beside, config=config)


def planted_groups(num_groups: int) -> TripleSplit:
    """Ten users and ten pins a group, nearly half of whose pairs are clicks; 6,000 clicks are held out."""
    generator = np.random.default_rng(0)
    num_pins = num_groups * _GROUP
    users = np.repeat(np.arange(num_pins), 6)
    pins = users // _GROUP * _GROUP + generator.integers(0, _GROUP, len(users))
    every = np.arange(num_pins)
    # Neighbours in the order of ids are of one group: rows of a group must not lie in one partition for that.
    named = generator.permutation(num_pins)
    clicks = TripleSet(
        heads=np.concatenate([named[users], named[every]]).astype(np.int32),
        relations=np.repeat(np.array([0, 1], dtype=np.int32), [len(users), num_pins]),
        tails=np.concatenate([named[pins], every // (10 * _GROUP)]).astype(np.int32),
        relation_names=("clicks", "made_by"),
        ends={"clicks": ("user", "pin"), "made_by": ("pin", "advertiser")},
        num_nodes={"user": num_pins, "pin": num_pins, "advertiser": num_groups // 10},
    ).distinct()
    return clicks.hold_out(KgeValidation(num_edges=6000, relations=("clicks",)), generator)


def write_triples(triples: TripleSet, folder: Path) -> None:
    """Leave triples for the processes that train."""
    np.savez(folder / "triples.npz", heads=triples.heads, relations=triples.relations, tails=triples.tails)
    names = {"relation_names": triples.relation_names, "ends": dict(triples.ends), "num_nodes": dict(triples.num_nodes)}
    (folder / "names.json").write_text(json.dumps(names))


def train(folder: Path, settings: dict[str, Any], may_grow_by: int | None) -> dict[str, Any]:
    """Train in a process of its own.

    Args:
        folder: Holds the triples, and is given the vectors.
        settings: Of `KgeConfig`.
        may_grow_by: Bytes of the data segment beyond what the process has before it trains; None for no limit.

    Returns:
        peak, before (bytes resident), edges_per_s (of all epochs), cpu_seconds, and under a limit the refusal of whole tables.
    """
    process = _SPAWN.Process(target=_train_here, args=(folder, settings, may_grow_by))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the training process ended with {process.exitcode}; its traceback is on stderr")
    document: dict[str, Any] = json.loads((folder / "document.json").read_text())
    return document


def _train_here(folder: Path, settings: dict[str, Any], may_grow_by: int | None) -> None:
    columns, names = np.load(folder / "triples.npz"), json.loads((folder / "names.json").read_text())
    triples = TripleSet(**{name: columns[name] for name in columns.files}, **names | {"ends": _pairs(names["ends"])})
    few = TripleSet(
        heads=triples.heads[:5000] % 100,
        relations=triples.relations[:5000],
        tails=triples.tails[:5000] % 100,
        **names | {"ends": triples.ends, "num_nodes": dict.fromkeys(triples.num_nodes, 100)},
    )
    config = KgeConfig.model_validate(settings)
    without_limit = {"memory_limit_gb": None, "epochs": 1}
    kge.train_triples(_only_train(few), config.model_copy(update=without_limit))  # loads kernels, starts threads
    before, cpu_before = _status_bytes("VmRSS"), time.process_time()
    refusal = ""
    if may_grow_by is not None:
        limit = _status_bytes("VmData") + may_grow_by
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        refusal = _refusal_of_whole_tables(_only_train(triples), config)
    result = kge.train_triples(_only_train(triples), config)
    document = {
        "refusal": refusal,
        "peak": _status_bytes("VmHWM"),
        "before": before,
        "edges_per_s": len(triples) * len(result.history) / sum(row["seconds"] for row in result.history),
        "cpu_seconds": time.process_time() - cpu_before,
    }
    (folder / "document.json").write_text(json.dumps(document))
    for name, vectors in result.vectors.items():
        vectors.numpy().tofile(folder / f"{name}.vectors")
    torch.save(result.relations.table, folder / "relations")


def _refusal_of_whole_tables(split: TripleSplit, config: KgeConfig) -> str:
    """Give the error that training without partitions ends with."""
    try:
        kge.train_triples(split, config.model_copy(update={"memory_limit_gb": None}))
    except MemoryError as error:
        return str(error)
    raise RuntimeError("whole tables were trained under the limit: it limits nothing")


def _pairs(ends: dict[str, list[str]]) -> dict[str, tuple[str, str]]:
    return {name: (src, dst) for name, (src, dst) in ends.items()}


def _only_train(triples: TripleSet) -> TripleSplit:
    return TripleSplit(train=triples, valid=triples.take(slice(0)), test=triples.take(slice(0)))


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {name}: this benchmark reads its memory there, so it needs Linux")
    return int(found.group(1)) * 1024


def rank(folder: Path, split: TripleSplit, settings: dict[str, Any]) -> float:
    """Give the filtered MRR of what a process has left, on the held-out edges."""
    triples, model = split.train, build_model(KgeConfig.model_validate(settings))
    seeded = torch.Generator().manual_seed(0)
    relations = RelationParameters(model, triples.relation_names, reciprocal=False, generator=seeded)
    relations.table.copy_(torch.load(folder / "relations"))
    vectors = {
        name: torch.from_file(str(folder / f"{name}.vectors"), size=count * model.dim).view(count, -1)
        for name, count in triples.num_nodes.items()
    }
    predictor = LinkPredictor(model=model, vectors=vectors, relations=relations, ends=triples.ends)
    return evaluate(predictor, split.valid.edges(), known_pairs(*split))["filtered_mrr"]
