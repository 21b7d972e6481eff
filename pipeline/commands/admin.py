"""`multifacet admin`: look at one live server, and tell it which versions to hold, outside of any rollout."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multifacet.pipeline.commands.rollout import Authority, Certificate, Key, Token
from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, stdout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multifacet.serving import AdminClient
    from multifacet.serving.protocol import admin_pb2

app = typer.Typer(
    no_args_is_help=True,
    help="Look at one live server, and tell it which versions to hold. Fleets are moved by `multifacet rollout`.",
)

Server = Annotated[str, typer.Argument(metavar="ADDRESS", help="gRPC address of a lookup server or a ranker.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="A version, or the beginning of one that the server holds.")]
Timeout = Annotated[float, typer.Option(help="How long the server may take, in seconds.")]


@app.command()
def status(
    server: Server,
    token_file: Token,
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Prints what a server holds, who reads it, whether it is ready, and if not why; exit status 1 if it is not."""
    with _admin(server, token_file, (tls_ca, tls_certificate, tls_key), timeout_s) as admin:
        found = admin.status()
    _show(found, as_json=as_json)
    if not found.ready:
        raise typer.Exit(1)


@app.command()
def load(
    server: Server,
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of a release, as the server sees it.")],
    token_file: Token,
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Has a server hold a release beside the others; what it serves stays what it was."""
    with _admin(server, token_file, (tls_ca, tls_certificate, tls_key), timeout_s) as admin:
        _show(admin.load(release), as_json=as_json)


@app.command()
def choose(
    server: Server,
    version: Version,
    token_file: Token,
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Makes a version the one that requests without a version get; a ranker first sees that its lookup server has it."""
    with _admin(server, token_file, (tls_ca, tls_certificate, tls_key), timeout_s) as admin:
        _show(admin.choose(_whole(admin, version)), as_json=as_json)


@app.command()
def retire(
    server: Server,
    version: Version,
    token_file: Token,
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Has a server forget a version once its last reader is done; the current one is refused."""
    with _admin(server, token_file, (tls_ca, tls_certificate, tls_key), timeout_s) as admin:
        _show(admin.retire(_whole(admin, version)), as_json=as_json)


@contextlib.contextmanager
def _admin(
    server: str, token_file: Path, files: tuple[Path | None, Path | None, Path | None], timeout_s: float
) -> Iterator[AdminClient]:
    from multifacet.serving import AdminClient

    tls_ca, tls_certificate, tls_key = files
    client = AdminClient(
        server, token_file=token_file, timeout_s=timeout_s, tls_ca=tls_ca, tls_certificate=tls_certificate, tls_key=tls_key
    )
    with client as admin:
        yield admin


def _whole(admin: AdminClient, version: str) -> str:
    """The version that a beginning means."""
    held = [held.version for held in admin.status().versions]
    meant: list[str] = [known for known in held if known.startswith(version)] if version else []
    if len(meant) != 1:
        listed = ", ".join(held) or "none"
        raise ValueError(f"{version!r} is the beginning of {len(meant)} versions of {admin.address}; it holds {listed}")
    return meant[0]


def _show(status: admin_pb2.ServerStatus, *, as_json: bool) -> None:
    versions = [
        {
            "version": held.version,
            "current": held.version == status.current_version,
            "path": held.path,
            "readers": held.readers,
            "answered": held.answered,
            "failed": held.failed,
            "damaged": held.damaged,
        }
        for held in status.versions
    ]
    if as_json:
        emit_json(
            {
                "role": status.role,
                "ready": status.ready,
                "not_ready_because": status.not_ready_because,
                "current": status.current_version,
                "versions": versions,
                "faults": list(status.faults),
            }
        )
        return
    rows: list[dict[str, Any]] = [{**row, "version": str(row["version"])[:12]} for row in versions]
    emit_rows(iter(rows), title=f"{status.role}: {'ready' if status.ready else f'not ready: {status.not_ready_because}'}")
    for fault in status.faults:
        stdout.print(fault, soft_wrap=True)
