"""TLS: a client that trusts the authority gets rows, any other gets none."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time

import pytest

from multifacet.serving import AsyncLookupClient, LookupClient, LookupConfig, LookupServer, UnavailableError

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


def test_a_client_s_own_certificate_is_read_again(release, identities, tmp_path):
    (certificate, key), (trusted, _) = identities["server"], identities["client"]
    own = [tmp_path / "own.pem", tmp_path / "own.key"]

    def put(name):
        for source, path in zip(identities[name], own, strict=True):
            shutil.copy(source, path)

    put("stranger")
    config = LookupConfig(releases=(release.path,), tls_certificate=certificate, tls_key=key, tls_client_ca=trusted)
    with LookupServer(config) as server:
        files = {"tls_ca": certificate, "tls_certificate": own[0], "tls_key": own[1]}
        with LookupClient(server.address, timeout_s=10, **files) as client:
            with pytest.raises(UnavailableError):
                client.lookup(release.version, {"user": [1000]})
            shutil.copy(identities["client"][0], own[0])  # of no key yet: the client stays what it was
            with pytest.raises(UnavailableError):
                _ask_until_looked_at(client, release)
            put("client")
            assert _ask_until_looked_at(client, release).version == release.version
            put("server")  # and one that is not trusted any more
            with pytest.raises(UnavailableError):
                _ask_until_looked_at(client, release)


def test_an_asynchronous_client_reads_its_certificate_again(release, identities, tmp_path):
    (certificate, key), (trusted, _) = identities["server"], identities["client"]
    own = [tmp_path / "own.pem", tmp_path / "own.key"]
    for source, path in zip(identities["stranger"], own, strict=True):
        shutil.copy(source, path)
    config = LookupConfig(releases=(release.path,), tls_certificate=certificate, tls_key=key, tls_client_ca=trusted)

    async def ask(address):
        files = {"tls_ca": certificate, "tls_certificate": own[0], "tls_key": own[1]}
        async with AsyncLookupClient(address, timeout_s=10, **files) as client:
            with pytest.raises(UnavailableError):
                await client.lookup(release.version, {"user": [1000]})
            for source, path in zip(identities["client"], own, strict=True):
                shutil.copy(source, path)
            await asyncio.sleep(1.1)
            return await client.lookup(release.version, {"user": [1000]})

    with LookupServer(config) as server:
        assert asyncio.run(ask(server.address)).version == release.version


def _ask_until_looked_at(client, release):
    time.sleep(1.1)  # it looks once a second
    return client.lookup(release.version, {"user": [1000]})


def test_a_certificate_and_a_key_of_another_are_refused_at_once(identities):
    with pytest.raises(ValueError, match="cannot be used together"):
        LookupClient(
            "127.0.0.1:1",
            tls_ca=identities["server"][0],
            tls_certificate=identities["client"][0],
            tls_key=identities["stranger"][1],
        )
