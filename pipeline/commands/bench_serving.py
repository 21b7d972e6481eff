"""`multifacet bench-serving`: load a live server at a set rate, and tell its latencies."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multifacet.pipeline.terminal.output import AsJson, emit_json, stdout

if TYPE_CHECKING:
    from multifacet.serving.load import LoadResult

_KEPT_UP = 0.98


def bench_serving(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of a release that the server holds.")],
    lookup: Annotated[str | None, typer.Option(help="Address of a lookup server; framed:ADDRESS for its framed one.")] = None,
    ranker: Annotated[str | None, typer.Option(help="Address of a ranker.")] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second, all clients together.")] = 100.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long requests become due.")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="Connections; each has one request under way.")] = 8,
    ids: Annotated[int, typer.Option(min=1, help="Ids of a lookup, all features together; candidates of a ranking.")] = 500,
    skew: Annotated[float, typer.Option(min=0.0, help="Exponent of the ids' Zipf law; 0 is uniform.")] = 1.0,
    token_file: Annotated[Path | None, typer.Option(help="File with the server's token.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM file of the authority that signed its certificate.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file of a certificate of one's own.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of that certificate's private key.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for results.json and latency.png.")] = None,
    seed: Annotated[int, typer.Option(help="Of ids and moments.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Sends requests when they are due, whether the server keeps up or not, and counts their latency from that moment."""
    import json

    from multifacet.serving import RankerClient, Release, connect_lookup
    from multifacet.serving.load import lookup_request, rank_request, run_open_loop

    if (lookup is None) == (ranker is None):
        raise typer.BadParameter("give --lookup or --ranker, one of them")
    opened = Release.open(release, verify=False)
    secrets: dict[str, Any] = {
        "timeout_s": 10,
        "token_file": token_file,
        "tls_ca": tls_ca,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
    }
    with ExitStack() as connected:
        draws = []
        for number in range(clients):
            drawn: dict[str, Any] = {"exponent": skew, "seed": seed + number}
            if lookup is not None:
                asked = connected.enter_context(connect_lookup(lookup, **secrets))
                draws.append(lookup_request(opened, asked, num_ids=ids, **drawn))
            elif ranker is not None:
                scored = connected.enter_context(RankerClient(ranker, **secrets))
                draws.append(rank_request(opened, scored, num_candidates=ids, **drawn))
        for draw in draws:  # connections and kernels are warm before the first request is due
            draw()()
        result = run_open_loop(draws, rate_per_s=rate, seconds=seconds, seed=seed)
    document = {
        "target": lookup or ranker,
        "version": opened.version,
        "config": {"rate_per_s": rate, "seconds": seconds, "clients": clients, "ids": ids, "skew": skew, "seed": seed},
        **_summary(result, rate),
    }
    if output is not None:
        from multifacet.pipeline.report.latency_plot import plot_latency

        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        if result.answered:
            plot_latency(result, output / "latency.png", f"{rate:g} requests/s of {ids} ids, skew {skew:g}: {lookup or ranker}")
    if as_json:
        emit_json(document)
    else:
        _print(document)
    if not result.answered:
        raise typer.Exit(1)


def _summary(result: LoadResult, rate: float) -> dict[str, Any]:
    return {
        "answered": result.answered,
        "not_sent": result.not_sent,
        "answered_per_s": result.answered_per_s,
        "kept_up": result.answered_per_s >= _KEPT_UP * rate,
        "errors": dict(result.errors),
        "latency_ms": result.latency.summary_ms(),
        "service_ms": result.service.summary_ms(),
    }


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("ms")
    for quantile in document["latency_ms"]:
        table.add_column(quantile, justify="right")
    for name in ("latency", "service"):
        table.add_row(name, *(f"{value:.3f}" for value in document[f"{name}_ms"].values()))
    stdout.print(table)
    stdout.print(f"{document['answered']} answered, {document['answered_per_s']:.1f} a second", highlight=False)
    if document["not_sent"]:
        stdout.print(
            f"{document['not_sent']} not sent: no client was free; their latency is what they had waited", highlight=False
        )
    if document["errors"]:
        stdout.print(f"failed: {document['errors']}", highlight=False)
    if not document["kept_up"]:
        asked = document["config"]["rate_per_s"]
        stdout.print(
            f"fewer than the {asked:g} a second that were due: the server or these clients do not keep up", highlight=False
        )
