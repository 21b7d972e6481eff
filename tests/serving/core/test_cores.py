"""The pure cores in worlds of their own: any order of events, failures and kills; the real files and sockets are elsewhere."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from multifacet.serving.core import controller, controlling, held, holdings, judging, readiness
from multifacet.serving.core import holdings_events as events
from multifacet.serving.core import rollout_events as moves
from multifacet.serving.core.document import State
from multifacet.serving.core.faults import Fault
from multifacet.serving.core.holdings_events import Document, Entry
from multifacet.serving.core.limits import Limits, exceeds
from multifacet.serving.core.reports import HeldVersion, Report, ShadowReport

PATHS = {f"/{name}": name for name in "abcd"}
FULL = Fault("storage", "the disk is full")


class Host:
    """A server's process and disk: actions are done in any order, may fail, and the process may be killed between any two."""

    def __init__(self, chooser: random.Random, *, configured: tuple[str, ...] = ("/a",)):
        self.chooser = chooser
        self.configured = configured
        self.disk: Document | None = None
        self.disk_is_full = False
        self.broken: set[str] = set()
        self.boot()

    def boot(self):
        self.state = held.Holdings()
        self.pending: list[events.Action] = []
        self.served: dict[str, str] = {}
        self.current = ""
        self.opened: set[str] = set()
        self.answers: dict[int, Fault | None] = {}
        self.failed = False
        self.send(events.Started(self.disk, self.configured, administered=True))
        while self.state.stage not in ("running", "failed"):
            self.work()

    def send(self, event):
        self.state, actions = holdings.step(self.state, event)
        assert hash(self.state) == hash(self.state)
        for action in actions:
            match action:
                case events.Hold(version, path):
                    assert path in self.opened, "served without having been opened"
                    self.opened.remove(path)
                    self.served[version] = path
                case events.Drop(path):
                    self.opened.remove(path)
                case events.Choose(version):
                    assert not version or version in self.served
                    self.current = version
                case events.Forget(version):
                    del self.served[version]
                case events.Tell(ticket, _, fault):
                    assert ticket not in self.answers, "told twice"
                    self.answers[ticket] = fault
                case events.Fail():
                    self.failed = True
                case events.Reopen() | events.Warn() | events.SetShadow():
                    pass
                case _:
                    self.pending.append(action)
        assert not self.state.current or self.state.entry(self.state.current) is not None
        assert self.current == self.state.current

    def work(self):
        action = self.pending.pop(self.chooser.randrange(len(self.pending)))
        match action:
            case events.Identify(path):
                gone = path in self.broken
                self.send(events.Refused(path, Fault("artifact", "gone")) if gone else events.Identified(path, PATHS[path]))
            case events.Open(path, version):
                if path in self.broken:
                    self.send(events.Refused(path, Fault("artifact", "damaged")))
                else:
                    self.opened.add(path)
                    self.send(events.Opened(path, version))
            case events.Check():
                self.send(events.Checked(Fault("not_loaded", "not there") if self.chooser.random() < 0.1 else None))
            case events.Drain():
                self.send(events.Drained(1 if self.chooser.random() < 0.2 else 0))
            case events.Write(document):
                if self.disk_is_full:
                    self.send(events.Written(FULL))
                else:
                    self.disk = document
                    self.send(events.Written())
            case _:
                raise AssertionError(action)


@pytest.mark.parametrize("block", range(4))
def test_a_server_holds_what_it_said_yes_to_whenever_it_is_killed(block):
    for seed in range(block * 250, (block + 1) * 250):
        chooser = random.Random(seed)
        host = Host(chooser)
        asked: dict[int, tuple[str, str]] = {}
        ticket = 0
        for _ in range(chooser.randrange(40)):
            host.disk_is_full = chooser.random() < 0.15
            if host.pending and chooser.random() < 0.6:
                host.work()
                continue
            ticket += 1
            what, version = chooser.choice(("load", "choose", "retire")), chooser.choice("abcd")
            asked[ticket] = (what, version)
            event = {
                "load": events.LoadAsked(ticket, f"/{version}"),
                "choose": events.ChooseAsked(ticket, version),
                "retire": events.RetireAsked(ticket, version),
            }[what]
            host.send(event)
        before, told = host.state, dict(host.answers)
        unanswered = [asked[number] for number in asked if number not in told]
        host.disk_is_full = chooser.random() < 0.5
        host.boot()  # killed, and started again with the configuration of the first day; its disk may still be full
        held = set(host.served)
        touched = {version for _, version in unanswered}
        assert host.state.current == before.current or ("choose", host.state.current) in unanswered
        for entry in before.held:
            assert entry.version in held or ("retire", entry.version) in unanswered
        for version in held:
            assert before.entry(version) is not None or version in touched
        # Whatever was left undone can be done now.
        host.disk_is_full = False
        host.send(events.LoadAsked(9001, "/d"))
        while host.pending:
            host.work()
        assert host.answers[9001] is None
        assert "d" in host.served


