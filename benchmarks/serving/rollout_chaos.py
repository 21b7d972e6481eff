"""Rollouts and rollbacks of real processes that are killed at random moments under load: mixed scores, lost requests.

Rows encode (version, id), and the upper model's score tells when any of them is of another version or id than asked for. In
each rollout and rollback SIGKILL hits, in turns, the lookup server, the ranker, the rollout's controller and the publisher,
and each is started again. A failed request is asked again. unexplained_errors are errors at moments when all servers were up;
lost_requests got no answer in a minute of asking again. The load is half of what two clients get without a pause.
"""

from __future__ import annotations

import itertools
import logging
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from benchmarks.harness.chaos import VICTIMS, Chaos
from benchmarks.harness.load import Asker

logger = logging.getLogger(__name__)

CLIENTS = 2
_FAULTS = {name: Metric(name=name, unit="", better=LOWER) for name in ("mixed_scores", "lost_requests", "unexplained_errors")}
_ANSWERED = Metric(name="answered", unit="", better=HIGHER)
_RETRIED = Metric(name="retried", unit="", better=LOWER)
_KILLS = Metric(name="kills", unit="", better=HIGHER)


def run(quick: bool) -> Iterator[Row]:
    """2 rollouts and 1 rollback when quick, else 20 and 10."""
    num_rollouts = 2 if quick else 20
    chooser = random.Random(0)  # noqa: S311
    victims = itertools.cycle(VICTIMS)
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name:
        interval_s = _half_capacity(Path(name))
        folder = Path(name) / "chaos"
        folder.mkdir()
        with Chaos(folder, num_askers=CLIENTS, interval_s=interval_s) as chaos:
            for number in range(num_rollouts):
                chaos.roll_out(next(victims), chooser.choice(VICTIMS))
                if number % 2:
                    chaos.roll_back(next(victims), chooser.choice(VICTIMS))
            tally = chaos.finish()
            unexplained = chaos.unexplained(tally)
    for error in unexplained:
        logger.warning("unexplained: %s: %s", type(error).__name__, error)
    config = {"rollouts": num_rollouts, "rollbacks": num_rollouts // 2, "clients": CLIENTS, "interval_ms": interval_s * 1e3}
    case = f"{num_rollouts} rollouts, {num_rollouts // 2} rollbacks"
    counts = {"mixed_scores": tally.mixed, "lost_requests": tally.lost, "unexplained_errors": len(unexplained)}
    for fault, count in counts.items():
        yield Row(case=case, metric=_FAULTS[fault], value=count, config=config)
    yield Row(case=case, metric=_ANSWERED, value=tally.answered, config=config)
    yield Row(case=case, metric=_RETRIED, value=len(tally.errors), config=config)
    for victim in VICTIMS:
        yield Row(case=f"{case}, {victim}", metric=_KILLS, value=chaos.kills[victim], config=config)


def _half_capacity(folder: Path) -> float:
    """The pause between a client's requests at which all of them ask half of what they could."""
    probe = folder / "probe"
    probe.mkdir()
    with Chaos(probe, num_askers=0) as chaos:
        askers = [Asker(chaos.ranker_address, interval_s=0, seed=number) for number in range(CLIENTS)]
        for asker in askers:
            asker.start()
        time.sleep(3)
        answered = sum(asker.stop().answered for asker in askers)
    return 2 * CLIENTS * 3 / answered
