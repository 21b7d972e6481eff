"""Removes stages of old days that nothing reads any more."""

from __future__ import annotations

import datetime as dt
import logging
import re
import shutil
from typing import TYPE_CHECKING, Final

from multifacet.pipeline.daily import rollouts
from multifacet.pipeline.daily.day import RANKER
from multifacet.pipeline.daily.history import History

if TYPE_CHECKING:
    from multifacet.pipeline.daily.config import Pipeline

__all__ = ["prune"]

logger = logging.getLogger(__name__)

_STAGE: Final = re.compile(r"(?P<step>.+)-(?P<day>\d{4}-\d{2}-\d{2})-[0-9a-f]{12}")


def prune(pipeline: Pipeline, day: dt.date) -> list[str]:
    """Removes the stages of days that are more than `keep_days` older than a day.

    The last tables of each facet, the last ranker and release, what the servers of `[rollout]` go to or come from, and what
    these releases lie over stay whatever their age.

    Args:
        pipeline: The pipeline.
        day: The day.

    Returns:
        Names of the removed folders.
    """
    history = History(pipeline.folder)
    after = day + dt.timedelta(days=1)
    kept = {
        step.stage
        for name in (*pipeline.facets, RANKER, "release")
        if (step := history.last_step(name, before=after)) is not None
    }
    kept |= _served(pipeline)
    kept |= _bases(history, kept)
    removed = []
    for path in sorted(pipeline.folder.iterdir()):
        match = _STAGE.fullmatch(path.name)
        if match is None or path.name in kept or not path.is_dir():
            continue
        if (day - dt.date.fromisoformat(match["day"])).days > pipeline.keep_days:
            shutil.rmtree(path)
            removed.append(path.name)
    if removed:
        logger.info("removed %d stages of days before %s", len(removed), day - dt.timedelta(days=pipeline.keep_days))
    return removed


def _bases(history: History, kept: set[str]) -> set[str]:
    """The stages of the releases that kept ones lie over."""
    steps = [step for run in history.runs() for step in run.steps if step.name == "release" and step.stage]
    of_version = {step.result.get("version"): step for step in steps}
    found: set[str] = set()
    for step in steps:
        below = step if step.stage in kept else None
        while below is not None and below.result.get("base"):
            below = of_version.get(below.result["base"])
            if below is not None:
                found.add(below.stage)
    return found


def _served(pipeline: Pipeline) -> set[str]:
    """Names the stages of the releases of the last rollout: servers have them mapped, or may be rolled back to them."""
    state = rollouts.read_state(pipeline)
    return set() if state is None else {path.parent.name for path in (state.new_path, state.old_path)}
