"""A whole deployment simulated from one seed: what happens to it, and what must hold whatever happens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.worlds.engine import Engine, Violation
from benchmarks.harness.worlds.lookup import Lookup
from benchmarks.harness.worlds.network import Network, Weather
from benchmarks.harness.worlds.operators import Operator, Run, Store
from benchmarks.harness.worlds.ranker import Ranker, Scored
from benchmarks.harness.worlds.releases import FOLDER, Catalog
from benchmarks.harness.worlds.troubles import Troubles, boot
from multifacet.serving.core import rollout_events as moves
from multifacet.serving.core.limits import Limits
from multifacet.serving.errors import ServingError, VersionNotLoadedError

if TYPE_CHECKING:
    from benchmarks.harness.worlds.network import Answer
    from benchmarks.harness.worlds.server import Server
    from multifacet.serving.core.controlling import Command

WEATHERS = {
    "calm": Weather(),
    "rough": Weather(delay_s=0.01, loss=0.02, twice=0.05),
    "nasty": Weather(delay_s=0.03, loss=0.08, twice=0.15, astray=0.1),
}
VERSIONS = ("v1", "v2", "v3", "v4")
_STAGING = f"{FOLDER}/staging"
_STAGED = ("s1", "s2")
_RANK_S = 3.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a world ended.

    Attributes:
        seed: Its seed.
        violation: What happened that must not; empty if nothing did.
        weather: What it was exposed to.
        num_events: How many things happened.
        num_scores: How many requests were scored.
        num_commands: How many commands were given.
        num_faults: How many machines were killed, cut off or filled.
        seconds: How long it lasted, on its own clocks.
        trace: What happened, line by line; empty unless it was asked for.
    """

    seed: int
    violation: str
    weather: str
    num_events: int
    num_scores: int
    num_commands: int
    num_faults: int
    seconds: float
    trace: tuple[str, ...] = ()


