"""Searching for a configuration within a budget of CPU time: rounds of ever longer trials, then seeds of the winner."""

from __future__ import annotations

import logging
import math
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from typing import Final as Constant

from multifacet.training.checkpoint import Checkpoint, CheckpointError, SavedState
from multifacet.training.search.program import Pruned, measure_epoch
from multifacet.training.search.report import SearchReport
from multifacet.training.search.sampler import load_optuna, should_prune, suggest
from multifacet.training.search.space import Choice, Family, Range, widen
from multifacet.training.search.trials import Final, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from multifacet.training.lifecycle import Lifecycle
    from multifacet.training.search.program import Program, Trial
    from multifacet.training.search.space import Recipe

__all__ = ["run_search"]

logger = logging.getLogger(__name__)

_REDUCTION: Constant = 3  # how much longer the trials of the next round are
_SHARES: Constant = (0.35, 0.25, 0.2)  # of the budget, by round; the rest is for the winner's seeds
_PROBE: Constant = 0.04  # of a trial's time, to measure how many epochs fit into it
_VALIDATIONS: Constant = 3  # of a trial
_LAST_SEEDS: Constant = 1009  # seeds of the last trainings begin so far behind the base's


def run_search(
    program: Program,
    *,
    minutes: float,
    num_seeds: int,
    seed: int,
    lifecycle: Lifecycle,
    progress: Callable[[Record], None] | None = None,
) -> SearchReport:
    """Try configurations in three rounds, each of trials three times as long as those before, and train the winner anew.

    The first round begins with the recipes, and goes on with what Optuna's sampler makes of the trials so far. Half of a
    later round's trials are the best of the round before, and half are the sampler's. A trial's schedule is that of its own
    length, and one that is worse than half of the others at a third of it is stopped. Where the best of a round lies at the
    end of a range, that range is widened.

    Args:
        program: what is searched.
        minutes: CPU minutes of this process for all of it, over all its threads. Only whole trainings are begun, so that
            it may take a little longer.
        num_seeds: how often the winner is trained anew; their mean is the search's figure.
        seed: of all choices.
        lifecycle: its checkpoint folder keeps finished trials, and the state of the one that runs.
        progress: called with each trial, those of an interrupted search included.

    Returns:
        What was found and tried.

    Raises:
        ValueError: if every trial diverged.
        CheckpointError: if the folder holds another search, or any while `resume` is not set.
        ImportError: if Optuna is not installed.
    """
    load_optuna()
    families = {name: _with_recipes(family, name, program.recipes) for name, family in program.families.items()}
    identity = {
        "minutes": minutes,
        "num_seeds": num_seeds,
        "seed": seed,
        "families": {name: {"settings": dict(f.settings), "space": repr(f.space)} for name, f in families.items()},
        "data": program.data if lifecycle.checkpoint else "",
    }
    journal = _Journal(lifecycle, identity)
    runner = _Runner(program, families, journal, minutes * 60.0, num_seeds, seed, lifecycle, progress)
    for number in range(len(_SHARES)):
        runner.run_round(number)
    best = runner.best()
    if best.score <= 0:
        raise ValueError("every trial of the search diverged or ranked nothing: give smaller learning rates, or more minutes")
    finals = runner.run_finals(best)
    return SearchReport(
        best=best, finals=tuple(finals), records=tuple(journal.records), families=runner.widened(), minutes=minutes
    )


