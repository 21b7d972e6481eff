"""Who may tell a server what to serve, and what it refuses."""

from __future__ import annotations

import pytest

from multifacet.serving import (
    AdminClient,
    InvalidRequestError,
    LookupConfig,
    LookupServer,
    OverloadedError,
    UnauthenticatedError,
)


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    path = tmp_path_factory.mktemp("admin") / "token"
    path.write_text("admin-secret")
    return path


@pytest.fixture(scope="module")
def administered(release, token):
    config = LookupConfig(releases=(release.path,), admin_token_file=token, admin_releases=release.path.parent)
    with LookupServer(config) as server:
        yield server


def test_another_token_is_refused(administered, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("client-secret")
    with AdminClient(administered.address, token_file=wrong) as admin, pytest.raises(UnauthenticatedError, match="not its own"):
        admin.status()


def test_what_cannot_be_served_is_refused_and_changes_nothing(administered, release, token, tmp_path):
    with AdminClient(administered.address, token_file=token) as admin:
        with pytest.raises(InvalidRequestError, match="is not below"):
            admin.load(tmp_path)
        with pytest.raises(InvalidRequestError, match="no artefact"):
            admin.load(release.path.parent / "nothing")
        with pytest.raises(InvalidRequestError, match="is the current one"):
            admin.retire(release.version)
        with pytest.raises(InvalidRequestError, match="shadow traffic is a ranker's"):
            admin.shadow(release.version, 0.5)
        assert [entry.version for entry in admin.status().versions] == [release.version]


def test_a_release_beyond_the_memory_budget_is_refused_before_it_is_read(release, other_release):
    budget = release.lookup_bytes + other_release.lookup_bytes - 1
    with pytest.raises(OverloadedError, match="memory_budget_bytes is 10"):
        LookupServer(LookupConfig(releases=(release.path,), memory_budget_bytes=10))
    with LookupServer(LookupConfig(releases=(release.path,), memory_budget_bytes=budget)) as server:
        with pytest.raises(OverloadedError, match="retire a version first"):
            server.load(other_release.path)
        assert server.load(release.path) == release.version  # it is there already
        assert server.versions == (release.version,)
    with LookupServer(LookupConfig(releases=(release.path,), memory_budget_bytes=budget + 1)) as server:
        server.load(other_release.path)
        assert len(server.versions) == 2
