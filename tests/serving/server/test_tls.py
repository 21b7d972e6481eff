"""TLS: a client that trusts the authority gets rows, any other gets none."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from multifacet.serving import LookupClient, LookupConfig, LookupServer, UnavailableError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the test's certificates")


def _self_signed(folder, name):
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
        timeout=30,
    )  # fmt: skip
    return certificate, key


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    return {name: _self_signed(folder, name) for name in ("server", "client", "stranger")}


def test_rows_travel_over_tls_to_those_who_trust_the_server_only(release, identities):
    certificate, key = identities["server"]
    config = LookupConfig(releases=(release.path,), tls_certificate=certificate, tls_key=key)
    with LookupServer(config) as server:
        with LookupClient(server.address, tls_ca=certificate, timeout_s=10) as client:
            assert client.lookup(release.version, {"user": [1000]}).version == release.version
        for trusted in (identities["stranger"][0], None):
            with LookupClient(server.address, tls_ca=trusted, timeout_s=10) as client, pytest.raises(UnavailableError):
                client.lookup(release.version, {"user": [1000]})


def test_a_server_that_knows_its_clients_refuses_a_stranger(release, identities):
    (certificate, key), (client_certificate, client_key) = identities["server"], identities["client"]
    config = LookupConfig(releases=(release.path,), tls_certificate=certificate, tls_key=key, tls_client_ca=client_certificate)
    with LookupServer(config) as server:
        with LookupClient(server.address, tls_ca=certificate, timeout_s=10) as client, pytest.raises(UnavailableError):
            client.lookup(release.version, {"user": [1000]})
        known = LookupClient(
            server.address,
            tls_ca=certificate,
            tls_certificate=client_certificate,
            tls_key=client_key,
            timeout_s=10,
        )
        with known as client:
            assert client.lookup(release.version, {"user": [1000]}).version == release.version
