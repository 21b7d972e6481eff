"""Every state of a rollout among some rankers, lookup servers and versions, and every command from each, broken off anywhere.

The controller is the real one; see `benchmarks.harness.worlds.model` for what a state is and what must hold in each.
MULTIFACET_MODEL names the sizes as rankers x lookup servers x versions, with the most states of one behind a colon
(``1x1x2,2x2x2,3x3x3:5000``). A size of which all states were reached has exhausted 1. A violation ends the run with the states
that lead to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from benchmarks.harness.worlds.model import Model

_STATES = Metric(name="states", unit="", better=HIGHER)
_COMMANDS = Metric(name="commands", unit="", better=HIGHER)
_STEPS = Metric(name="steps", unit="", better=HIGHER)
_EXHAUSTED = Metric(name="exhausted", unit="", better=HIGHER)
_VIOLATIONS = Metric(name="violations", unit="", better=LOWER)
_SECONDS = Metric(name="cpu_seconds", unit="s", better=LOWER)


def run(quick: bool) -> Iterator[Row]:
    """One ranker, one lookup server and two versions when quick, else up to three of each."""
    sizes = os.environ.get("MULTIFACET_MODEL", "1x1x2" if quick else "1x1x2,1x1x3,2x2x2,2x2x3,3x3x3")
    for wanted in sizes.split(","):
        size, _, bound = wanted.partition(":")
        most = int(bound) if bound else None
        num_rankers, num_lookups, num_versions = (int(number) for number in size.split("x"))
        for losses in (False, True):
            began = time.process_time()
            found = Model(num_rankers, num_lookups, num_versions, losses=losses).explore(most)
            seconds = time.process_time() - began
            case = f"{num_rankers} rankers, {num_lookups} lookup servers, {num_versions} versions"
            case += ", one disk may be lost" if losses else ""
            config = {"size": size, "losses": losses, "most_states": most}
            counts = {_STATES: found.num_states, _COMMANDS: found.num_commands, _STEPS: found.num_steps}
            for metric, value in counts.items():
                yield Row(case=case, metric=metric, value=value, config=config)
            yield Row(case=case, metric=_EXHAUSTED, value=int(found.is_whole), config=config)
            yield Row(case=case, metric=_VIOLATIONS, value=0, config=config)  # the first one would have ended the run
            yield Row(case=case, metric=_SECONDS, value=seconds, config=config)
