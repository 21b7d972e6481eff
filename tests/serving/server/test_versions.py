"""Held versions: one is always current, and a reader keeps what it took."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from multifacet.serving import VersionNotLoadedError
from multifacet.serving.server.versions import LoadedVersions

VERSIONS = st.sampled_from(["a", "b", "c", "d"])


class HeldVersions(RuleBasedStateMachine):
    """Against a plain list and a name."""

    def __init__(self):
        super().__init__()
        self.held: LoadedVersions[str] = LoadedVersions("server")
        self.names: list[str] = []
        self.current = ""

    @rule(version=VERSIONS, current=st.booleans())
    def add(self, version, current):
        self.held.add(version, f"content of {version}", current=current)
        if version not in self.names:
            self.names.append(version)
        if current or not self.current:
            self.current = version

    @rule(version=VERSIONS)
    def choose(self, version):
        if version in self.names:
            self.held.choose(version)
            self.current = version
        else:
            with pytest.raises(VersionNotLoadedError):
                self.held.choose(version)

    @rule(version=VERSIONS)
    def retire(self, version):
        if version == self.current:
            with pytest.raises(ValueError, match="choose another version"):
                self.held.retire(version)
        elif version in self.names:
            self.held.retire(version)
            self.names.remove(version)
        else:
            with pytest.raises(VersionNotLoadedError):
                self.held.retire(version)

    @precondition(lambda self: self.names)
    @rule()
    def resolve_current(self):
        assert self.held.resolve("") == (self.current, f"content of {self.current}")

    @invariant()
    def agrees(self):
        assert list(self.held.versions) == self.names
        assert self.held.current == self.current
        assert self.held.items() == tuple((name, f"content of {name}") for name in self.names)


TestHeldVersions = HeldVersions.TestCase
TestHeldVersions.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_adding_a_version_again_keeps_what_is_held():
    held: LoadedVersions[list[int]] = LoadedVersions("server")
    first: list[int] = [1]
    held.add("a", first)
    held.add("a", [2])
    assert held.get("a") is first


def test_nothing_loaded_is_said():
    with pytest.raises(VersionNotLoadedError, match="loaded: none"):
        LoadedVersions("server").resolve("")


def test_readers_always_find_a_current_version_while_writers_swap():
    held: LoadedVersions[int] = LoadedVersions("server")
    held.add("0", 0)
    done = threading.Event()
    wrong: list[object] = []

    def read():
        while not done.is_set():
            try:
                version, content = held.resolve("")
            except VersionNotLoadedError as error:
                wrong.append(error)
                return
            if version != str(content):
                wrong.append((version, content))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 3000):
        held.add(str(number), number)
        held.retire(str(number - 1))
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


@pytest.mark.parametrize("wanted", ["old", ""])
def test_a_version_that_is_retired_between_finding_and_holding_it_is_not_held(monkeypatch, wanted):
    loaded: LoadedVersions[int] = LoadedVersions("server")
    loaded.add("old", 1)
    take = loaded._leases.take

    def retire_and_take(version):
        if "old" in loaded.versions:  # as an administrator does, at the worst moment
            loaded.add("new", 2)
            loaded.retire("old")
            assert loaded.wait_for_readers("old", 0)
        take(version)

    monkeypatch.setattr(loaded._leases, "take", retire_and_take)
    if wanted:
        with pytest.raises(VersionNotLoadedError), loaded.lease(wanted):
            pass
    else:
        with loaded.lease(wanted) as held:
            assert held == ("new", 2)
            assert loaded.num_readers("new") == 1
    assert (loaded.num_readers("old"), loaded.num_readers("new")) == (0, 0)