@dataclass(slots=True)
class _Runner:
    program: Program
    families: Mapping[str, Family]
    journal: _Journal
    budget: float
    num_seeds: int
    seed: int
    lifecycle: Lifecycle
    progress: Callable[[Record], None] | None
    _told: int = field(default=0)

    def run_round(self, number: int) -> None:
        """Run the trials of a round, until its share of the budget is spent."""
        limit = sum(_SHARES[: number + 1]) * self.budget
        for record in [record for record in self.journal.records if record.round == number]:
            self._tell(record)
        while True:
            done = [record for record in self.journal.records if record.round == number]
            # A round has two trials at least: one is no comparison.
            if self.journal.cpu_seconds >= limit and len(done) >= 2:
                return
            began = time.process_time()
            chosen = self._choose(number, done)
            if chosen is None:
                return
            record = self._try(number, done, *chosen, began=began)
            self.journal.append(record)
            self._tell(record)

    def run_finals(self, best: Record) -> list[Final]:
        """Train the winner in seeds that no choice has seen, each with all of the validation part."""
        seconds = self._trial_seconds(len(_SHARES) - 1)
        epochs = max(best.epochs, 1)
        for place in range(len(self.journal.finals), self.num_seeds):
            seed = self.seed + _LAST_SEEDS + place
            config = self.program.configure(best.family, best.values, epochs=epochs, every=epochs, seed=seed)
            began = time.process_time()
            score = self.journal.run(f"final-{place}", partial(self._train_whole, config))
            self.journal.append_final(Final(seed=seed, score=score, cpu_seconds=time.process_time() - began))
            logger.info("search: the winner in seed %d, of about %.0f CPU s: %.4f", seed, seconds, score)
        return self.journal.finals

    def _train_whole(self, config: Trial, lifecycle: Lifecycle) -> float:
        return self.program.train(config, lifecycle=lifecycle, on_score=None)

    def best(self) -> Record:
        """Give the best finished trial of the last round, which is the longest."""
        whole = [record for record in self.journal.records if not record.pruned]
        last = max(record.round for record in whole)
        return max((record for record in whole if record.round == last), key=lambda record: record.score)

    def widened(self) -> dict[str, Family]:
        """Give the families with ranges as wide as the trials so far ask for."""
        families = dict(self.families)
        for number in range(len(_SHARES)):
            for name, family in families.items():
                whole = [r for r in self.journal.records if r.round == number and r.family == name and not r.pruned]
                # By one trial nothing is known of a range.
                if len(whole) >= 4:
                    best = max(whole, key=lambda record: record.score)
                    families[name] = replace(family, space=widen(family.space, best.values))
        return families

    def _trial_seconds(self, number: int) -> float:
        longest = (1.0 - sum(_SHARES)) * self.budget / max(1, self.num_seeds)
        return longest / float(_REDUCTION ** (len(_SHARES) - 1 - number))

    def _choose(self, number: int, done: Sequence[Record]) -> tuple[str, Mapping[str, Any], str] | None:
        """Give the next trial of a round: family, values and where they come from."""
        tried = {_key(record.family, record.values) for record in done}
        if number == 0:
            for recipe in self.program.recipes:
                if _key(recipe.family, recipe.values) not in tried:
                    return recipe.family, recipe.values, "recipe"
        elif len(done) % 2 == 0 or number == len(_SHARES) - 1:
            before = [record for record in self.journal.records if record.round == number - 1 and not record.pruned]
            for record in sorted(before, key=lambda record: -record.score):
                if _key(record.family, record.values) not in tried:
                    return record.family, record.values, "best of the round before"
        families = self.widened()
        # A later round's own trials are too few to model; those of the longest round with enough of them are.
        rounds = [[r for r in self.journal.records if r.round == place] for place in range(number + 1)]
        known = next((records for records in reversed(rounds) if len(records) >= 10), rounds[0])
        for attempt in range(20):
            order = len(self.journal.records) * 20 + attempt
            family, values = suggest(families, known, seed=self.seed * 1_000_003 + order)
            if _key(family, values) not in tried:
                return family, values, "sampler"
        return None  # all of a small space has been tried

    def _try(
        self, number: int, done: Sequence[Record], family: str, values: Mapping[str, Any], source: str, *, began: float
    ) -> Record:
        """Train one configuration for its round's time; the choice of it, begun at `began`, counts as well."""
        seconds = self._trial_seconds(number)
        key = f"trial-{len(self.journal.records)}"
        epochs = self.journal.planned(key)
        if epochs is None:
            cost = measure_epoch(self.program, family, values, limit=_PROBE * seconds, lifecycle=self.lifecycle)
            most = self.program.max_epochs // _REDUCTION ** (len(_SHARES) - 1 - number)
            epochs = max(1, min(most, round(seconds / max(cost, 1e-6))))
            self.journal.plan(key, epochs)
        every = max(1, math.ceil(epochs / _VALIDATIONS))
        config = self.program.configure(family, values, epochs=epochs, every=every, seed=self.seed)
        curve: list[tuple[float, float]] = []

        def on_score(share: float, score: float) -> None:
            curve.append((round(share, 4), score))
            if share < 1.0 and should_prune(done, curve):
                raise Pruned

        pruned = False
        try:
            score = self.journal.run(key, lambda life: self.program.train(config, lifecycle=life, on_score=on_score))
        except Pruned:
            pruned, score = True, curve[-1][1]
        return Record(
            round=number,
            family=family,
            values=dict(values),
            source=source,
            epochs=epochs,
            score=score,
            curve=tuple(curve),
            pruned=pruned,
            cpu_seconds=time.process_time() - began,
        )

    def _tell(self, record: Record) -> None:
        place = self.journal.records.index(record)
        if place < self._told:
            return
        self._told = place + 1
        logger.info(
            "search: %.4f after %d epochs%s (%s, %s) of %s",
            record.score,
            record.epochs,
            ", stopped early" if record.pruned else "",
            record.family,
            record.source,
            dict(record.values),
        )
        if self.progress is not None:
            self.progress(record)


