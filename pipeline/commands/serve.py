"""`multifacet serve`: the lookup server and the ranker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from multifacet.pipeline.options import Settings, parse_settings
from multifacet.pipeline.terminal.output import emit_json

app = typer.Typer(no_args_is_help=True, help="Serve a release: rows from CPU memory, scores from the upper model.")

Releases = Annotated[list[Path], typer.Option("--release", help="Folder of a release; give several to serve several versions.")]
Listen = Annotated[str, typer.Option(help="HOST:PORT or unix:/PATH; port 0 lets the system choose.")]
Certificate = Annotated[Path | None, typer.Option(help="PEM file of the server's certificate chain.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the whole configuration as JSON, and end.")]
Key = Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")]


@app.command()
def lookup(
    release: Releases,
    listen: Listen = "127.0.0.1:7401",
    processes: Annotated[int, typer.Option(min=1, help="Processes that answer frames, one a core.")] = 1,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    settings: Settings = None,
    print_config: PrintConfig = False,
) -> None:
    """Answers requests for rows until SIGTERM, then drains."""
    from multifacet import serving

    fields = _fields(release, listen, tls_certificate, tls_key)
    if processes > 1:
        fields["processes"] = processes
    config = serving.LookupConfig(**fields, **parse_settings(settings))
    if print_config:
        emit_json(config.model_dump(mode="json"))
        return
    serving.serve_lookup(config)


@app.command()
def ranker(
    release: Releases,
    lookup: Annotated[str, typer.Option(help="Address of the lookup server.")] = "127.0.0.1:7401",
    listen: Listen = "127.0.0.1:7402",
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    settings: Settings = None,
    print_config: PrintConfig = False,
) -> None:
    """Answers ranking requests until SIGTERM, then drains."""
    from multifacet import serving

    fields = _fields(release, listen, tls_certificate, tls_key)
    config = serving.RankerConfig(**fields, lookup=lookup, **parse_settings(settings))
    if print_config:
        emit_json(config.model_dump(mode="json"))
        return
    serving.serve_ranker(config)


@app.command()
def http(
    ranker: Annotated[str, typer.Option(help="Address of the ranker.")] = "127.0.0.1:7402",
    listen: Listen = "127.0.0.1:8080",
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    settings: Settings = None,
    print_config: PrintConfig = False,
) -> None:
    """Offers a ranker over HTTP, by the Open Inference Protocol (KServe's v2), until SIGTERM."""
    from multifacet.serving.http import HttpConfig, serve_http

    fields = {"ranker": ranker, "listen": listen, "tls_certificate": tls_certificate, "tls_key": tls_key}
    config = HttpConfig(**fields, **parse_settings(settings))
    if print_config:
        emit_json(config.model_dump(mode="json"))
        return
    serve_http(config)


def _fields(releases: list[Path], listen: str, certificate: Path | None, key: Path | None) -> dict[str, Any]:
    return {"releases": tuple(releases), "listen": listen, "tls_certificate": certificate, "tls_key": key}
