"""Milliseconds of a neighbour query on a freshly opened store, beside plain SQL over a table clustered alike.

The peer duckdb_sql is what one would write without a store: edges by external id in a DuckDB table ordered by (dst, time),
and one query. It need not look an idx up, nor translate one back. The first query of a store also reads the external ids of
the neighbours' type, which the others then have at hand.

The rows of many relations are CPU milliseconds of one question to a schema as wide as FB15k-237's, each relation of 1,000
random edges; the peer there is one table of triples. The last row prints a long answer to a pipe.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.edge_log import create_store, write_edge_log
from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation
from multifacet.pipeline.terminal.output import emit_arrow

P50_MS = Metric(name="p50_ms", unit="ms", better=LOWER)
FIRST_MS = Metric(name="first_ms", unit="ms", better=LOWER)
P99_MS = Metric(name="p99_ms", unit="ms", better=LOWER)
CPU_MS = Metric(name="cpu_ms", unit="ms", better=LOWER)
ROWS_PER_CPU_S = Metric(name="rows_per_cpu_s", unit="1/s", better=HIGHER)


def run(quick: bool) -> Iterator[Row]:
    """1M edges and 200 queries when quick, else 20M and 1000."""
    num_edges, num_queries = (1_000_000, 200) if quick else (20_000_000, 1000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_edge_log(folder, num_edges)
        with create_store(folder / "store.duckdb") as store:
            store.load_edges("clicks", files)
            pins = store.view().node_ids("pin").to_numpy()
        chosen = np.random.default_rng(0).choice(pins, num_queries).tolist()
        with duckdb.connect(str(folder / "plain.duckdb")) as plain:
            plain.execute(f"CREATE TABLE edges AS SELECT dst, time, src FROM '{files}' ORDER BY dst, time")
        with (
            GraphStore.open(folder / "store.duckdb", read_only=True) as store,
            duckdb.connect(str(folder / "plain.duckdb")) as plain,
        ):
            query = "SELECT src, time FROM edges WHERE dst = ? ORDER BY time DESC LIMIT 100"
            own = _times_ms(lambda pin: store.neighbors("pin", pin, relation="clicks", limit=100), chosen)
            peer = _times_ms(lambda pin: plain.execute(query, [pin]).fetchall(), chosen)
        values = [(FIRST_MS, own[0], peer[0])]
        own_percentiles, peer_percentiles = (statistics.quantiles(times, n=100, method="inclusive") for times in (own, peer))
        values += [(metric, own_percentiles[at - 1], peer_percentiles[at - 1]) for metric, at in ((P50_MS, 50), (P99_MS, 99))]
        for metric, value, peer_value in values:
            yield Row(
                case=f"100 latest in-neighbours, {num_edges // 1_000_000}M edges",
                metric=metric,
                value=value,
                peer=Peer(name="duckdb_sql", value=peer_value),
                config={
                    "edges": num_edges,
                    "queries": num_queries,
                    "limit": 100,
                    "opened": "read-only, before the first query",
                },
            )
    yield from _many_relations_rows(quick)
    yield _printing_row(quick)


def _many_relations_rows(quick: bool) -> Iterator[Row]:
    num_relations, num_entities, num_edges = (40 if quick else 237), 15_000, 1_000
    schema = GraphSchema(
        nodes=(NodeType(name="entity"),),
        relations=tuple(
            Relation(src="entity", name=f"r{number}", dst="entity", timed=False) for number in range(num_relations)
        ),
    )
    generator = np.random.default_rng(1)
    config = {"relations": num_relations, "entities": num_entities, "edges_of_each": num_edges}
    with tempfile.TemporaryDirectory() as name, duckdb.connect() as plain:
        plain.execute("CREATE TABLE triples (src BIGINT, relation INTEGER, dst BIGINT)")
        with GraphStore.create(Path(name) / "store.duckdb", schema) as store:
            store.load_nodes("entity", pa.table({"id": np.arange(num_entities)}))
            for number, relation in enumerate(schema.relations):
                src, dst = generator.integers(0, num_entities, (2, num_edges))
                edges = pa.table({"src": src, "dst": dst})
                store.load_edges(relation.name, edges)
                plain.register("edges", edges)
                plain.execute(f"INSERT INTO triples SELECT src, {number}, dst FROM edges")
                plain.unregister("edges")
        with GraphStore.open(Path(name) / "store.duckdb", read_only=True) as store:
            ids = generator.integers(0, num_entities, 20).tolist()
            query = "FROM triples WHERE src = ? OR dst = ? LIMIT 100"
            own = _cpu_ms(lambda one: store.neighbors("entity", one), ids)
            peer = _cpu_ms(lambda one: plain.execute(query, [one, one]).fetchall(), ids)
            case = f"neighbours, {num_relations} relations"
            yield Row(case=case, metric=CPU_MS, value=own, peer=Peer(name="duckdb_sql", value=peer), config=config)
            paths = _cpu_ms(lambda one: store.queries.paths(("entity", ids[0]), ("entity", one)), ids[1:])
            yield Row(case=f"shortest paths, {num_relations} relations", metric=CPU_MS, value=paths, config=config)


def _printing_row(quick: bool) -> Row:
    num_rows = 50_000 if quick else 200_000
    times = np.datetime64("2026-01-01", "us") + np.arange(num_rows)
    table = pa.table(
        {"src_id": np.arange(num_rows), "dst_id": np.arange(num_rows) % 977, "time": times, "weight": np.arange(num_rows) / 7}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        milliseconds = _cpu_ms(lambda _: emit_arrow(table, as_json=False), [0])
    config = {"rows": num_rows, "columns": table.num_columns}
    return Row(case="printing an answer", metric=ROWS_PER_CPU_S, value=num_rows / milliseconds * 1e3, config=config)


def _cpu_ms(ask: Callable[[int], object], ids: Sequence[int]) -> float:
    """CPU milliseconds of a question, on average, after one to warm up."""
    ask(ids[0])
    started = time.process_time()
    for one in ids:
        ask(one)
    return (time.process_time() - started) / len(ids) * 1e3


def _times_ms(ask: Callable[[int], object], ids: Sequence[int]) -> list[float]:
    times = []
    for one in ids:
        started = time.perf_counter()
        ask(one)
        times.append((time.perf_counter() - started) * 1e3)
    return times
