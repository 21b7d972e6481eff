"""A ranker of a world: asks replicas and shards with the real choice among them, checks what comes, and scores."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.harness.worlds.engine import Violation
from benchmarks.harness.worlds.lookup import MAX_IDS, Rows
from benchmarks.harness.worlds.server import Server
from multifacet.serving.client.balancing import Replica, Replicas
from multifacet.serving.client.replica_group import ReplicaGroup, common_description
from multifacet.serving.client.shard_set import ShardSet, as_whole
from multifacet.serving.core import agreement, readiness
from multifacet.serving.core.faults import Fault
from multifacet.serving.core.reports import HeldVersion, Report, ShadowReport
from multifacet.serving.errors import BrokenAnswerError, ServingError, UnavailableError, VersionNotLoadedError
from multifacet.serving.policy import ReplicaPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.worlds.network import Answer
    from benchmarks.harness.worlds.releases import Half
    from benchmarks.harness.worlds.world import World
    from multifacet.serving.protocol import lookup_pb2
    from multifacet.serving.server.versions import Lease

WATCH_S = 2.0
LOOKUP_S = 0.5
_POLICY = ReplicaPolicy(eject_after=3, retry_reserve=10)


class Scored(NamedTuple):
    """What a caller gets."""

    version: str


class Target:
    """A lookup server as its clients name it."""

    def __init__(self, address: str):
        self.address = address
        self.server = f"lookup server {address}"

    def describe(self, *, timeout_s: float | None = None) -> None:
        """Nothing asks in this way: a world's probes travel by its network."""
        raise NotImplementedError(f"{self.address}, {timeout_s}")


class Group(ReplicaGroup[Target]):
    """The servers of one shard, asked on the ranker's time."""

    def __init__(self, ranker: Ranker, addresses: tuple[str, ...]):
        super().__init__(
            [Target(address) for address in addresses],
            _POLICY,
            seed=ranker.engine.random.randrange(1 << 30),
            clock=ranker.clock,
        )
        self.replicas._begin_probing = self._schedule  # type: ignore[method-assign]
        self._ranker = ranker
        self._is_probing = False

    def _schedule(self) -> None:
        if not self._is_probing:
            self._is_probing = True
            self._ranker.later(_POLICY.probe_after_s, self._probe)

    def _probe(self) -> None:
        out = [replica for replica in self.replicas.all if replica.is_out]
        self._is_probing = bool(out)
        if not out:
            return
        now = self._ranker.clock()
        for replica in out:
            if replica.probe_at <= now:
                self._ranker.describe_one(replica, partial(self._note, replica))
        self._ranker.later(_POLICY.probe_after_s, self._probe)

    def _note(self, replica: Replica[Target], found: Any) -> None:
        if replica.is_out:
            self.replicas.note_probe(replica, well=not isinstance(found, ServingError))


class Ranker(Server):
    """One ranker.

    Args:
        world: Where it stands.
        name: Its address.
        shards: For each shard the addresses of its lookup servers.
        waits: As `Server`.
    """

    def __init__(self, world: World, name: str, shards: tuple[tuple[str, ...], ...], *, waits: bool):
        super().__init__(world, name, "ranker", waits=waits)
        self.shards = shards
        self.set = ShardSet([",".join(addresses) for addresses in shards])

    def boot(self) -> None:
        """Start the process, which knows nothing of the lookup servers and has counted nothing."""
        self.groups = [Group(self, addresses) for addresses in self.shards]
        self.readiness = readiness.Readiness(lookup="lookup servers")
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.shadow = ("", 0.0)
        self.shadow_counts = [0, 0]
        super().boot()
        self._watch()

    # --- what it says -------------------------------------------------------------------------------------------------------

    def held_version(self, version: str, path: str) -> HeldVersion:
        """What it says about a version."""
        return HeldVersion(version=version, path=path, answered=self.answered[version], failed=self.failed[version])

    def report(self) -> Report:
        """What it says that it holds."""
        report = super().report()
        compared, failed = self.shadow_counts
        shadow = ShadowReport(version=self.shadow[0], share=self.shadow[1], requests=compared, compared=compared, failed=failed)
        return Report(
            role=report.role,
            current=report.current,
            held=report.held,
            shadow=shadow,
            process=report.process,
            remembers=report.remembers,
        )

    def set_shadow(self, version: str, share: float) -> None:
        """Score a share of the requests with another version as well."""
        self.shadow, self.shadow_counts = (version, share if version else 0.0), [0, 0]

    # --- what it knows of the lookup servers --------------------------------------------------------------------------------

    def describe_one(self, replica: Replica[Target], then: Callable[[Any], None]) -> None:
        """Ask one lookup server what it holds."""
        self.world.network.call(self, replica.connection.address, "describe", None, then, 1.0)

    def describe(self, then: Callable[[lookup_pb2.LookupDescription | ServingError], None]) -> None:
        """Ask the lookup servers what they hold together."""
        asked = [(index, replica) for index, group in enumerate(self.groups) for replica in group.replicas.good()]
        found: list[tuple[int, Any]] = []

        def take(index: int, answer: lookup_pb2.LookupDescription | ServingError) -> None:
            found.append((index, answer))
            if len(found) == len(asked):
                then(self._together(found))

        for index, replica in asked:
            self.describe_one(replica, partial(take, index))

    def _together(self, found: list[tuple[int, Any]]) -> lookup_pb2.LookupDescription | ServingError:
        shards = []
        for index in range(len(self.shards)):
            descriptions = [answer for shard, answer in found if shard == index and not isinstance(answer, ServingError)]
            if not descriptions:
                return UnavailableError(f"{self.set.servers[index]}: none can be reached")
            common = common_description(descriptions)
            if len(self.shards) == 1:
                return common
            shards.append(self.set.fitting(index, common))
        return as_whole(shards)

    def check(self, version: str, then: Callable[[Fault | None], None]) -> None:
        """See whether the lookup servers hold a version, before it may be chosen."""

        def judge(found: lookup_pb2.LookupDescription | ServingError) -> None:
            if isinstance(found, ServingError):
                then(Fault("unavailable", str(found)))
                return
            fault = readiness.check(readiness.Described.of(found), version, "lookup servers", readiness.Need(version, MAX_IDS))
            then(Fault("not_loaded", fault) if fault else None)

        self.describe(judge)

    def _watch(self) -> None:
        state = self.state
        needs = tuple(readiness.Need(version, MAX_IDS) for version in self.loaded.versions)
        holds = readiness.Holds(state.current, state.fault, remembers=state.known, needs=needs)
        self.readiness, _ = readiness.step(self.readiness, holds)

        def take(found: lookup_pb2.LookupDescription | ServingError) -> None:
            is_away = isinstance(found, ServingError)
            event = readiness.Unreachable(str(found)) if is_away else readiness.Described.of(found)  # type: ignore[arg-type]
            self.readiness, _ = readiness.step(self.readiness, event)

        self.describe(take)
        self.later(WATCH_S, self._watch)

    # --- what it is asked ---------------------------------------------------------------------------------------------------

    def serve(self, kind: str, message: Any, answer: Answer) -> None:  # noqa: ARG002  (it is asked for nothing else)
        """Score a request."""

        def scored(version: str, error: ServingError | None) -> None:
            if version:
                (self.failed if error else self.answered)[version] += 1
            answer(error or Scored(version))
            if error is None and not message and self.shadow[1] > self.engine.random.random():
                Request(self, self.shadow[0], compared)

        def compared(version: str, error: ServingError | None) -> None:
            if version == self.shadow[0]:
                self.shadow_counts[1 if error else 0] += 1

        Request(self, message, scored)


