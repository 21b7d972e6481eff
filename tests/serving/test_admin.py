"""Who may tell a server what to serve, and what it refuses."""

from __future__ import annotations

import pytest

from serving import AdminClient, InvalidRequestError, LookupConfig, LookupServer, UnauthenticatedError


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