def test_five_who_ask_for_one_release_open_it_once():
    host = Host(random.Random(0))
    host.work()  # what it holds is written down
    for ticket in range(5):
        host.send(events.LoadAsked(ticket, "/b"))
    assert host.pending == [events.Identify("/b")]
    while host.pending:
        host.work()
    assert host.answers == dict.fromkeys(range(5))
    host.send(events.LoadAsked(5, "/b"))
    host.work()  # its manifest is read, and no more
    assert not host.pending
    assert host.answers[5] is None


def test_what_is_remembered_and_gone_stays_remembered_and_nothing_else_is_served_in_its_place():
    host = Host(random.Random(0))
    host.disk = Document((Entry("a", "/a"), Entry("b", "/b")), "b")
    host.broken = {"/b"}
    host.boot()
    assert host.served == {"a": "/a"}
    assert (host.current, bool(host.state.fault)) == ("", True)
    assert host.disk.current == "b"
    host.send(events.ChooseAsked(1, "a"))
    while host.pending:
        host.work()
    assert (host.current, host.state.fault) == ("a", "")
    host.send(events.RetireAsked(2, "b"))
    while host.pending:
        host.work()
    assert host.disk == Document((Entry("a", "/a"),), "a")


def test_a_release_that_moved_is_found_where_the_configuration_says():
    host = Host(random.Random(0), configured=("/c",))
    host.disk = Document((Entry("c", "/gone"),), "c")
    host.broken = {"/gone"}
    host.boot()
    assert (host.current, host.state.fault) == ("c", "")
    assert host.state.remembered.releases[0].path == "/c"


def test_what_could_not_be_written_at_the_start_is_written_before_anybody_is_told_that_it_is_remembered():
    host = Host(random.Random(0))
    host.disk = None
    host.disk_is_full = True
    host.boot()
    while host.pending:
        host.work()
    assert host.disk is None
    host.send(events.ChooseAsked(1, "a"))  # it is the current one already, and nobody said so yet
    while host.pending:
        host.work()
    assert host.answers[1] == FULL
    host.disk_is_full = False
    host.send(events.ChooseAsked(2, "a"))
    while 2 not in host.answers:
        host.work()
    assert host.answers[2] is None
    assert host.disk == Document((Entry("a", "/a"),), "a")
    host.boot()
    assert (host.state.known, host.current) == (True, "a")


def test_a_server_that_remembers_nothing_may_wait_to_be_told():
    state, _ = holdings.step(held.Holdings(), events.Started(None, ("/a",), administered=True, waits=True))
    state, _ = holdings.step(state, events.Identified("/a", "a"))
    state, _ = holdings.step(state, events.Opened("/a", "a"))
    state, _ = holdings.step(state, events.Written())
    assert "nobody said yet" in state.fault
    state, actions = holdings.step(state, events.ChooseAsked(1, "a"))
    assert actions == (events.Check("a"),)
    state, _ = holdings.step(state, events.Checked())
    assert state.fault == ""


# --- the controller ---------------------------------------------------------------------------------------------------------


class Fleet:
    """Servers as the controller sees them: each call may fail before or after it took effect, servers lose disks or vanish."""

    def __init__(self, chooser: random.Random):
        self.chooser = chooser
        self.addresses = ("r0", "r1", "l0", "l1")
        self.servers = {address: (["old"], "old") for address in self.addresses}
        self.shadows = dict.fromkeys(("r0", "r1"), ("", 0.0))
        self.vanished: set[str] = set()
        self.unopenable: set[str] = set()
        self.trouble = 0.0

    def ask(self, ask: moves.Ask, now: float) -> moves.Event:
        if ask.address in self.vanished:
            return moves.Failed(now, "no route", away=True)
        if self.chooser.random() < self.trouble / 2:
            return moves.Failed(now, "reset before", away=True)
        fault = self.do(ask.address, ask.call)
        if self.chooser.random() < self.trouble / 2:
            return moves.Failed(now, "reset behind", away=True)
        return moves.Failed(now, fault) if fault else moves.Answered(now, self.report(ask.address))

    def do(self, address: str, call: moves.Call) -> str:
        held, current = self.servers[address]
        match call:
            case moves.Load(path):
                if path.name in self.unopenable:
                    return f"{path} is gone"
                if path.name not in held:
                    held.append(path.name)
            case moves.Choose(version):
                if version not in held:
                    return "not held"
                lacking = [
                    other for other in ("l0", "l1") if other not in self.vanished and version not in self.servers[other][0]
                ]
                if address.startswith("r") and lacking:
                    return f"not at {lacking}"
                self.servers[address] = (held, version)
            case moves.Retire(version):
                if version == current:
                    return "current"
                if version in held:
                    held.remove(version)
            case moves.SetShadow(version, share):
                self.shadows[address] = (version, share)
        return ""

    def report(self, address: str) -> Report:
        held, current = self.servers[address]
        version, share = self.shadows.get(address, ("", 0.0))
        return Report(
            role="ranker" if address.startswith("r") else "lookup",
            current=current,
            held=tuple(HeldVersion(version=name, path=f"/{name}") for name in held),
            shadow=ShadowReport(version=version, share=share, requests=10, compared=10 if version else 0),
        )

    def lose_disk(self, address: str) -> None:
        self.servers[address] = (["old"], "old")
        if address in self.shadows:
            self.shadows[address] = ("", 0.0)


