"""`multifacet rollout`: move live servers from one release to the next, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from multifacet.pipeline.options import Settings, parse_settings
from multifacet.pipeline.terminal.output import AsJson, emit_json, stdout

if TYPE_CHECKING:
    from multifacet.serving import ReleaseFreshness, Rollout
    from multifacet.serving.core.document import State

app = typer.Typer(no_args_is_help=True, help="Move live servers from one release to the next in three phases, and back.")

Folder = Annotated[Path, typer.Option("--state", help="Folder of the rollout's state and audit log; one a deployment.")]
Token = Annotated[Path, typer.Option("--token-file", help="File with the servers' admin token.")]
Authority = Annotated[Path | None, typer.Option("--tls-ca", help="PEM file of the authority that signed their certificates.")]
Certificate = Annotated[
    Path | None, typer.Option("--tls-certificate", help="PEM file of a certificate of one's own, for servers that ask for it.")
]
Key = Annotated[Path | None, typer.Option("--tls-key", help="PEM file of that certificate's private key.")]
Timeout = Annotated[
    float, typer.Option(help="How long one server may take for one change, in seconds; it may restart meanwhile.")
]


@app.command()
def start(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of the new release, as the servers see it.")],
    ranker: Annotated[list[str], typer.Option(help="Address of a ranker; give all of them.")],
    lookup: Annotated[list[str], typer.Option(help="gRPC address of a lookup server; give all of them.")],
    state: Folder,
    token_file: Token,
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 120.0,
    from_version: Annotated[
        str, typer.Option("--from", metavar="VERSION", help="Start from this version, if the rankers do not serve one.")
    ] = "",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Plans a rollout and touches nothing yet; --set changes a limit, such as --set shadow_share=0.2."""
    from multifacet.serving import Limits, Release

    opened = Release.open(release, verify=False)
    limits = Limits(**parse_settings(settings))
    rollout = _rollout(state, token_file, (tls_ca, tls_certificate, tls_key), timeout_s)
    addresses = {"rankers": ranker, "lookups": lookup}
    path = opened.path.resolve()  # a link may point elsewhere by the time of a rollback
    _show(rollout.start(path, opened.version, **addresses, limits=limits, from_version=from_version), as_json=as_json)


@app.command()
def adopt(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of the release, as the servers see it.")],
    ranker: Annotated[list[str], typer.Option(help="Address of a ranker; give all of them.")],
    lookup: Annotated[list[str], typer.Option(help="gRPC address of a lookup server; give all of them.")],
    state: Folder,
    token_file: Token,
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Makes servers hold and serve one release at once: on the first day, or when the state of their rollouts was lost."""
    from multifacet.serving import Release

    opened = Release.open(release, verify=False)
    rollout = _rollout(state, token_file, (tls_ca, tls_certificate, tls_key), timeout_s)
    _show(rollout.adopt(opened.path.resolve(), opened.version, rankers=ranker, lookups=lookup), as_json=as_json)


@app.command()
def status(state: Folder, as_json: AsJson = False) -> None:
    """Prints where the rollout is, and until when what is served knows of events."""
    from multifacet.serving import ReleaseFreshness, Rollout, RolloutError

    if not state.is_dir():
        raise RolloutError(f"{state} is no folder of a rollout: start one")
    written = Rollout(state, _no_server).state()
    if written is None:
        raise RolloutError(f"{state} has no rollout: start one")
    _show(written, as_json=as_json, freshness=ReleaseFreshness.of(state, written))


@app.command()
def advance(
    state: Folder,
    token_file: Token,
    to_end: Annotated[bool, typer.Option("--to-end", help="All steps that are left, not only the next.")] = False,
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Does the next step, or what is left of one that was interrupted; rolls back if the new version breaks a limit.

    Once the rollout is over, a server that was replaced meanwhile is given what the others have.
    """
    rollout = _rollout(state, token_file, (tls_ca, tls_certificate, tls_key), timeout_s)
    reached = rollout.advance()
    while to_end and not reached.is_over:
        reached = rollout.advance()
    _show(reached, as_json=as_json)


@app.command()
def rollback(
    state: Folder,
    token_file: Token,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "asked for",
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Serves the old version again and retires the new, from whatever step; interrupts a command that is at work."""
    rollout = _rollout(state, token_file, (tls_ca, tls_certificate, tls_key), timeout_s)
    _show(rollout.rollback(reason), as_json=as_json)


@app.command()
def abandon(
    state: Folder,
    token_file: Token,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "given up",
    tls_ca: Authority = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    timeout_s: Timeout = 20.0,
    as_json: AsJson = False,
) -> None:
    """Gives the rollout up: settles on a version that every server that still answers can serve; leaves the others out."""
    rollout = _rollout(state, token_file, (tls_ca, tls_certificate, tls_key), timeout_s)
    _show(rollout.abandon(reason), as_json=as_json)


def _rollout(folder: Path, token_file: Path, tls: tuple[Path | None, Path | None, Path | None], timeout_s: float) -> Rollout:
    from multifacet.serving import AdminClient, Rollout

    ca, certificate, key = tls

    def connect(address: str) -> AdminClient:
        return AdminClient(
            address, token_file=token_file, timeout_s=timeout_s, tls_ca=ca, tls_certificate=certificate, tls_key=key
        )

    return Rollout(folder, connect)


def _no_server(address: str) -> NoReturn:
    raise AssertionError(f"reading the state asks no server, not {address}")


def _show(state: State, *, as_json: bool, freshness: ReleaseFreshness | None = None) -> None:
    if as_json:
        told = {} if freshness is None else {"freshness": freshness.to_dict()}
        emit_json({**state.model_dump(mode="json"), "is_over": state.is_over, **told})
        return
    doing = f", {state.doing} begun" if state.doing else ""
    why = f" ({state.reason})" if state.reason else ""
    stdout.print(f"rollout {state.number}: {state.done}{doing}{why}", highlight=False, soft_wrap=True)
    stdout.print(f"  from {state.old_version[:12]} {state.old_path}", highlight=False, soft_wrap=True)
    stdout.print(f"  to   {state.new_version[:12]} {state.new_path}", highlight=False, soft_wrap=True)
    if freshness is not None:
        stdout.print(f"  {freshness.version[:12]} {freshness}", highlight=False, soft_wrap=True)
