"""Edges a second of training as the graph grows from FB15k-237's size to 100M edges and the tables from 6 MB to 2 GB.

ComplEx of dimension 100 as in `kge_speed`, over graphs whose degrees follow a power law, 20 edges a node. The peer of every
size is the small graph, which takes turns with it, a second each: a ratio of 0.7 is 30% less. The figures are medians over the
rounds, drawing of batches included. edges_per_core_s is edges by seconds of processor time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from statistics import median
from typing import Any, Final

import torch

from benchmarks.harness import Peer, Row
from benchmarks.kge.kge_speed import BASE, EDGES_PER_CORE_S, EDGES_PER_S, Course, Ours, power_law_graph, run_race
from multifacet.kge import KgeConfig

_EDGES_A_NODE: Final = 20
_SIZES: Final = (1_000_000, 10_000_000, 100_000_000)


def run(quick: bool) -> Iterator[Row]:
    """1M edges when quick, else up to 100M, which take 8 GB of memory."""
    num_rounds = 2 if quick else 7
    small = power_law_graph(num_nodes=14_541, num_relations=237, num_edges=272_115)
    config = KgeConfig.model_validate(BASE | {"model": "complex"})
    shared: dict[str, Any] = {"threads": torch.get_num_threads(), "rounds": num_rounds}
    shared |= config.model_dump(mode="json", include={*BASE, "model"})
    for num_edges in _SIZES[: 1 if quick else None]:
        num_nodes = num_edges // _EDGES_A_NODE
        world = power_law_graph(num_nodes=num_nodes, num_relations=237, num_edges=num_edges)
        race = run_race([Course(split, config, Ours) for split in (world, small)], num_rounds)
        del world
        gc.collect()
        described = shared | {"nodes": num_nodes, "edges": num_edges, "table_bytes": 4 * num_nodes * (config.dim + 1)}
        for metric, speeds in ((EDGES_PER_S, race.edges_per_s), (EDGES_PER_CORE_S, race.edges_per_core_s)):
            found, peer = (median(rounds) for rounds in speeds)
            case = f"{num_edges // 10**6}M edges"
            yield Row(case=case, metric=metric, value=found, peer=Peer(name="0.27M edges", value=peer), config=described)
