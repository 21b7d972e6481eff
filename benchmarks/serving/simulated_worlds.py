"""A million deployments, each simulated from one seed: mixed scores, lost versions, rollouts without an end; and planted bugs.

Each world has 1 to 3 rankers, 1 to 3 lookup servers, a publisher and an operator, on the cores that the real servers run (see
`benchmarks.harness.worlds`). Its seed draws what is killed, cut off, filled or torn, and which commands are given. A violation
is a score of rows and a model of different versions, a version that is forgotten while it is read or served, a server or a
rollout that remembers another thing than it told, a release that is there in part, a request that fails though nothing had
failed, or a rollout that commands alone do not end. The bugs are planted into the cores, one at a time; found_by is the first
seed that finds one.

MULTIFACET_WORLDS says how many worlds to run (a million, 1,000 when quick). With MULTIFACET_WORLDS_FILE=FILE what each block of
1,000 and each bug came to is written there as it ends, and what is in it is not run again. One seed with its trace:
``python -m benchmarks.harness.worlds SEED``.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from benchmarks.harness.worlds import simulate
from benchmarks.harness.worlds.planted import BUGS, Bug, find

logger = logging.getLogger(__name__)

BLOCK = 1000
MOST_SEEDS = 10_000
_COUNTS = ("num_events", "num_scores", "num_commands", "num_faults")
_VIOLATIONS = Metric(name="violations", unit="", better=LOWER)
_RATE = Metric(name="worlds_per_s", unit="1/s", better=HIGHER)
_FOUND = Metric(name="found_by", unit="", better=LOWER)
_MISSED = Metric(name="missed", unit="", better=LOWER)


def run(quick: bool) -> Iterator[Row]:
    """1,000 worlds and three of the bugs when quick, else a million and all of them."""
    num_worlds = int(os.environ.get("MULTIFACET_WORLDS", "1000" if quick else "1000000"))
    kept = os.environ.get("MULTIFACET_WORLDS_FILE", "")
    logging.getLogger("multifacet").setLevel(logging.ERROR)  # a server of a world that is left out is no news
    path = Path(kept) if kept else None
    blocks = run_worlds(num_worlds, path)
    total: Counter[str] = Counter()
    for block in blocks:
        total.update({name: block[name] for name in (*_COUNTS, "violations", "num")})
        total["cpu_us"] += int(block["cpu_s"] * 1e6)
    case, config = f"{total['num']:,} worlds", {"worlds": total["num"], "blocks": len(blocks)}
    yield Row(case=case, metric=_VIOLATIONS, value=total["violations"], config=config)
    yield Row(case=case, metric=_RATE, value=total["num"] / (total["cpu_us"] / 1e6), config=config)
    for name in _COUNTS:
        yield Row(
            case=case, metric=Metric(name=name.removeprefix("num_"), unit="", better=HIGHER), value=total[name], config=config
        )
    for found in find_bugs(BUGS[:3] if quick else BUGS, path):
        bug = {"seeds": MOST_SEEDS, "violation": found["violation"]}
        metric, value = (_MISSED, 1) if found["seed"] is None else (_FOUND, found["seed"])
        yield Row(case=f"bug: {found['bug']}", metric=metric, value=value, config=bug)


def find_bugs(bugs: Sequence[Bug], kept: Path | None) -> list[dict[str, Any]]:
    """The first seed that finds each bug, and how; those that were found before among them."""
    known = {line["bug"]: line for line in _read(kept) if "bug" in line}
    for bug in bugs:
        if bug.name not in known:
            ending = find(bug, most=MOST_SEEDS)
            seed, violation = (None, "") if ending is None else (ending.seed, ending.violation)
            known[bug.name] = _keep(kept, {"bug": bug.name, "seed": seed, "violation": violation})
    return [known[bug.name] for bug in bugs]


def run_worlds(num_worlds: int, kept: Path | None) -> list[dict[str, Any]]:
    """What blocks of worlds came to, those that were run before among them."""
    blocks = [line for line in _read(kept) if "first" in line]
    left = range(sum(block["num"] for block in blocks), num_worlds, BLOCK)
    return blocks + [_keep(kept, run_block(first, min(BLOCK, num_worlds - first))) for first in left]


def _read(kept: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in kept.read_text().splitlines()] if kept is not None and kept.exists() else []


def _keep(kept: Path | None, line: dict[str, Any]) -> dict[str, Any]:
    if kept is not None:
        with kept.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    return line


def run_block(first: int, num: int) -> dict[str, Any]:
    """Run worlds of consecutive seeds.

    Returns:
        The first seed, how many, what happened in them together, and the violations by seed.
    """
    counts: Counter[str] = Counter()
    found: dict[int, str] = {}
    began = time.process_time()
    gc.collect()
    gc.disable()  # worlds are circles of references: all of a hundred are freed at once
    try:
        for seed in range(first, first + num):
            ending = simulate(seed)
            counts.update({name: getattr(ending, name) for name in _COUNTS})
            if ending.violation:
                found[seed] = ending.violation
                logger.error("world %d: %s", seed, ending.violation)
            if seed % 100 == 99:
                gc.collect()
    finally:
        gc.enable()
    cpu_s = time.process_time() - began
    return {"first": first, "num": num, "cpu_s": cpu_s, "violations": len(found), "found": found, **counts}