PLAN = State(
    number=1,
    old_version="old",
    old_path=Path("/old"),
    new_version="new",
    new_path=Path("/new"),
    rankers=("r0", "r1"),
    lookups=("l0", "l1"),
    limits=Limits(shadow_share=1, min_compared=1, watch_s=0.1),
)


def give(fleet: Fleet, command: str, document: State, *, kill_after: int | None = None) -> tuple[State, str]:
    """Give a command, killed after so many actions; what is on disk then, and how it ended."""
    state = controlling.Controller(command=command, document=document)
    left: list[moves.Event] = [moves.Began(0.0)]
    disk, now, num_actions = document, 0.0, 0
    while left:
        state, actions = controller.step(state, left.pop(0))
        assert hash(state) == hash(state)
        for action in actions:
            num_actions += 1
            if kill_after is not None and num_actions > kill_after:
                return disk, "killed"
            assert num_actions < 2000, "it does not end"
            match action:
                case moves.Note(written, _):
                    disk = written
                    left.append(moves.Noted())
                case moves.Ask():
                    left.append(fleet.ask(action, now))
                case moves.Sleep(seconds):
                    now += seconds
                    left.append(moves.Woke(now))
    assert state.over is not None
    return disk, state.over.kind


@pytest.mark.parametrize("block", range(4))
def test_commands_alone_end_every_rollout_in_a_served_version(block):
    ends = set()
    for seed in range(block * 250, (block + 1) * 250):
        chooser = random.Random(seed)
        fleet, document = Fleet(chooser), PLAN
        for _ in range(chooser.randrange(12)):
            fleet.trouble = chooser.choice((0.0, 0.0, 0.3))
            if chooser.random() < 0.2:
                fleet.lose_disk(chooser.choice(fleet.addresses))
            command = chooser.choice(("advance", "advance", "advance", "rollback", "abandon"))
            document, _ = give(fleet, command, document, kill_after=chooser.choice((None, chooser.randrange(30))))
        fleet.trouble = 0.0
        fleet.unopenable = set(chooser.sample(("old", "new"), chooser.choice((0, 0, 1))))
        if chooser.random() < 0.3:
            fleet.vanished = {chooser.choice(fleet.addresses)}
        for command in ("advance", "rollback", "abandon"):  # as an operator tries them, the one that should always do last
            how = ""
            for _ in range(7):
                document, how = give(fleet, command, document)
                if document.is_over or how == "failed":
                    break
            if document.is_over and how in {"done", "rolled back"}:
                break
        there = [address for address in fleet.addresses if address not in fleet.vanished]
        possible = _possible(fleet, there)
        if not document.is_over:
            assert not possible, (seed, document, fleet.servers)
            continue
        ends.add(document.done)
        document, how = give(fleet, "advance", document) if not fleet.vanished and not fleet.unopenable else (document, how)
        served = {fleet.servers[address][1] for address in there if address not in document.left_out}
        if how in {"done", "refused", "rolled back"}:
            assert served == {document.final_version}, (seed, document, fleet.servers)
    assert ends == {"retired", "rolled_back", "abandoned"}


def _possible(fleet: Fleet, there: list[str]) -> bool:
    return any(
        all(version in fleet.servers[address][0] or version not in fleet.unopenable for address in there)
        for version in ("old", "new")
    )


def test_a_third_version_that_a_rollout_is_given_up_for_is_given_to_a_server_that_loses_its_disk():
    fleet = Fleet(random.Random(0))
    for address in fleet.addresses:
        fleet.servers[address] = (["old", "third"], "third")
    fleet.servers["l1"] = (["third"], "third")
    fleet.unopenable = {"old", "new"}
    document, how = give(fleet, "abandon", PLAN)
    assert (how, document.served, document.final_version) == ("done", "third", "third")
    fleet.unopenable = set()
    fleet.lose_disk("r1")
    document, how = give(fleet, "advance", document)
    assert how == "done"
    assert fleet.servers["r1"] == (["third"], "third")


