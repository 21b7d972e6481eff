"""500 rollouts of real processes with kills at random moments, singly and in pairs: whether commands alone end each.

Two lookup servers, a ranker, a client and the controller. In each rollout one of them, or two, are killed (SIGKILL) within
half a second of a command, a server in one case of four with the loss of its state file. Then `advance --to-end`, `rollback` or
`abandon` is given, drawn at random, until the rollout is over, 12 times at most; `advance` again if a server lost its disk at
the very end. A run counts as served if all three servers then hold and serve the version that the rollout says, are ready, and
score with it. Each run's seed is its number. With MULTIFACET_ROLLOUT_KILLS=FILE runs are written to that file as they end, and
those that are in it are not run again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from benchmarks.harness.kills import Deployment, Run

logger = logging.getLogger(__name__)

_SERVED = Metric(name="served", unit="", better=HIGHER)
_STUCK = Metric(name="stuck", unit="", better=LOWER)
_KILLS = Metric(name="kills", unit="", better=HIGHER)
_COMMANDS = Metric(name="commands_at_most", unit="", better=LOWER)
_MIXED = Metric(name="mixed_scores", unit="", better=LOWER)
_ANSWERED = Metric(name="answered", unit="", better=HIGHER)
_SECONDS = Metric(name="seconds_median", unit="s", better=LOWER)


def run(quick: bool) -> Iterator[Row]:
    """5 rollouts when quick, else 500."""
    num_runs = 5 if quick else 500
    kept = os.environ.get("MULTIFACET_ROLLOUT_KILLS", "")
    done = _read(Path(kept)) if kept else []
    with tempfile.TemporaryDirectory(prefix="multifacet-kills-") as name, Deployment(Path(name)) as deployment:
        for number in range(len(done), num_runs):
            ended = deployment.run(number)
            done.append(ended)
            if kept:
                with Path(kept).open("a") as stream:
                    stream.write(json.dumps(dataclasses.asdict(ended)) + "\n")
            if ended.fault:
                logger.warning("run %d: %s (%s; %s)", number, ended.fault, ended.killed, ended.commands)
        tally = deployment.asker.stop()
    case, config = f"{num_runs} rollouts", {"rollouts": num_runs}
    stuck = [ended for ended in done if ended.fault]
    yield Row(case=case, metric=_SERVED, value=len(done) - len(stuck), config=config)
    yield Row(case=case, metric=_STUCK, value=len(stuck), config=config)
    yield Row(case=case, metric=_COMMANDS, value=max(len(ended.commands) for ended in done), config=config)
    yield Row(case=case, metric=_SECONDS, value=sorted(ended.seconds for ended in done)[len(done) // 2], config=config)
    yield Row(case=case, metric=_MIXED, value=tally.mixed, config=config)
    yield Row(case=case, metric=_ANSWERED, value=tally.answered, config=config)
    kills = Counter(victim for ended in done for victim in ended.killed)
    for victim, count in sorted(kills.items()):
        yield Row(case=f"{case}, {victim}", metric=_KILLS, value=count, config=config)
    ways = Counter(command.partition(":")[0] for ended in done for command in ended.commands[-1:])
    for command, count in sorted(ways.items()):
        yield Row(case=f"{case}, ended by {command}", metric=_SERVED, value=count, config=config)


def _read(path: Path) -> list[Run]:
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text().splitlines()]
