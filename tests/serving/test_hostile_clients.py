"""Each hostile act that the soak draws from ends as it should, at once, and the server goes on as before."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from benchmarks.harness.hostile import Attacker, Victim, open_idle
from multifacet.serving import LookupConfig, LookupServer, connect_lookup

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the test's certificate")

LIMIT = 100_000
REFUSED = {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}
OUTCOMES = {
    "frames: random bytes": {"INVALID_ARGUMENT"},
    "frames: a random message": {*REFUSED, "UNAUTHENTICATED", "answered"},  # an empty or harmless message may be understood
    "frames: a request with a changed byte": {*REFUSED, "answered"},
    "frames: a message too long": {"RESOURCE_EXHAUSTED"},
    "frames: a message far too long": {"INVALID_ARGUMENT"},
    "frames: half a request": {"held"},
    "frames: an answer that is not read": {"held"},
    "frames: a wrong token": {"UNAUTHENTICATED"},
    "frames: no token": {"UNAUTHENTICATED"},
    "frames: connected and reset": {"gone"},
    "grpc: a random message": REFUSED,
    "grpc: a message too long": {"RESOURCE_EXHAUSTED"},
    "grpc: a wrong token": {"UNAUTHENTICATED"},
    "grpc: a deadline that can hardly be kept": {"DEADLINE_EXCEEDED", "answered"},
    "grpc: plain text where TLS is spoken": {"closed"},
    "grpc: garbage within TLS": {"closed"},
    "grpc: half a handshake": {"held"},
}


@pytest.fixture(scope="module")
def victim(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    certificate, key = folder / "server.pem", folder / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
        timeout=30,
    )  # fmt: skip
    (folder / "token").write_text("ours")
    (folder / "wrong").write_text("theirs")
    config = LookupConfig(
        releases=(release.path,),
        framed_listen=f"unix:{folder / 'sock'}",
        tls_certificate=certificate,
        tls_key=key,
        token_file=folder / "token",
        max_message_bytes=LIMIT,
        stall_timeout_s=2,
    )
    with LookupServer(config) as server:
        yield Victim(
            frames=folder / "sock",
            grpc_address=server.address,
            certificate=certificate,
            token=folder / "token",
            wrong_token=folder / "wrong",
            version=release.version,
            max_message_bytes=LIMIT,
        )


@pytest.fixture(scope="module")
def attacker(victim):
    attacker = Attacker(victim, seed=0, hold_s=0.2)
    yield attacker
    attacker.close()


def test_every_act_has_an_outcome_that_is_expected(attacker):
    assert attacker.acts.keys() == OUTCOMES.keys()


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_hostile_act_is_refused_and_harms_nobody(victim, attacker, name):
    idle = open_idle(victim.frames, 20)
    for _ in range(4):
        try:
            outcome = attacker.acts[name]()
        except (OSError, EOFError) as error:
            outcome = "closed" if isinstance(error, EOFError | ConnectionError) else repr(error)
        assert outcome in OUTCOMES[name]
    for address, certificate in ((f"framed:unix:{victim.frames}", None), (victim.grpc_address, victim.certificate)):
        with connect_lookup(address, timeout_s=5, tls_ca=certificate, token_file=victim.token) as client:
            assert client.lookup(victim.version, {"pin": [-500, 11]}).tables["pin_kge"].num_unknown_ids == 0
    for stream in idle:
        stream.close()