def test_whatever_is_interrupted_stops_at_once_and_the_rollback_goes_on():
    fleet = Fleet(random.Random(0))
    document = PLAN
    for _ in range(2):
        document, _ = give(fleet, "advance", document)
    state, actions = controller.step(controlling.Controller(command="advance", document=document), moves.Began(0.0))
    state, actions = controller.step(state, moves.Noted())
    assert isinstance(actions[0], moves.Ask)
    state, actions = controller.step(state, moves.Interrupted("rollback was asked for"))
    assert [action.kind for action in actions] == ["interrupted"]
    document, how = give(fleet, "rollback", document)
    assert (document.done, how) == ("rolled_back", "done")


def _outcomes(answered, failed, refused, process="one"):
    return judging.Outcomes(process, answered, failed, refused)


def test_one_failure_among_forty_is_chance_and_many_are_not():
    limits, none = Limits(), _outcomes(0, 0, 0)
    assert judging.judge_outcomes(none, _outcomes(40, 1, 0), none, limits) == ""
    assert "4 of 44 requests failed" in judging.judge_outcomes(none, _outcomes(40, 4, 0), none, limits)
    assert judging.judge_outcomes(none, _outcomes(0, 19, 0), none, limits) == ""  # fewer than min_requests say nothing
    assert judging.judge_outcomes(none, _outcomes(99_000, 1000, 0), none, limits) == ""
    assert judging.judge_outcomes(none, _outcomes(98_800, 1200, 0), none, limits) != ""


def test_a_version_that_no_caller_can_use_is_not_kept():
    limits, none = Limits(), _outcomes(0, 0, 0)
    assert "do callers send what the new one reads" in judging.judge_outcomes(none, _outcomes(0, 0, 30), none, limits)
    usual = _outcomes(80, 0, 20)  # callers that are always wrong are so under the old version as well
    assert judging.judge_outcomes(none, _outcomes(80, 0, 20), usual, limits) == ""
    assert judging.judge_outcomes(none, _outcomes(50, 0, 50), usual, limits) != ""


def test_a_ranker_that_was_started_again_counts_anew():
    before, after = _outcomes(500, 0, 0, "one"), _outcomes(10, 30, 0, "two")
    assert "30 of 40" in judging.judge_outcomes(before, after, _outcomes(0, 0, 0), Limits())


def test_exceeds_is_the_tail_of_the_binomial_law():
    stats = pytest.importorskip("scipy.stats")
    for total in (1, 20, 41, 300, 5000):
        for share in (0.001, 0.01, 0.2, 0.9):
            for num in {0, 1, 3, int(share * total) + 1, int(1.5 * share * total) + 2, total}:
                if num <= total:
                    expected = num > share * total and stats.binom.sf(num - 1, total, share) <= 0.01
                    assert exceeds(num, total, share) == expected, (num, total, share)


# --- a ranker's readiness ---------------------------------------------------------------------------------------------------


def _described(*versions, current="", max_ids=100, partly=()):
    return readiness.Described(tuple(readiness.LookupVersion(version) for version in versions), current, max_ids, partly)


def _after(*given, **fields):
    state = readiness.Readiness(**fields)
    for event in given:
        state, _ = readiness.step(state, event)
    return state


HOLDS = readiness.Holds("old", needs=(readiness.Need("old", 50), readiness.Need("new", 50)))


def test_a_ranker_is_ready_once_its_current_version_is_there_whatever_else_it_holds():
    state = _after(HOLDS, _described("old"))
    assert state.said.ready
    assert "has not loaded old" in _after(HOLDS, _described("new")).said.reason
    assert "accepts 49" in _after(HOLDS, _described("old", max_ids=49)).said.reason
    assert _after(HOLDS, _described(partly=("old",))).said.ready  # one of two replicas has it


def test_a_ranker_without_memory_does_not_serve_another_version_than_the_fleet():
    forgot = replace(HOLDS, remembers=False)
    assert "current version of lookup server is new" in _after(forgot, _described("old", "new", current="new")).said.reason
    assert _after(forgot, _described("old", "new", current="old")).said.ready
    assert _after(HOLDS, _described("old", "new", current="new")).said.ready  # it remembers: the rollout has not come to it


def test_a_ranker_whose_lookup_servers_are_away_says_so_after_a_while():
    ready = _after(HOLDS, _described("old"))
    away = [readiness.Unreachable("refused")] * readiness.MISSES
    assert _after(HOLDS, _described("old"), *away[:-1]).said.ready
    lost = _after(HOLDS, _described("old"), *away).said
    assert (lost.ready, "cannot be reached: refused" in lost.reason) == (False, True)
    assert _after(HOLDS, _described("old"), *away, answers_without=True).said.ready
    assert _after(HOLDS, _described("old"), *away, _described("old")).said.ready
    assert not readiness.step(ready, readiness.Draining())[0].said.ready
