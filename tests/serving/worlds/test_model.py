"""The model of rollouts: exhausted where that takes seconds, held to the real step functions, and able to fail."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from benchmarks.harness.worlds import model, planted
from multifacet.serving.core import agreement, held, holdings
from multifacet.serving.core import holdings_events as events
from multifacet.serving.core import rollout_events as moves

VERSIONS = ("v1", "v2", "v3")
CALLS = (
    moves.Status(),
    *(moves.Load(Path(f"/{version}")) for version in VERSIONS),
    *(moves.Choose(version) for version in VERSIONS),
    *(moves.Retire(version) for version in VERSIONS),
    *(moves.SetShadow(version, 1.0) for version in ("", *VERSIONS)),
)


class Real:
    """A server's step functions, of which every action is done at once."""

    def __init__(self, server: model.Server):
        self.state = held.Holdings()
        self.faults: list[object] = []
        entries = tuple(events.Entry(version, f"/{version}") for version in server.held)
        document = events.Document(entries, server.current) if server.known else None
        self.feed(events.Started(document, tuple(f"/{version}" for version in (*_others(server), server.current))))
        if server.shadow:
            self.feed(events.ShadowAsked(1, server.shadow, 1.0))

    def feed(self, event):
        left = [event]
        while left:
            self.state, actions = holdings.step(self.state, left.pop(0))
            for action in actions:
                match action:
                    case events.Identify(path):
                        left.append(events.Identified(path, path[1:]))
                    case events.Open(path, version):
                        left.append(events.Opened(path, version))
                    case events.Check():
                        left.append(events.Checked())
                    case events.Drain():
                        left.append(events.Drained())
                    case events.Write():
                        left.append(events.Written())
                    case events.Tell(_, _, fault):
                        self.faults.append(fault)

    def do(self, call):
        self.faults = []
        match call:
            case moves.Load(path):
                self.feed(events.LoadAsked(1, str(path)))
            case moves.Choose(version):
                self.feed(events.ChooseAsked(1, version))
            case moves.Retire(version):
                self.feed(events.RetireAsked(1, version))
            case moves.SetShadow(version, share):
                self.feed(events.ShadowAsked(1, version, share))
        return self.faults[0] if self.faults else None

    def seen(self):
        state = self.state
        versions = tuple(sorted(entry.version for entry in state.held))
        return model.Server(versions, state.current, state.known, state.shadow[0])


def _others(server):
    return [version for version in server.held if version != server.current]


SERVERS = [
    model.Server(versions, current, known, shadow)
    for num in (1, 2, 3)
    for versions in itertools.combinations(VERSIONS, num)
    for current in versions
    for known in (True, False)
    for shadow in ("", *versions)
]


@pytest.mark.parametrize("known", [True, False])
def test_a_server_of_the_model_does_what_the_real_step_functions_do(known):
    tried = 0
    for server in SERVERS:
        if server.known is not known:
            continue
        for call in CALLS:
            real = Real(server)
            assert real.seen() == server
            fault = real.do(call)
            done = server.do(call)
            tried += 1
            assert isinstance(done, str) == (fault is not None), (server, call, done, fault)
            assert real.seen() == (server if isinstance(done, str) else done), (server, call)
    assert tried == 13 * (12 + 3 * 6 + 4 * 3) // 1 or tried > 300


@pytest.mark.parametrize(
    ("sizes", "losses", "most"),
    [((1, 1, 2), False, None), pytest.param((2, 2, 3), True, 300, marks=pytest.mark.slow)],
)
def test_no_state_breaks_what_must_hold(sizes, losses, most):
    found = model.Model(*sizes, losses=losses).explore(most)
    assert found.num_states >= 200
    assert found.num_commands > found.num_states


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a phase is skipped: lookup servers are not loaded", "advance does not end"),
        ("lookup servers retire before rankers", "is told to forget v1, which r0 holds"),
        ("a rollback does not load the old version", "rollback does not end"),
    ],
)
def test_the_model_finds_what_is_planted(name, told):
    (bug,) = (bug for bug in planted.BUGS if bug.name == name)
    with bug.planted(), pytest.raises(model.Broken, match=told):
        model.Model(1, 1, 2, losses=False).explore()


def test_rows_are_taken_for_no_other_version_and_no_other_shard():
    shards = [(index, of) for of in (1, 2, 3) for index in range(of)]
    for asked, given, shard, given_shard in itertools.product(VERSIONS, VERSIONS, shards, shards):
        taken = agreement.misfit(asked, given, shard, given_shard) == ""
        assert taken == ((asked, shard) == (given, given_shard))
