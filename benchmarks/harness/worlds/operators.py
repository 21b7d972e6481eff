"""The operator's machine of a world: commands take turns, do what `serving.core.controller` decides, and may be killed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.worlds.disk import TORN, Disk
from benchmarks.harness.worlds.engine import Violation
from benchmarks.harness.worlds.plans import Writing, plan
from benchmarks.harness.worlds.releases import FOLDER
from multifacet.serving.core import controller
from multifacet.serving.core import rollout_events as moves
from multifacet.serving.core.controlling import Command, Controller
from multifacet.serving.core.document import State
from multifacet.serving.core.limits import Limits
from multifacet.serving.core.reports import Report
from multifacet.serving.errors import DeadlineExceededError, ServingError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.worlds.network import Answer, Call
    from benchmarks.harness.worlds.world import World

JOURNAL = "/rollouts/rollout.json"
MOST_ACTIONS = 3000
_LOOK_S = 0.1
_RETRY_S = 0.1
_ADMIN_S = 4.0


class Operator:
    """The machine from which rollouts are driven: its folder of rollouts, and the commands that wait for their turn."""

    def __init__(self, world: World):
        self.world = world
        self.engine = world.engine
        self.name = "ops"
        self.is_up = True
        self.epoch = 1
        self.disk = Disk()
        self.acknowledged: State | None = None
        self.writing: list[State] = []
        self.wanted: Run | None = None
        self.turn: Run | None = None
        self.queue: list[Run] = []
        self.clock_offset_s = 0.0

    def receive(self, kind: str, message: Any, answer: Answer) -> None:
        """Nothing is asked of it."""
        raise NotImplementedError(f"{kind}: {message}, {answer}")

    def clock(self) -> float:
        """Its own seconds."""
        return self.engine.now + self.clock_offset_s

    def kill(self, *, power: bool) -> None:
        """End all commands; the lock goes with them, and so does the wish of one to take over."""
        self.engine.say(self.name, "its commands are killed{}", ", and its power cut" if power else "")
        self.epoch += 1
        for run in (*self.queue, self.turn):
            if run is not None:
                run.end = run.end or "killed"
        self.queue, self.turn, self.wanted = [], None, None
        if power:
            self.disk.cut_power(self.engine.random)

    def read(self) -> State | None:
        """What is written down."""
        found = self.disk.read(JOURNAL)
        if found is TORN:
            raise Violation("the rollout's state is torn")
        if found != self.acknowledged and found not in self.writing:
            raise Violation(f"the rollout's state is {found}, and was told to be {self.acknowledged}")
        self.acknowledged, self.writing = found, []
        state: State | None = found
        return state

    def give(self, command: Command, version: str = "") -> Run:
        """Give a command; it begins when those before it are over."""
        run = Run(self, command, version)
        self.engine.say(self.name, "gives: {} {}", command, version)
        self.queue.append(run)
        if command in {"rollback", "abandon"}:
            self.wanted = run
        self.engine.after(0.001, self.take_turn)
        return run

    def take_turn(self) -> None:
        """Begin with the next command."""
        if self.turn is None and self.queue:
            self.turn = self.queue.pop(0)
            self.turn.begin()

    def ended(self, run: Run) -> None:
        """A command is over."""
        self.engine.say(self.name, "{} ends: {}", run.command, run.end)
        if self.turn is run:
            self.turn = None
        self.engine.after(0.001, self.take_turn)


class Run:
    """One command.

    Attributes:
        end: How it ended; empty while it has not.
        text: What it said at its end.
    """

    def __init__(self, operator: Operator, command: Command, version: str):
        self.operator = operator
        self.command: Command = command
        self.version = version
        self.end = ""
        self.text = ""
        self._epoch = operator.epoch
        self._num_actions = 0
        self._call: Call | None = None
        self._asked = 0

    def begin(self) -> None:
        """The command has its turn: as `serving.rollout.rollout.Rollout`, which holds the lock, does."""
        operator, world = self.operator, self.operator.world
        if operator.wanted is self:
            operator.wanted = None
        before = operator.read()
        if self.command in {"start", "adopt"}:
            adopts = self.command == "adopt"
            path = Path(f"{FOLDER}/{self.version}")
            document = State(
                number=1 if before is None else before.number + 1,
                old_version=self.version if adopts else "",
                old_path=path if adopts else Path(),
                new_version=self.version,
                new_path=path,
                rankers=tuple(world.rankers),
                lookups=tuple(world.lookups),
                limits=Limits() if adopts else world.limits,
                **({"done": "retired", "served": self.version} if adopts else {}),
            )
            self.state = Controller(command=self.command, document=document, previous=before)
        elif before is None:
            self._finish("refused", "there is no rollout")
            return
        else:
            if self.command == "rollback" and "rolled_back" not in (before.doing, before.done):
                before = before.model_copy(update={"reason": "asked for"})
            if self.command == "abandon":
                before = before.model_copy(update={"reason": "given up", "served": "", "left_out": ()})
            self.state = Controller(command=self.command, document=before)
        self._feed(moves.Began(operator.clock()))

    def _alive(self) -> bool:
        return not self.end and self._epoch == self.operator.epoch

    def _later(self, seconds: float, work: Callable[..., None], *arguments: Any) -> None:
        self.operator.engine.after(seconds, self._if_alive, work, arguments)

    def _if_alive(self, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._alive():
            work(*arguments)

    def _finish(self, end: str, text: str) -> None:
        self.end, self.text = end, text
        self.operator.ended(self)

    def _feed(self, event: moves.Event) -> None:
        if not self._alive():
            return
        self.state, actions = controller.step(self.state, event)
        self._num_actions += len(actions)
        if self._num_actions > MOST_ACTIONS:
            raise Violation(f"{self.command} does not end: {self._num_actions} actions")
        for address, _ in self.state.away:
            self.operator.world.left_out.add(address)
        for action in actions:
            self._do(action)

    def _do(self, action: moves.Action) -> None:
        operator = self.operator
        match action:
            case moves.Note(document, event):
                operator.engine.say(operator.name, "notes: {} {}", document.doing or document.done, event)
                operator.writing.append(document)
                Writing(operator.engine, operator, operator.disk, plan("journal"), JOURNAL, {"": document}, self._noted)
            case moves.Ask(address, call):
                self._asked += 1
                if operator.wanted is not None:
                    self._later(0.0, self._feed, moves.Interrupted("another command was asked for"))
                else:
                    self._look(self._asked)
                    self._ask(self._asked, address, call, operator.engine.now + _ADMIN_S)
            case moves.Sleep(seconds):
                if operator.wanted is not None:
                    self._later(0.0, self._feed, moves.Interrupted("another command was asked for"))
                else:
                    self._later(seconds, self._woke)
            case moves.End(kind, text):
                self._finish(kind, text)

    def _woke(self) -> None:
        self._feed(moves.Woke(self.operator.clock()))

    def _noted(self, fault: str) -> None:
        if not fault:
            self.operator.acknowledged, self.operator.writing = self.operator.writing[-1], []
        self._feed(moves.Noted(fault))

    def _look(self, asked: int) -> None:
        """While a server is asked: let another command take over."""
        if asked != self._asked or self.state.asked is None:
            return
        if self.operator.wanted is not None:
            self._asked += 1  # whatever comes now is not heard
            self._feed(moves.Interrupted("another command was asked for"))
            return
        self._later(_LOOK_S, self._look, asked)

    def _ask(self, asked: int, address: str, call: moves.Call, deadline: float) -> None:
        """As `serving.server.admin.AdminClient`: again and again while nobody is there."""
        if asked != self._asked:
            return
        operator = self.operator

        def take(answer: Report | ServingError) -> None:
            if asked != self._asked or not self._alive():
                return
            if isinstance(answer, UnavailableError) and operator.engine.now + _RETRY_S < deadline:
                self._later(_RETRY_S, self._ask, asked, address, call, deadline)
                return
            self._asked += 1
            if isinstance(answer, ServingError):
                away = isinstance(answer, UnavailableError | DeadlineExceededError)
                self._feed(moves.Failed(operator.clock(), str(answer), away=away))
            else:
                self._feed(moves.Answered(operator.clock(), answer))

        left_s = max(0.01, deadline - operator.engine.now)
        operator.world.network.call(operator, address, "admin", call, take, left_s)


class Store:
    """The machine that releases are published on, and that servers open them from."""

    def __init__(self, world: World):
        self.world = world
        self.name = "store"
        self.is_up = True
        self.epoch = 1
        self.disk = Disk()
        self.published: dict[str, str] = {}
        self._busy: set[str] = set()

    def receive(self, kind: str, message: Any, answer: Answer) -> None:
        """Nothing is asked of it over the network: its folder is mounted."""
        raise NotImplementedError(f"{kind}: {message}, {answer}")

    def publish(self, version: str, path: str, *, replace: bool = False) -> None:
        """Write a release; its folder is there whole or not at all."""
        if path in self._busy or (self.disk.read(f"{path}/manifest.json") is not None and not replace):
            return  # as the real one, whose rename would find the name taken
        manifest = self.world.catalog.manifests[version]
        contents = {"rows": manifest.rows, "upper": version, "manifest.json": manifest}
        self.world.engine.say(self.name, "publishes {} at {}", version, path)
        steps = plan("place" if self.disk.read(f"{path}/manifest.json") is not None else "release")

        def done(fault: str) -> None:
            self._busy.discard(path)
            if not fault:
                self.published[path] = version

        self._busy.add(path)
        self.published.pop(path, None)
        Writing(self.world.engine, self, self.disk, steps, path, contents, done)

    def kill(self, *, power: bool) -> None:
        """End the publisher, and perhaps cut the power of the disk that releases are on."""
        self.world.engine.say(self.name, "is killed{}", ", and its power cut" if power else "")
        self.epoch += 1
        self._busy.clear()
        if power:
            self.disk.cut_power(self.world.engine.random)
        self.check()

    def check(self) -> None:
        """Whatever is at a release's name is whole, and what was published is there."""
        disk = self.disk
        for path in sorted({name.rpartition("/")[0] for name in disk.names}):
            if path.rpartition("/")[2].startswith("v") and "." not in path and not self._is_whole(path):
                raise Violation(f"{path} is a release in part")
        for path, version in self.published.items():
            manifest = disk.read(f"{path}/manifest.json")
            if manifest is None or manifest.layer.version != version:
                raise Violation(f"{path} was published as {version}, and is gone")

    def _is_whole(self, path: str) -> bool:
        manifest = self.disk.read(f"{path}/manifest.json")
        return (
            manifest in self.world.catalog.manifests.values()
            and self.disk.read(f"{path}/rows") == manifest.rows
            and self.disk.read(f"{path}/upper") == manifest.layer.version
        )
