"""Questions to a store: what it has, SQL, degrees, and what was rejected."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from multifacet.pipeline.commands.graph.options import MinDegree, Relations, Store, SurfaceOption, open_queries, open_window
from multifacet.pipeline.options import AsOf, Since
from multifacet.pipeline.terminal.output import AsJson, emit_arrow, emit_json, emit_rows, show_bytes, stdout


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (stats, query, degrees, rejected):
        app.command()(command)


def stats(store: Store, as_json: AsJson = False) -> None:
    """Shows counts, time ranges and size."""
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph:
        document = graph.stats()
    if as_json:
        emit_json(document)
        return
    emit_rows([{"node type": name, "nodes": count} for name, count in document["nodes"].items()])
    waiting = {key: any(row[key] for row in document["relations"].values()) for key in ("not_compacted", "held")}
    emit_rows(
        {
            "relation": f"{row['src']} {name} {row['dst']}",
            "surface": row["surface"],
            "edges": row["edges"],
            "sources": row["distinct_src"],
            "targets": row["distinct_dst"],
            "first": (row["first"] or "")[:10],
            "last": (row["last"] or "")[:10],
            **{key: row[key] for key, shown in waiting.items() if shown},
        }
        for name, row in document["relations"].items()
    )
    stdout.print(f"{store}: {show_bytes(document['bytes'])}", highlight=False, soft_wrap=True)


def query(
    store: Store,
    sql: Annotated[str, typer.Argument(help="One SELECT, or FROM.")],
    since: Since = None,
    as_of: AsOf = None,
    relation: Relations = None,
    surface: SurfaceOption = None,
    min_degree: MinDegree = None,
    as_json: AsJson = False,
) -> None:
    """Runs one SELECT over the views nodes_* and edges_* and the plain tables; a window cuts the edges_*."""
    from multifacet.graphdb import GraphStore

    window: dict[str, Any] = {
        "since": since, "as_of": as_of, "relations": relation, "surface": surface, "min_degree": min_degree,
    }  # fmt: skip
    with GraphStore.open(store, read_only=True) as graph:
        answer = open_window(graph, **window).sql(sql) if any(window.values()) else graph.sql(sql)
    emit_arrow(answer, as_json=as_json)


def degrees(
    store: Store,
    relation: Annotated[str, typer.Argument(help="Relation whose edges are counted.")],
    end: Annotated[
        Literal["src", "dst"], typer.Option(help="Count the edges of its heads (src) or of its tails (dst).")
    ] = "dst",
    since: Since = None,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Counts how many nodes have how many edges; the table groups degrees by powers of two, --json has each."""
    with open_queries(store, since=since, as_of=as_of) as queries:
        answer = queries.degrees(relation, end)
    if as_json:
        emit_arrow(answer, as_json=True)
        return
    emit_rows(degree_ranges(answer["degree"].to_pylist(), answer["nodes"].to_pylist()))


def rejected(
    store: Store,
    target: Annotated[str | None, typer.Option(help="Only rows that were to be this node type or relation.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most rows to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Shows the rows that loads have rejected: by reason, and the latest with their file and row."""
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph:
        where, params = ("WHERE target = $target", {"target": target}) if target else ("", {})
        reasons = graph.sql(
            f"SELECT target, reason, count(*) AS rows FROM rejected_rows {where} GROUP BY ALL ORDER BY 3 DESC, 1, 2",
            params,
        )
        rows = graph.sql(f"FROM rejected_rows {where} ORDER BY load_id DESC, file, row LIMIT {limit}", params)
    if as_json:
        emit_json({"reasons": reasons.to_pylist(), "rows": rows.to_pylist()})
        return
    emit_rows(reasons.to_pylist(), empty="no rejected rows")
    if rows.num_rows:
        emit_arrow(rows, as_json=False, drop_empty=True)


def degree_ranges(degree: list[int], nodes: list[int]) -> list[dict[str, Any]]:
    """A degree distribution by powers of two: the degrees 0, 1, 2 to 3, 4 to 7, and so on.

    Example:
        >>> degree_ranges([0, 1, 2, 3, 9], [5, 1, 2, 1, 1])[2:]
        [{'degree': '2 to 3', 'nodes': 3, 'edges': 7, 'share of edges': '41%'}, \
{'degree': '8 to 15', 'nodes': 1, 'edges': 9, 'share of edges': '53%'}]
    """
    ranges: dict[int, list[int]] = {}
    for value, count in zip(degree, nodes, strict=True):
        row = ranges.setdefault(value.bit_length(), [0, 0])
        row[0] += count
        row[1] += value * count
    total = sum(edges for _, edges in ranges.values())
    rows = []
    for bits, (count, edges) in ranges.items():
        low, high = (1 << bits) >> 1, (1 << bits) - 1
        name = str(low) if low >= high else f"{low:,} to {high:,}"
        rows.append({"degree": name, "nodes": count, "edges": edges, "share of edges": f"{edges / max(1, total):.0%}"})
    return rows
