"""`multifacet rollout`: move live servers from one release to the next, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline.options import Settings, parse_settings
from pipeline.output import AsJson, emit_json, stdout

if TYPE_CHECKING:
    from serving.core.document import State
    from serving.rollout import Rollout

app = typer.Typer(no_args_is_help=True, help="Move live servers from one release to the next in three phases, and back.")

Folder = Annotated[Path, typer.Option("--state", help="Folder of the rollout's state and audit log; one a deployment.")]
Token = Annotated[Path, typer.Option("--token-file", help="File with the servers' admin token.")]
Authority = Annotated[Path | None, typer.Option("--tls-ca", help="PEM file of the authority that signed their certificates.")]
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
    timeout_s: Timeout = 120.0,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Plans a rollout and touches nothing yet; --set changes a limit, such as --set shadow_share=0.2."""
    from serving import Limits, Release

    opened = Release.open(release, verify=False)
    limits = Limits(**parse_settings(settings))
    rollout = _rollout(state, token_file, tls_ca, timeout_s)
    _show(rollout.start(opened.path, opened.version, rankers=ranker, lookups=lookup, limits=limits), as_json=as_json)


@app.command()
def status(state: Folder, as_json: AsJson = False) -> None:
    """Prints where the rollout is."""
    from serving import Rollout, RolloutError

    if not state.is_dir():
        raise RolloutError(f"{state} is no folder of a rollout: start one")
    written = Rollout(state, _no_server).state()
    if written is None:
        raise RolloutError(f"{state} has no rollout: start one")
    _show(written, as_json=as_json)


@app.command()
def advance(
    state: Folder,
    token_file: Token,
    to_end: Annotated[bool, typer.Option("--to-end", help="All steps that are left, not only the next.")] = False,
    tls_ca: Authority = None,
    timeout_s: Timeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Does the next step, or what is left of one that was interrupted; rolls back if the new version breaks a limit."""
    rollout = _rollout(state, token_file, tls_ca, timeout_s)
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
    timeout_s: Timeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Serves the old version again and retires the new, from whatever step."""
    _show(_rollout(state, token_file, tls_ca, timeout_s).rollback(reason), as_json=as_json)


def _rollout(folder: Path, token_file: Path, tls_ca: Path | None, timeout_s: float) -> Rollout:
    from serving import AdminClient, Rollout

    return Rollout(folder, lambda address: AdminClient(address, token_file=token_file, timeout_s=timeout_s, tls_ca=tls_ca))


def _no_server(address: str) -> NoReturn:
    raise AssertionError(f"reading the state asks no server, not {address}")


def _show(state: State, *, as_json: bool) -> None:
    if as_json:
        emit_json({**state.model_dump(mode="json"), "is_over": state.is_over})
        return
    doing = f", {state.doing} begun" if state.doing else ""
    why = f" ({state.reason})" if state.reason else ""
    stdout.print(f"rollout {state.number}: {state.done}{doing}{why}", highlight=False)
    stdout.print(f"  from {state.old_version[:12]} {state.old_path}", highlight=False, soft_wrap=True)
    stdout.print(f"  to   {state.new_version[:12]} {state.new_path}", highlight=False, soft_wrap=True)