class Request:
    """One ranking request: it holds a version until its rows of all shards are there, checked and scored.

    Args:
        ranker: Where.
        wanted: The version; empty for the current one.
        then: Gets the version that scored it, empty if none was held, and what went wrong.
    """

    def __init__(self, ranker: Ranker, wanted: str, then: Callable[[str, ServingError | None], None]):
        self.ranker = ranker
        self.wanted = wanted
        self.then = then
        self.rows: dict[int, Rows] = {}
        self.is_over = False
        ranker.lease(wanted, self._begin, lambda error: then("", error))

    def _begin(self, lease: Lease[Half], version: str, half: Half) -> None:
        self.lease, self.version, self.upper = lease, version, half.layer.version
        self.deadline = self.ranker.clock() + LOOKUP_S
        for index, group in enumerate(self.ranker.groups):
            group.budget.earn()
            self._ask(index, [], None)

    def _ask(self, index: int, tried: list[Replica[Target]], error: ServingError | None) -> None:
        """Ask a server of a shard, the next one if others did not do."""
        group = self.ranker.groups[index]
        if self.is_over:
            return
        if error is not None and not group.may_ask_another(error, len(tried), self.deadline):
            self._end(error)
            return
        replica = group.replicas.take(self.version, tried)
        if replica is None:
            self._end(error or UnavailableError("there are none"))
            return
        timeout_s = group.attempt_s(len(tried), self.deadline)
        tried = [*tried, replica]
        self.ranker.world.network.call(
            self.ranker,
            replica.connection.address,
            "lookup",
            self.version,
            lambda answer: self._answered(index, tried, answer),
            timeout_s,
        )

    def _answered(self, index: int, tried: list[Replica[Target]], answer: Rows | ServingError) -> None:
        replicas: Replicas[Target] = self.ranker.groups[index].replicas
        error: ServingError | None = answer if isinstance(answer, ServingError) else None
        if isinstance(answer, Rows):  # as a client reads it: see `serving.wire.answers.Asked.check`
            fault = agreement.misfit(self.version, answer.version, (index, len(self.ranker.shards)), answer.shard)
            if fault == "version":
                error = VersionNotLoadedError(f"rows of version {answer.version}", loaded=())
            elif fault:
                error = BrokenAnswerError(f"rows of shard {answer.shard}")
        if error is not None:
            replicas.give_back_failed(tried[-1], self.version, error)
            self._ask(index, tried, error)
            return
        replicas.give_back(tried[-1], late=False)
        if self.is_over or not isinstance(answer, Rows):
            return
        self.rows[index] = answer
        if len(self.rows) == len(self.ranker.shards):
            self._score()

    def _score(self) -> None:
        for rows in self.rows.values():  # as `serving.ranker.scorer.Scorer.embeddings` does
            if agreement.misfit(self.upper, rows.version) == "version":
                self._end(VersionNotLoadedError(f"rows of version {rows.version}: not scored", loaded=()))
                return
        cells = tuple(cell for index in sorted(self.rows) for cell in self.rows[index].cells)
        truth = self.ranker.world.catalog.truth[self.upper]
        if cells != truth or (self.wanted and self.wanted != self.upper):
            raise Violation(
                f"{self.ranker.name}: a mixed score: wanted {self.wanted or 'the current version'}, the upper model is of "
                f"{self.upper}, the rows are {cells}, expected {truth}"
            )
        self.ranker.world.num_scores += 1
        self.ranker.scored.add(self.version)
        self._end(None)

    def _end(self, error: ServingError | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.ranker.world.check_refused(self.ranker, self.version, error)
        self.ranker.end_lease(self.lease)
        self.then(self.version, error)
