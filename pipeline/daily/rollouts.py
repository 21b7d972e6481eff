"""Moving the pipeline's servers to a release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from multifacet.serving import AdminClient, Rollout

if TYPE_CHECKING:
    from multifacet.pipeline.daily.config import Pipeline
    from multifacet.serving.core.document import State

__all__ = ["read_state", "roll_out", "state_folder"]


def state_folder(pipeline: Pipeline) -> Path:
    """Gives the folder of the rollouts' state and log."""
    section = pipeline.rollout
    return section.state if section is not None and section.state is not None else pipeline.folder / "rollout"


def read_state(pipeline: Pipeline) -> State | None:
    """Gives what is written down of the last rollout; None before the first. No server is asked."""
    folder = state_folder(pipeline)
    return Rollout(folder, _no_server).state() if folder.is_dir() else None


def _no_server(address: str) -> NoReturn:
    raise AssertionError(f"reading the state asks no server, not {address}")


def roll_out(pipeline: Pipeline, release: Path, version: str) -> dict[str, Any]:
    """Moves the servers of `[rollout]` to a release, or goes on with a move that was begun.

    On the first day the servers adopt it. A rollout to another release that was not ended is rolled back first.

    Args:
        pipeline: The pipeline.
        release: The release's folder, as the servers see it.
        version: Its version.

    Returns:
        What is written down of the rollout, JSON-able.

    Raises:
        RolloutError: The new version broke a limit and was rolled back, or the rollout cannot be begun.
        ServingError: A server cannot be reached.
    """
    section = pipeline.rollout
    if section is None:
        raise ValueError("the pipeline has no [rollout], so there is nowhere to go")

    def connect(address: str) -> AdminClient:
        return AdminClient(
            address,
            token_file=section.token_file,
            timeout_s=section.timeout_s,
            tls_ca=section.tls_ca,
            tls_certificate=section.tls_certificate,
            tls_key=section.tls_key,
        )

    folder = state_folder(pipeline)
    folder.mkdir(parents=True, exist_ok=True)
    rollout = Rollout(folder, connect)
    state = rollout.state()
    if state is None:
        return _told(rollout.adopt(release.resolve(), version, rankers=section.rankers, lookups=section.lookups))
    if not state.is_over and state.new_version != version:
        state = rollout.rollback(f"release {version[:12]} is newer")
    if state.is_over:
        if state.final_version == version:
            return _told(state)
        state = rollout.start(
            release.resolve(), version, rankers=section.rankers, lookups=section.lookups, limits=section.limits
        )
    while not state.is_over:
        state = rollout.advance()
    return _told(state)


def _told(state: State) -> dict[str, Any]:
    return {"number": state.number, "done": state.done, "served": state.final_version, "reason": state.reason}