class _Journal:
    """What a search has finished, on disk: written whole after each trial, so that a kill costs what one checkpoint does."""

    def __init__(self, lifecycle: Lifecycle, identity: Mapping[str, Any]) -> None:
        self._lifecycle = lifecycle
        self._identity = identity
        self.records: list[Record] = []
        self.finals: list[Final] = []
        self._plans: dict[str, int] = {}
        self._path: Path | None = None
        if lifecycle.checkpoint is None:
            return
        self._path = lifecycle.checkpoint / "trials"
        if not lifecycle.resume and lifecycle.checkpoint.exists():
            raise CheckpointError(
                f"{lifecycle.checkpoint} holds a search that did not end. Go on from it with resume=True (--resume), or "
                "remove it to start anew."
            )
        if self._path.exists():
            fields = Checkpoint.load(self._path, identity=identity).fields
            self.records = [Record.from_dict(document) for document in fields["records"]]
            self.finals = [Final(**document) for document in fields["finals"]]
            self._plans = dict(fields["plans"])
            logger.info("search: going on after %d trials", len(self.records))

    @property
    def cpu_seconds(self) -> float:
        """What all trials have cost."""
        return sum(record.cpu_seconds for record in self.records)

    def append(self, record: Record) -> None:
        """Keep a finished trial."""
        self.records.append(record)
        self._write()

    def append_final(self, final: Final) -> None:
        """Keep a training of the winner."""
        self.finals.append(final)
        self._write()

    def plan(self, key: str, epochs: int) -> None:
        """Keep how long a trial is to be: measured again, it would not go on from its checkpoint."""
        self._plans = {key: epochs}
        self._write()

    def planned(self, key: str) -> int | None:
        """Give how long a trial that was begun is to be."""
        return self._plans.get(key)

    def run(self, key: str, train: Callable[[Lifecycle], float]) -> float:
        """Run a training with a checkpoint of its own, if there are any."""
        if self._path is None:
            return train(replace(self._lifecycle, checkpoint=None, resume=False))
        running = self._path.with_name(key)
        try:
            score = train(replace(self._lifecycle, checkpoint=running, resume=True))
        except Pruned:
            shutil.rmtree(running, ignore_errors=True)
            raise
        shutil.rmtree(running, ignore_errors=True)
        return score

    def _write(self) -> None:
        if self._path is None:
            return
        fields = {
            "records": [record.to_dict() for record in self.records],
            "finals": [{"seed": f.seed, "score": f.score, "cpu_seconds": f.cpu_seconds} for f in self.finals],
            "plans": self._plans,
        }
        Checkpoint.write(self._path, SavedState(tensors={}, fields=fields), identity=self._identity)


def _with_recipes(family: Family, name: str, recipes: Sequence[Recipe]) -> Family:
    """Give a family whose space holds all that its recipes say."""
    space = dict(family.space)
    for recipe in recipes:
        if recipe.family != name:
            continue
        if missing := [part for part in space if part not in recipe.values]:
            raise ValueError(f"a recipe of {name} has no {missing}: a recipe says all that its family's space leaves open")
        for part, value in recipe.values.items():
            kind = space[part]
            if isinstance(kind, Range):
                space[part] = kind.including(value)
            elif value not in kind.values:
                space[part] = Choice((*kind.values, value))
    return replace(family, space=space)


def _key(family: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    return family, *sorted((name, repr(value)) for name, value in values.items())
