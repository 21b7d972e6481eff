"""A model of rollouts, small enough to be exhausted: every command, broken off anywhere, from every state that is reached.

The controller is the real one, step for step. A server is what it holds and remembers, and does a call at once or not at all
(`Server.do`; a test holds it to the real step functions). A state is what is written down of the rollout, and all servers,
between two commands. From each state every command is given: as it is, with each server away in turn, with a new version that
fails its requests, and broken off at each of its calls and writes, before and after that took effect. One server may lose its
disk.

What must hold:

- a version that a ranker answers with is held by every lookup server, and no lookup server is told to forget a version that a
  ranker holds, unless a server was given up or lost its disk;
- what a server holds includes the version that is its current one;
- a rollback ends with the old version everywhere and the new one nowhere, an abandoned rollout ends, and so does one that is
  advanced;
- every command ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.worlds.model_states import Broken, Deployment, Explored, Server, describe
from multifacet.serving.core import controller
from multifacet.serving.core import rollout_events as moves
from multifacet.serving.core.controlling import Command, Controller
from multifacet.serving.core.document import State
from multifacet.serving.core.limits import Limits
from multifacet.serving.core.reports import HeldVersion, Report, ShadowReport

MOST_ACTIONS = 400
LIMITS = Limits(shadow_share=1.0, min_compared=1, shadow_timeout_s=1.0, watch_s=0.0, min_requests=1)
_WAYS_OUT: tuple[Command, ...] = ("rollback", "abandon", "advance")
_FORGIVEN = ("lost before", "lost behind", "refused")


class Model:
    """All states of rollouts among some servers.

    Args:
        num_rankers: How many rankers.
        num_lookups: How many lookup servers.
        num_versions: How many versions.
        losses: Whether a server may lose its disk.
    """

    def __init__(self, num_rankers: int, num_lookups: int, num_versions: int, *, losses: bool = True):
        self.rankers = tuple(f"r{number}" for number in range(num_rankers))
        self.lookups = tuple(f"l{number}" for number in range(num_lookups))
        self.addresses = (*self.rankers, *self.lookups)
        self.versions = tuple(f"v{number + 1}" for number in range(num_versions))
        self.losses = losses
        self.num_steps = self.num_commands = 0
        self._documents: dict[tuple[object, ...], State] = {}
        self._led_out: set[tuple[Command, Deployment]] = set()
        self.first = Deployment(None, (Server(),) * len(self.addresses))

    def explore(self, most: int | None = None) -> Explored:
        """Reach every state, and check each.

        Args:
            most: Stop after so many states; None reaches them all.

        Raises:
            Broken: What must hold does not; the states that lead there are told.
        """
        came_from: dict[Deployment, Deployment | None] = {self.first: None}
        left = deque([self.first])
        num = 0
        while left and (most is None or num < most):
            deployment = left.popleft()
            num += 1
            try:
                self._check_ways_out(deployment)
                for reached in self._next(deployment):
                    if reached not in came_from:
                        came_from[reached] = deployment
                        left.append(reached)
            except Broken as error:
                way = [deployment]
                while (before := came_from[way[-1]]) is not None:
                    way.append(before)
                told = "\n".join(f"  {describe(state)}" for state in reversed(way))
                raise Broken(f"{error}\nafter:\n{told}") from error
        return Explored(num, self.num_steps, self.num_commands, is_whole=not left)

    def _next(self, deployment: Deployment) -> Iterator[Deployment]:
        """Whatever may follow a state."""
        if self.losses and not deployment.lost and deployment.document is not None:
            for place, address in enumerate(self.addresses):
                servers = (*deployment.servers[:place], Server(known=False), *deployment.servers[place + 1 :])
                yield Deployment(deployment.document, servers, frozenset({address}))
        for command, version in self._commands(deployment.document):
            for away in ("", *self.addresses):
                yield from self._run(deployment, command, version, away=away, breaks=not away)
            if command == "advance":
                yield from self._run(deployment, command, version, fails=True, breaks=False)

    def _commands(self, document: State | None) -> Iterator[tuple[Command, str]]:
        if document is None or document.is_over:
            for version in self.versions:
                yield "start", version
        if document is not None:
            for command in _WAYS_OUT:
                yield command, ""

    # --- one command --------------------------------------------------------------------------------------------------------

    def _begin(self, deployment: Deployment, command: Command, version: str) -> Controller:
        document = deployment.document
        if command == "start" or document is None:
            plan = State(
                number=1,
                old_version="",
                old_path=Path(),
                new_version=version,
                new_path=Path(f"/{version}"),
                rankers=self.rankers,
                lookups=self.lookups,
                limits=LIMITS,
            )
            return Controller(command="start", document=plan, previous=document)
        if command == "abandon":
            document = document.model_copy(update={"served": "", "left_out": ()})
        return Controller(command=command, document=document)

    def _run(
        self,
        deployment: Deployment,
        command: Command,
        version: str = "",
        *,
        away: str = "",
        fails: bool = False,
        breaks: bool = False,
    ) -> list[Deployment]:
        """Give a command; the states that it may end in, of which the first is that without a break."""
        run = _Run(self, deployment, away=away, fails=fails)
        ends = run.drive(self._begin(deployment, command, version), moves.Began(0.0), breaks=breaks)
        self.num_commands += len(ends)
        return ends

    def report(self, address: str, server: Server, *, new_version: str, fails: bool, count: int) -> Report:
        """What a server says that it holds."""
        bad = 50 * count if fails else 0
        held = tuple(
            HeldVersion(version=version, path=f"/{version}", answered=count, failed=bad if version == new_version else 0)
            for version in server.held
        )
        is_ranker = address in self.rankers
        shadow = ShadowReport()
        if is_ranker and server.shadow:
            shadow = ShadowReport(version=server.shadow, share=1.0, requests=1, compared=1, failed=bad)
        return Report(
            role="ranker" if is_ranker else "lookup",
            current=server.current,
            held=held,
            shadow=shadow,
            process=address,
            remembers=server.known,
        )

    # --- what must hold -----------------------------------------------------------------------------------------------------

    def check(self, servers: dict[str, Server], exempt: frozenset[str]) -> None:
        """What must hold at every moment."""
        for address, server in servers.items():
            if server.current not in server.held:
                raise Broken(f"{address} has {server.current} for its current version and holds {server.held}")
        for ranker in self.rankers:
            for lookup in self.lookups:
                if ranker in exempt or lookup in exempt:
                    continue
                if servers[ranker].current not in servers[lookup].held:
                    raise Broken(f"{ranker} answers with {servers[ranker].current}, which {lookup} does not hold")

    def _check_ways_out(self, deployment: Deployment) -> None:
        """From every state each command leads to an end, if nothing breaks it off."""
        if deployment.document is None:
            return
        for command in _WAYS_OUT:
            state, passed = deployment, []
            for _ in range(8):
                if (command, state) in self._led_out:
                    break
                passed.append((command, state))
                state = self._run(state, command)[0]
                if state.document is not None and state.document.is_over:
                    self._check_served(command, self._run(state, "advance")[0])  # which gives to servers what they lost
                    break
            else:
                raise Broken(f"{command} does not end: {describe(state)}")
            self._led_out.update(passed)

    def known(self, document: State | None) -> State | None:
        """The one object of a document; counts and reasons are for people."""
        if document is None:
            return None
        key = (
            document.old_version,
            document.old_paths,
            document.new_version,
            document.done,
            document.doing,
            document.served,
            document.served_path,
            document.left_out,
        )
        if key not in self._documents:
            self._documents[key] = document.model_copy(update={"number": 1, "reason": ""})
        return self._documents[key]

    def _check_served(self, command: str, state: Deployment) -> None:
        document = state.document
        assert document is not None  # noqa: S101
        kept = document.final_version
        for address, server in zip(self.addresses, state.servers, strict=True):
            if address in document.left_out:
                continue
            if server.current != kept or not server.known:
                raise Broken(f"after {command} {address} serves {server.current}, not {kept}")
            gone = {document.old_version, document.new_version} - {kept}
            if gone & set(server.held):
                raise Broken(f"after {command} {address} still holds {sorted(gone & set(server.held))}")
        if command == "rollback" and kept != document.old_version and document.done != "abandoned":
            raise Broken(f"a rollback ends with {kept}, not {document.old_version}")


class _Run:
    """One command among servers that may be away."""

    def __init__(self, model: Model, deployment: Deployment, *, away: str, fails: bool):
        self.model = model
        self.deployment = deployment
        self.away = away
        self.fails = fails

    def drive(self, state: Controller, event: moves.Event, *, breaks: bool) -> list[Deployment]:
        """Take steps to the command's end; every way in which it may be broken off once is taken beside."""
        model = self.model
        servers = dict(zip(model.addresses, self.deployment.servers, strict=True))
        document = self.deployment.document
        beside: list[Deployment] = []
        left, now, num_actions = [event], 0.0, 0
        while left:
            state, actions = controller.step(state, left.pop(0))
            model.num_steps += 1
            for action in actions:
                num_actions += 1
                if num_actions > MOST_ACTIONS:
                    raise Broken(f"{state.command} does not end")
                match action:
                    case moves.Note(written, _):
                        if breaks:
                            beside += (self._end(document, servers), self._end(written, servers))
                        document = written
                        left.append(moves.Noted())
                    case moves.Ask():
                        if breaks:
                            beside += self._broken(state, document, servers, action, now)
                        left.append(self._ask(state, servers, action, now))
                        model.check(servers, self._exempt(state))
                    case moves.Sleep(seconds):
                        now += seconds
                        left.append(moves.Woke(now))
        if state.over is None:
            raise Broken(f"{state.command} stops without an end")
        is_over = document is not None and document.is_over and not document.left_out
        looked = bool(state.phases) and state.command != "start" and not self.away  # at every server
        mended = is_over and looked and (state.over.kind in {"done", "rolled back"} or state.command == "advance")
        return [self._end(document, servers, mended=mended), *beside]

    def _broken(
        self, state: Controller, document: State | None, servers: dict[str, Server], ask: moves.Ask, now: float
    ) -> Iterator[Deployment]:
        """The ends of a command whose next call is broken off."""
        if not isinstance(ask.call, moves.Status):  # before it took effect nothing has changed since the last call
            after = dict(servers)
            self._ask(state, after, ask, now)
            self.model.check(after, self._exempt(state))
            yield self._end(document, after)
        if state.command != "abandon":  # a call that fails ends every other command, as a kill does
            return
        for how in _FORGIVEN:
            after = dict(servers)
            if how.endswith("behind"):
                self._ask(state, after, ask, now)
            event = moves.Failed(now, how, away=how != "refused")
            rest = Deployment(document, tuple(after.values()), self.deployment.lost)
            yield _Run(self.model, rest, away=self.away, fails=self.fails).drive(state, event, breaks=False)[0]

    def _ask(self, state: Controller, servers: dict[str, Server], ask: moves.Ask, now: float) -> moves.Event:
        address, model = ask.address, self.model
        if address == self.away:
            return moves.Failed(now, "away", away=True)
        if isinstance(ask.call, moves.Choose | moves.SetShadow) and address in model.rankers and ask.call.version:
            lacking = [other for other in model.lookups if other != self.away and ask.call.version not in servers[other].held]
            if lacking:
                return moves.Failed(now, f"{ask.call.version} is not held by {lacking}")
        if isinstance(ask.call, moves.Retire) and address in model.lookups:
            self._check_retired(state, servers, address, ask.call.version)
        done = servers[address].do(ask.call)
        if isinstance(done, str):
            return moves.Failed(now, done)
        servers[address] = done
        new_version = state.document.new_version
        return moves.Answered(
            now, model.report(address, done, new_version=new_version, fails=self.fails, count=model.num_steps)
        )

    def _check_retired(self, state: Controller, servers: dict[str, Server], lookup: str, version: str) -> None:
        exempt = self._exempt(state)
        for ranker in self.model.rankers:
            if ranker not in exempt and lookup not in exempt and version in servers[ranker].held:
                raise Broken(f"{lookup} is told to forget {version}, which {ranker} holds")

    def _exempt(self, state: Controller) -> frozenset[str]:
        return frozenset({*(address for address, _ in state.away), *state.document.left_out, *self.deployment.lost, self.away})

    def _end(self, document: State | None, servers: dict[str, Server], *, mended: bool = False) -> Deployment:
        given_up = document.left_out if document is not None and document.is_over else ()
        lost = frozenset() if mended else self.deployment.lost | frozenset(given_up)
        return Deployment(self.model.known(document), tuple(servers.values()), lost)
