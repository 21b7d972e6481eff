"""A server of a world: its process does what `serving.core.holdings` decides, with the real table of versions and leases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.harness.worlds.disk import TORN, Disk
from benchmarks.harness.worlds.engine import Violation
from benchmarks.harness.worlds.plans import Writing, plan
from benchmarks.harness.worlds.releases import FOLDER, Half, identify, open_release
from multifacet.serving.core import holdings
from multifacet.serving.core import holdings_events as events
from multifacet.serving.core import rollout_events as moves
from multifacet.serving.core.faults import Fault
from multifacet.serving.core.held import Holdings
from multifacet.serving.core.reports import HeldVersion, Report
from multifacet.serving.errors import OverloadedError, ServingError, UnavailableError, VersionNotLoadedError
from multifacet.serving.server.versions import Lease, LoadedVersions

if TYPE_CHECKING:
    from benchmarks.harness.worlds.network import Answer
    from benchmarks.harness.worlds.world import World

STATE = "/state/server.json"
DRAIN_S = 1.5
_LOOK_S = 0.05


class Server:
    """One server's machine: a disk, and a process that may end at any moment.

    Args:
        world: Where it stands.
        name: Its address.
        role: ``lookup`` or ``ranker``.
        waits: Whether it waits to be told that its version is the current one if it remembers nothing.
    """

    def __init__(self, world: World, name: str, role: str, *, waits: bool):
        self.world = world
        self.engine = world.engine
        self.name = name
        self.role = role
        self.waits = waits
        self.disk = Disk()
        self.is_up = False
        self.epoch = 0
        self.acknowledged: events.Document | None = None
        self.writing: list[events.Document] = []
        self.has_lost_disk = False
        self.clock_offset_s = 0.0
        self.state = Holdings()
        self.loaded: LoadedVersions[Half] = LoadedVersions(role)
        self.opened: dict[str, Half] = {}
        self.reading: Counter[str] = Counter()
        self.scored: set[str] = set()
        self.waiting: dict[int, Callable[[Fault | None], None]] = {}
        self.num_tickets = 0

    # --- its process --------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the process; it finds what its state file remembers."""
        self.epoch += 1
        self.is_up = True
        self.state = Holdings()
        self.loaded = LoadedVersions(self.role)
        self.opened, self.waiting = {}, {}
        self.reading, self.scored = Counter(), set()
        document = self.disk.read(STATE)
        if document is TORN:
            raise Violation(f"{self.name}: the state file is torn, and the server cannot start")
        if not self.has_lost_disk and document != self.acknowledged and document not in self.writing:
            raise Violation(f"{self.name} remembers {document}, and had told that it is {self.acknowledged}")
        self.acknowledged, self.writing, self.has_lost_disk = document, [], False
        self.engine.say(self.name, "starts, and remembers {}", document)
        self.feed(events.Started(document, (f"{FOLDER}/v1",), administered=True, waits=self.waits))

    def kill(self, *, power: bool) -> None:
        """End the process, and perhaps cut the machine's power."""
        if not self.is_up:
            return
        self.engine.say(self.name, "is killed{}", ", and its power cut" if power else "")
        self.is_up = False
        self.epoch += 1
        if power:
            self.disk.cut_power(self.engine.random)

    def lose_disk(self) -> None:
        """Forget all that was remembered; the process is not running."""
        self.engine.say(self.name, "loses its disk")
        full = self.disk.is_full
        self.disk = Disk()
        self.disk.is_full = full
        self.acknowledged, self.writing, self.has_lost_disk = None, [], True

    def clock(self) -> float:
        """The machine's own seconds, which may jump ahead."""
        return self.engine.now + self.clock_offset_s

    def later(self, seconds: float, work: Callable[..., None], *arguments: Any) -> None:
        """Do something later, if the process is still there."""
        self.engine.after(seconds, self._if_alive, self.epoch, work, arguments)

    def _if_alive(self, epoch: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.is_up and self.epoch == epoch:
            work(*arguments)

    # --- what it holds ------------------------------------------------------------------------------------------------------

    def feed(self, event: events.Event) -> None:
        """Take a step, and do what it asks for."""
        self.state, actions = holdings.step(self.state, event)
        left = [action for action in actions if not self._publish(action)]
        state = self.state
        if state.current and (state.entry(state.current) is None or self.loaded.current != state.current):
            raise Violation(f"{self.name}: version {state.current} is the current one, and is not served")
        for action in left:
            self._do(action)

    def _publish(self, action: events.Action) -> bool:
        match action:
            case events.Hold(version, path):
                half = self.opened.pop(path)
                if half.layer.version != version:
                    raise Violation(f"{self.name} serves version {half.layer.version} under the name of {version}")
                self.loaded.put(version, half)
            case events.Drop(path):
                self.opened.pop(path, None)
            case events.Choose(version):
                self.engine.say(self.name, "serves {}", version)
                self.loaded.make_current(version)
            case events.Reopen(version):
                self.loaded.reopen(version)
            case events.Forget(version):
                self.engine.say(self.name, "forgets {}", version)
                if self.reading[version]:
                    raise Violation(f"{self.name} forgets version {version} while {self.reading[version]} requests read it")
                self.world.check_forgotten(self, version)
                self.scored.discard(version)
                self.loaded.forget(version)
            case _:
                return False
        return True

    def _do(self, action: events.Action) -> None:  # noqa: C901  (a branch for each action)
        chance = self.engine.random
        match action:
            case events.Identify(path):
                self.later(chance.uniform(0.001, 0.01), self._identify, path)
            case events.Open(path):
                self.later(chance.uniform(0.005, 0.2), self._open, path)
            case events.Check(version):
                self.check(version, lambda fault: self.feed(events.Checked(fault)))
            case events.Drain(version, timeout_s):
                self.loaded.close(version)
                self._drain(version, self.engine.now + timeout_s)
            case events.Write(document):
                self.writing.append(document)
                Writing(self.engine, self, self.disk, plan("state"), STATE, {"": document}, self._written)
            case events.Tell(ticket, _, fault):
                if fault is None:
                    self.acknowledged = self.state.remembered
                self.waiting.pop(ticket)(fault)
            case events.SetShadow(version, share):
                self.set_shadow(version, share)
            case events.Warn(text):
                self.engine.say(self.name, "warns: {}", text)
            case events.Fail(fault):
                raise Violation(f"{self.name} cannot start: {fault.text}")

    def _written(self, fault: str) -> None:
        if not fault:
            self.acknowledged = self.writing[-1]
            self.writing = []
        self.feed(events.Written(Fault("storage", fault) if fault else None))

    def _identify(self, path: str) -> None:
        found = identify(self.world.store.disk, path)
        if found is None:
            self.feed(events.Refused(path, Fault("artifact", f"{path} is not there")))
        else:
            self.feed(events.Identified(path, found.layer.version))

    def _open(self, path: str) -> None:
        held = dict(self.loaded.items())
        half = open_release(self.world.store.disk, path, held.get)
        if isinstance(half, str):
            self.feed(events.Refused(path, Fault("artifact", half)))
        else:
            self.opened[path] = half
            self.feed(events.Opened(path, half.layer.version))

    def _drain(self, version: str, until: float) -> None:
        num_readers = self.loaded.num_readers(version)
        if num_readers and self.engine.now < until:
            self.later(_LOOK_S, self._drain, version, until)
            return
        self.feed(events.Drained(num_readers))

    def check(self, version: str, then: Callable[[Fault | None], None]) -> None:  # noqa: ARG002  (a ranker needs it)
        """See whether a version may be chosen."""
        self.later(0.0, then, None)

    def set_shadow(self, version: str, share: float) -> None:
        """Score a share of the requests with another version as well."""

    # --- what it is asked ---------------------------------------------------------------------------------------------------

    def receive(self, kind: str, message: Any, answer: Answer) -> None:
        """Take a message from the network."""
        if kind == "admin":
            self._administer(message, answer)
        else:
            self.later(0.0, self.serve, kind, message, answer)

    def serve(self, kind: str, message: Any, answer: Answer) -> None:
        """Take a message that is about what is served."""
        raise NotImplementedError

    def _administer(self, call: moves.Call, answer: Answer) -> None:
        if self.state.stage != "running":
            answer(UnavailableError(f"{self.name} is starting"))
            return
        if isinstance(call, moves.Status):
            answer(self.report())
            return
        self.num_tickets += 1
        ticket = self.num_tickets
        self.waiting[ticket] = lambda fault: answer(self.report() if fault is None else error_of(fault))
        self.engine.say(self.name, "is asked: {}", call)
        match call:
            case moves.Load(path):
                self.feed(events.LoadAsked(ticket, str(path)))
            case moves.Choose(version):
                self.feed(events.ChooseAsked(ticket, version))
            case moves.Retire(version):
                self.feed(events.RetireAsked(ticket, version, DRAIN_S))
            case moves.SetShadow(version, share):
                self.feed(events.ShadowAsked(ticket, version, share))

    def report(self) -> Report:
        """What it says that it holds."""
        held = tuple(
            self.held_version(version, entry.path) for version in self.loaded.versions if (entry := self.state.entry(version))
        )
        return Report(
            role=self.role,
            current=self.loaded.current,
            held=held,
            process=f"{self.name}-{self.epoch}",
            remembers=self.state.known,
        )

    def held_version(self, version: str, path: str) -> HeldVersion:
        """What it says about a version."""
        return HeldVersion(version=version, path=path)

    # --- readers ------------------------------------------------------------------------------------------------------------

    def lease(self, wanted: str, then: Callable[[Lease[Half], str, Half], None], fail: Callable[[ServingError], None]) -> None:
        """Hold a version for a request; other things may happen between the steps."""
        lease = self.loaded.lease(wanted)
        try:
            lease.find()
        except VersionNotLoadedError as error:
            fail(error)
            return
        if self.engine.random.random() < 0.8:
            self._count(lease, wanted, then, fail)
        else:
            self.later(self.engine.random.uniform(0.0, 0.1), self._count, lease, wanted, then, fail)

    def _count(
        self,
        lease: Lease[Half],
        wanted: str,
        then: Callable[[Lease[Half], str, Half], None],
        fail: Callable[[ServingError], None],
    ) -> None:
        lease.count()
        if not lease.confirm():
            self.lease(wanted, then, fail)
            return
        version = lease._version
        if self.state.entry(version) is None:
            raise Violation(f"{self.name}: a request reads version {version}, which was forgotten")
        self.reading[version] += 1
        then(lease, version, lease._loaded)

    def end_lease(self, lease: Lease[Half]) -> None:
        """A request reads no longer."""
        self.reading[lease._version] -= 1
        lease.end()


def error_of(fault: Fault) -> ServingError:
    """What a caller gets for a fault."""
    kinds: dict[str, type[ServingError]] = {"unavailable": UnavailableError, "overloaded": OverloadedError}
    if fault.kind == "not_loaded":
        return VersionNotLoadedError(fault.text, loaded=())
    return kinds.get(fault.kind, ServingError)(fault.text)