class World:
    """Publisher, operator, rankers and lookup servers, with all that goes wrong between them.

    Args:
        seed: Of everything.
        traced: Whether to keep a trace.
    """

    def __init__(self, seed: int, *, traced: bool = False):
        self.seed = seed
        self.engine = engine = Engine(seed, traced=traced)
        chance = engine.random
        self.weather = chance.choice(("calm", "rough", "rough", "nasty"))
        self.network = Network(engine, WEATHERS[self.weather])
        self.catalog = Catalog()
        self.limits = Limits(
            shadow_share=chance.choice((0.0, 1.0)), min_compared=2, shadow_timeout_s=20.0, watch_s=0.5, max_failure_rate=0.5
        )
        self.left_out: set[str] = set()
        self.disks_were_lost = False
        self.num_scores = self.num_commands = self.num_faults = 0
        self._publish_first()
        self.operator = Operator(self)
        self._make_fleet()
        self.troubles = Troubles(self)
        self.runs: list[Run] = []
        self._commands_left = chance.randrange(2, 9)
        self.is_healing = self._is_checking = False

    def _publish_first(self) -> None:
        chance, catalog = self.engine.random, self.catalog
        self.store = Store(self)
        for place, version in enumerate(VERSIONS):
            base = chance.choice(VERSIONS[:place]) if place and chance.random() < 0.5 else ""
            catalog.add(version, base)
        for version in _STAGED:
            catalog.add(version)
        disk, manifest = self.store.disk, catalog.manifests["v1"]
        for name, content in (("rows", manifest.rows), ("upper", "v1"), ("manifest.json", manifest)):
            disk.write(f"{FOLDER}/v1/{name}", content)
            disk.sync_file(f"{FOLDER}/v1/{name}")
        disk.sync_folder(f"{FOLDER}/v1")
        self.store.published[f"{FOLDER}/v1"] = "v1"

    def _make_fleet(self) -> None:
        chance = self.engine.random
        names = [f"l{number}" for number in range(chance.randrange(1, 4))]
        num_shards = 2 if len(names) > 1 and chance.random() < 0.3 else 1
        shards: tuple[tuple[str, ...], ...] = tuple(tuple(names[index::num_shards]) for index in range(num_shards))
        waits = chance.random() < 0.2
        self.lookups = {
            name: Lookup(self, name, (place % num_shards, num_shards), waits=False) for place, name in enumerate(names)
        }
        self.rankers = {
            f"r{number}": Ranker(self, f"r{number}", shards, waits=waits) for number in range(chance.randrange(1, 4))
        }
        self.servers: dict[str, Server] = {**self.rankers, **self.lookups}
        self.network.hosts |= self.servers

    # --- its life -----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live until the script is over, heal, and see that commands alone bring everything into order.

        Raises:
            Violation: Something happened that must not.
        """
        engine = self.engine
        engine.say(
            "world", "seed {}, {}, rankers {}, lookups {}", self.seed, self.weather, list(self.rankers), list(self.lookups)
        )
        for server in self.servers.values():
            server.boot()
        self._run_until(0.5, lambda: False)
        if any(ranker.state.fault for ranker in self.rankers.values()):  # who waits to be told is told
            self._settle(self._give("adopt", "v1"))
        engine.after(0.0, self._ask)
        engine.after(engine.random.uniform(0.1, 1.0), self._command)
        if self.weather != "calm":
            engine.after(engine.random.expovariate(0.8), self.troubles.begin)
        self._run_until(60.0, lambda: not self._commands_left and all(run.end for run in self.runs))
        self._heal()
        self._finish()

    def _run_until(self, seconds: float, done: Any) -> None:
        end = self.engine.now + seconds
        while self.engine.now < end and not done():
            self.engine.run(min(end, self.engine.now + 0.25))

    def _give(self, command: Command, version: str = "") -> Run:
        self.num_commands += 1
        run = self.operator.give(command, version)
        self.runs.append(run)
        return run

    def _give_later(self, command: Command, version: str) -> None:
        self._give(command, version)

    def _settle(self, run: Run) -> Run:
        """Wait for a command's end."""
        self._run_until(120.0, lambda: bool(run.end))
        if not run.end:
            raise Violation(f"{run.command} has not ended after 120 s")
        return run

    def _command(self) -> None:
        """Give a command, as an operator might; perhaps before the last one is over."""
        chance = self.engine.random
        if self.is_healing or not self._commands_left:
            return
        if any(not run.end for run in self.runs) and chance.random() < 0.8:
            self.engine.after(0.2, self._command)
            return
        self._commands_left -= 1
        document = self.operator.acknowledged
        if document is None or document.is_over:
            served = document.final_version if document is not None else "v1"
            version = chance.choice([other for other in VERSIONS if other != served])
            self.store.publish(version, f"{FOLDER}/{version}")
            for below in self._bases(version):
                self.store.publish(below, f"{FOLDER}/{below}")
            kind = chance.choice(("start", "start", "start", "start", "rollback", "advance"))
            self.engine.after(0.1, self._give_later, kind if document is not None else "start", version)
        else:
            self._give(chance.choice(("advance",) * 8 + ("rollback", "abandon")))
        if chance.random() < 0.15:
            self._stage()
        self.engine.after(chance.uniform(0.05, 1.0), self._command)

    def _bases(self, version: str) -> list[str]:
        base = self.catalog.manifests[version].layer.base
        return [base, *self._bases(base)] if base else []

    def _stage(self) -> None:
        """Put another release into a folder that servers are told to load from, by hand."""
        chance = self.engine.random
        self.store.publish(chance.choice(_STAGED), _STAGING, replace=True)
        if chance.random() < 0.5:
            self.engine.after(chance.uniform(0.0, 0.5), self._replace, chance.choice(_STAGED))
        for name in sorted(self.servers):
            if chance.random() < 0.6:
                self.engine.after(chance.uniform(0.0, 0.3), self._load_by_hand, name)

    def _replace(self, version: str) -> None:
        self.store.publish(version, _STAGING, replace=True)

    def _load_by_hand(self, name: str) -> None:
        load = moves.Load(Path(_STAGING))
        self.network.call(self.operator, name, "admin", load, lambda _: None, 2.0)
        if self.engine.random.random() < 0.3:
            version = self.engine.random.choice(_STAGED)
            self.network.call(self.operator, name, "admin", moves.Retire(version), lambda _: None, 2.0)

    # --- callers ------------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask for a score, again and again."""
        chance = self.engine.random
        if self._is_checking:
            return
        ranker = chance.choice(sorted(self.rankers))
        for _ in range(4 if chance.random() < 0.15 else 1):  # some at once
            wanted = "" if chance.random() < 0.7 else chance.choice((*VERSIONS, *_STAGED))
            self.network.call(self.operator, ranker, "rank", wanted, partial(self._answered, ranker, wanted), _RANK_S)
        self.engine.after(chance.expovariate(1.5 if self.is_healing else 5.0), self._ask)

    def _answered(self, ranker: str, wanted: str, answer: Any) -> None:
        if self.weather == "calm" and not wanted and isinstance(answer, ServingError):
            raise Violation(f"{ranker} did not score a request though nothing had failed: {type(answer).__name__}: {answer}")

    # --- what must hold -----------------------------------------------------------------------------------------------------

    def check_forgotten(self, server: Server, version: str) -> None:
        """A lookup server forgets a version: no ranker that it serves may answer with it.

        Raises:
            Violation: One does.
        """
        if server.role != "lookup" or self.disks_were_lost or server.name in self.left_out or version not in VERSIONS:
            return
        for name, ranker in self.rankers.items():
            if ranker.state.remembered.current == version and name not in self.left_out:
                raise Violation(f"{server.name} forgets version {version}, with which {name} answers")

    def check_refused(self, ranker: Ranker, version: str, error: ServingError | None) -> None:
        """A ranker held a version for a request, and did not score it.

        Raises:
            Violation: It scored with that version before, and nothing had failed.
        """
        if not isinstance(error, VersionNotLoadedError) or self.weather != "calm" or version in _STAGED:
            return
        if version in ranker.scored:
            raise Violation(f"{ranker.name} holds version {version} and has scored with it, and its lookup servers lack it now")

    def _heal(self) -> None:
        """Mend everything that can be mended without a command."""
        self.engine.say("world", "heals")
        self.is_healing = True
        self.network.weather = WEATHERS["calm"]
        self.network.cut.clear()
        for server in self.servers.values():
            server.disk.is_full = False
            boot(server)
        for version in VERSIONS:
            self.store.publish(version, f"{FOLDER}/{version}")
        self._run_until(3.0, lambda: False)
        self.store.check()
        for run in self.runs:
            self._settle(run)

    def _finish(self) -> None:
        """Bring everything into order by commands alone, of a kind that was drawn, and see that it is."""
        document = self.operator.read()
        if document is None:
            for version in ("v1",):
                self._settle(self._give("adopt", version))
        else:
            way: Command = self.engine.random.choice(("advance", "rollback", "abandon"))
            for _ in range(8):
                document = self.operator.read()
                if document is not None and document.is_over:
                    break
                self._settle(self._give(way))
            else:
                raise Violation(f"{way} does not end the rollout: {self.runs[-1].end}: {self.runs[-1].text}")
            if document.final_version in _STAGED:  # its folder may hold another one by now
                self._settle(self._give("adopt", "v1"))
            elif document.left_out:  # who was given up is taken back
                self._settle(self._give("adopt", document.final_version))
            elif self._settle(self._give("advance")).end not in {"done", "refused"}:
                raise Violation(f"advance does not mend what was lost: {self.runs[-1].text}")
        final = self.operator.read()
        if final is None or not final.is_over:
            raise Violation(f"no rollout is over: {self.runs[-1].end}: {self.runs[-1].text}")
        self._check_served(final.final_version)

    def _is_calm(self) -> bool:
        return all(ranker.readiness.said.ready for ranker in self.rankers.values()) and not any(
            server.waiting for server in self.servers.values()
        )

    def _check_served(self, version: str) -> None:
        self._is_checking = True
        self._run_until(1.0, lambda: False)
        self._run_until(6.0, self._is_calm)  # what was left out is taken back, and readiness looks again
        for server in self.servers.values():
            state = server.state
            if state.fault or state.current != version or not state.known:
                raise Violation(f"{server.name} serves {state.current or 'none'}, not {version}: {state.fault}")
            if state.changes or state.openings or server.waiting:
                raise Violation(f"{server.name} has not ended what it was asked: {state.changes} {state.openings}")
        answers: dict[str, Any] = {}
        for name, ranker in self.rankers.items():
            if not ranker.readiness.said.ready:
                raise Violation(f"{name} is not ready: {ranker.readiness.said.reason}")
            self.network.call(self.operator, name, "rank", "", _keep(answers, name), _RANK_S)
        self._run_until(_RANK_S, lambda: len(answers) == len(self.rankers))
        for name, answer in answers.items():
            if answer != Scored(version):
                raise Violation(f"{name} does not score with {version}: {answer!r}")
        for server in self.servers.values():
            if any(server.reading.values()) or any(server.loaded.num_readers(held) for held in server.loaded.versions):
                raise Violation(f"{server.name}: requests that ended still hold {dict(server.reading)}")


def _keep(answers: dict[str, Any], name: str) -> Answer:
    def keep(answer: Any) -> None:
        answers[name] = answer

    return keep


def simulate(seed: int, *, traced: bool = False) -> Ending:
    """Let one world live.

    Args:
        seed: Its seed: the same one gives the same world, event by event.
        traced: Whether to keep its trace.

    Returns:
        How it ended; a violation is told, and not raised.
    """
    world = World(seed, traced=traced)
    violation = ""
    try:
        world.run()
    except Violation as error:
        violation = str(error)
    engine = world.engine
    return Ending(
        seed=seed,
        violation=violation,
        weather=world.weather,
        num_events=engine.num_events,
        num_scores=world.num_scores,
        num_commands=world.num_commands,
        num_faults=world.num_faults,
        seconds=engine.now,
        trace=tuple(engine.trace or ()),
    )
