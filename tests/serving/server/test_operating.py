"""A server's life: started as a unit does, its secrets replaced, drained in order, silent peers, and what it says of itself."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from benchmarks.harness.witness import write_witness
from multifacet.pipeline.cli import app
from multifacet.serving import (
    AdminClient,
    DeadlineExceededError,
    LookupClient,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    ReplicaPolicy,
    ServerProcess,
    ServingError,
    UnauthenticatedError,
    UnavailableError,
    connect_lookup,
    publish,
    serve_lookup,
    serve_ranker,
)
from multifacet.serving.numba_cache import settle

ROOT = Path(__file__).parents[3]
OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the test's certificates")


def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def health(address, service=""):
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(
            stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2).status
        )


# --- 18: the documented unit ------------------------------------------------------------------------------------------------


def _can_unshare():
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


def _exec_start():
    """The command of the unit in the manual."""
    manual = (ROOT / "docs" / "serving.md").read_text()
    command = re.search(r"ExecStart=((?:.*\\\n)*.*)\n", manual).group(1)
    return shlex.split(command.replace("\\\n", " "))


@pytest.mark.skipif(not _can_unshare(), reason="a read-only root and another user take root and unshare")
@pytest.mark.parametrize("keeps", [True, False], ids=["CacheDirectory", "no cache"])
def test_the_documented_unit_starts_as_its_user_on_a_read_only_tree(model, keeps):
    with tempfile.TemporaryDirectory(prefix="multifacet-unit-") as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        _start_the_unit(model, folder, keeps=keeps)


def _start_the_unit(model, folder, *, keeps):
    state = folder / "state"
    for name in ("run", "lib", "cache"):
        (state / name).mkdir(parents=True)
    for path in (state, *state.iterdir()):
        os.chown(path, 65534, 65534)
    before = os.umask(0o077)  # who publishes is another user, and keeps to himself
    try:
        release = publish(model.path, folder / "releases" / "one")
    finally:
        os.umask(before)
    (folder / "releases").chmod(0o755)
    (folder / "releases" / "current").symlink_to(release.path)
    (folder / "admin.token").write_text("admin")
    places = {
        "/opt/multifacet/bin/multifacet": str(ROOT / ".venv" / "bin" / "multifacet"),
        "/srv/releases": str(folder / "releases"),
        "/run/multifacet": str(state / "run"),
        "/var/lib/multifacet": str(state / "lib"),
        "/etc/multifacet": str(folder),
        "127.0.0.1:9401": "127.0.0.1:0",
    }
    command = []
    for word in _exec_start():
        for documented, here in places.items():
            word = word.replace(documented, here)  # noqa: PLW2901
        command.append(word)
    entry = Path(command[0])
    if not entry.exists():  # not installed here by make
        command[:1] = [sys.executable, "-m", "multifacet.pipeline.cli"]
    ready = state / "run" / "ready"
    command += ["--set", f"ready_file={ready}"]
    inside = (
        'mount --bind "$1" "$1" && mount -o remount,bind,ro / && shift && '
        "exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "
        '"$@"'
    )
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(state / "run"), "PYTHONPATH": str(ROOT)}
    if keeps:
        environment["CACHE_DIRECTORY"] = str(state / "cache")
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", inside, "sh", str(state), *command], env=environment, stderr=stream, cwd="/"
        )
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        with connect_lookup(f"framed:unix:{state}/run/frames.sock", timeout_s=10) as client:
            assert client.lookup(release.version, {"pin": [11]}).version == release.version
        assert json.loads((state / "lib" / "lookup.json").read_text())["current"] == release.version
        kept = list((state / "cache").rglob("*.nbi"))
        assert bool(kept) == keeps, log.read_text()
    finally:
        process.terminate()
        assert process.wait(20) == 0, log.read_text()


def test_compiled_kernels_are_kept_where_nobody_else_may_write(tmp_path, monkeypatch):
    monkeypatch.setattr("multifacet.serving.numba_cache._may_write_beside_the_source", lambda: False)
    monkeypatch.setattr("multifacet.serving.numba_cache.sys", type("NoModules", (), {"modules": {}}))
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "CACHE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    settle()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "a" / "multifacet-numba")
    assert (tmp_path / "a" / "multifacet-numba").stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    (tmp_path / "a" / "multifacet-numba").chmod(0o777)  # anybody may have put code there
    settle()
    assert "multifacet-numba-" in os.environ["NUMBA_CACHE_DIR"]


# --- 19: connections that end, and those that go silent ---------------------------------------------------------------------


@pytest.mark.parametrize("act", ["lookup", "start and forget", "start and cancel", "describe"])
def test_a_closed_client_does_not_connect_again(act):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    client = LookupClient(f"127.0.0.1:{port}", timeout_s=1)
    for _ in range(2):
        if act in {"lookup", "describe"}:
            with pytest.raises(UnavailableError):
                client.lookup("v", {"pin": [1]}) if act == "lookup" else client.describe()
        else:
            pending = client.start("v", {"pin": [1]})
            if act == "start and cancel":
                pending.cancel()
            del pending
            gc.collect()
    client.close()
    time.sleep(0.1)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        listening.settimeout(2.5)
        with pytest.raises(TimeoutError):
            listening.accept()


@contextlib.contextmanager
def silent_server():
    """Takes connections and says nothing, as a machine that hangs does."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("transport", ["grpc", "framed"])
def test_a_server_that_says_nothing_leaves_time_to_ask_another(release, lookup_server, transport):
    good = lookup_server.address if transport == "grpc" else lookup_server.framed_address
    with silent_server() as address:
        silent = address if transport == "grpc" else f"framed:{address}"
        with connect_lookup(f"{silent},{good}", timeout_s=1.0, policy=ReplicaPolicy()) as client:
            for _ in range(8):
                assert client.lookup(release.version, {"pin": [11]}).version == release.version
            assert client.counters()["retries"] >= 1
        with connect_lookup(silent, timeout_s=0.3) as alone, pytest.raises((DeadlineExceededError, UnavailableError)):
            alone.lookup(release.version, {"pin": [11]})


def test_without_budget_a_slow_server_keeps_the_whole_deadline(release, lookup_server, monkeypatch):
    fetch = lookup_server._fetch
    monkeypatch.setattr(lookup_server, "_fetch", lambda *given: time.sleep(0.7) or fetch(*given))
    policy = ReplicaPolicy(retry_ratio=0, retry_reserve=1)
    with connect_lookup(f"{lookup_server.address},127.0.0.1:9", timeout_s=5.0, policy=policy) as client:
        client.budget.spend()
        answered = 0
        for _ in range(4):
            with contextlib.suppress(UnavailableError):
                client.lookup(release.version, {"pin": [11]}, timeout_s=1.2)
                answered += 1
        assert answered >= 1


def test_pings_of_a_client_are_answered_not_refused(lookup_server):
    """Three pings in 18 s of silence: by default a server ends such a connection (too_many_pings)."""
    changes = []
    options = (
        ("grpc.keepalive_time_ms", 6000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    with grpc.insecure_channel(lookup_server.address, options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        channel.subscribe(changes.append)
        time.sleep(19)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert grpc.ChannelConnectivity.IDLE not in changes
    assert grpc.ChannelConnectivity.TRANSIENT_FAILURE not in changes


# --- 20: tokens and certificates ---------------------------------------------------------------------------------------------


def _self_signed(folder, name):
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
        timeout=30,
    )  # fmt: skip
    return certificate, key


def _presented(address):
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), 5) as stream, context.wrap_socket(stream) as wrapped:
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True))


@OPENSSL
def test_a_certificate_that_is_replaced_under_load_loses_no_request(release, tmp_path):
    pairs = [_self_signed(tmp_path, name) for name in ("first", "second")]
    both = tmp_path / "both.pem"
    both.write_text("".join(certificate.read_text() for certificate, _ in pairs))
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def install(pair):
        for source, target in zip(pair, (certificate, key), strict=True):
            shutil.copy(source, f"{target}.new")
            Path(f"{target}.new").replace(target)

    install(pairs[0])
    config = LookupConfig(releases=(release.path,), tls_certificate=certificate, tls_key=key)
    with LookupServer(config) as server:
        lost, asked, over = [], [0], threading.Event()

        def ask():
            while not over.is_set():  # a new connection each: each sees the certificate of its moment
                with LookupClient(server.address, tls_ca=both, timeout_s=5) as client:
                    try:
                        for _ in range(3):
                            client.lookup(release.version, {"pin": [11]})
                            asked[0] += 1
                    except ServingError as error:
                        lost.append(error)

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for asker in askers:
            asker.start()
        for pair in (pairs[1], pairs[0], pairs[1]):
            time.sleep(0.7)
            install(pair)
        until(lambda: _presented(server.address) == pairs[1][0].read_text())
        certificate.write_text("no certificate")  # by mistake: what was there stays
        assert _presented(server.address) == pairs[1][0].read_text()
        over.set()
        for asker in askers:
            asker.join()
    assert lost == []
    assert asked[0] > 50


@OPENSSL
def test_a_pair_that_does_not_fit_is_told_so_before_the_release_is_read(tmp_path):
    (certificate, _), (_, key) = (_self_signed(tmp_path, name) for name in ("one", "two"))
    for wrong_certificate, wrong_key in ((certificate, key), (key, key), (certificate, certificate)):
        config = LookupConfig(releases=(tmp_path / "nothing",), tls_certificate=wrong_certificate, tls_key=wrong_key)
        with pytest.raises(ValueError, match="cannot be used together"):
            LookupServer(config)


@pytest.mark.parametrize("how", ["watched", "SIGHUP"])
def test_a_token_that_is_replaced_is_asked_for(release, tmp_path, how):
    token, old = tmp_path / "token", tmp_path / "old"
    token.write_text("first")
    old.write_text("first")
    config = LookupConfig(releases=(release.path,), token_file=token, framed_listen=f"unix:{tmp_path / 'f'}")
    with ServerProcess("lookup", config, tmp_path) as process:
        addresses = [process.address, f"framed:unix:{tmp_path / 'f'}"]
        for address in addresses:
            with connect_lookup(address, token_file=token, timeout_s=5) as client:
                client.describe()
        token.write_text("second")
        if how == "SIGHUP":
            os.kill(process.pid, signal.SIGHUP)
            time.sleep(0.5)
        else:
            time.sleep(1.3)
        for address in addresses:
            with connect_lookup(address, token_file=token, timeout_s=5) as client:
                client.describe()
            with connect_lookup(address, token_file=old, timeout_s=5) as client, pytest.raises(UnauthenticatedError):
                client.describe()


def test_a_client_that_lives_on_brings_the_new_token(release, tmp_path):
    token = tmp_path / "token"
    token.write_text("first")
    config = LookupConfig(releases=(release.path,), token_file=token, framed_listen="127.0.0.1:0")
    with LookupServer(config) as server:
        clients = [
            connect_lookup(address, token_file=str(token), timeout_s=5) for address in (server.address, server.framed_address)
        ]
        for client in clients:
            client.describe()
        token.write_text("second")
        time.sleep(1.3)
        for client in clients:
            client.describe()
            client.close()


@OPENSSL
def test_rollout_and_bench_serving_bring_a_certificate_of_their_own(tmp_path):
    release = write_witness(tmp_path / "release", 1)
    (certificate, key), (own, own_key) = _self_signed(tmp_path, "server"), _self_signed(tmp_path, "own")
    token = tmp_path / "token"
    token.write_text("admin")
    tls = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": own}
    fields = {"releases": (release.path,), "admin_token_file": token, "admin_releases": tmp_path, **tls}
    with LookupServer(LookupConfig(**fields)) as lookup:
        ours = {"lookup_tls_ca": certificate, "lookup_tls_certificate": own, "lookup_tls_key": own_key}
        with RankerServer(RankerConfig(**fields, lookup=lookup.address, lookup_timeout_s=5, **ours)) as ranker:
            secure = ["--tls-ca", str(certificate), "--tls-certificate", str(own), "--tls-key", str(own_key)]
            addresses = ["--ranker", ranker.address, "--lookup", lookup.address]
            common = ["--state", str(tmp_path / "state"), "--token-file", str(token), *secure]
            adopted = CliRunner().invoke(app, ["rollout", "adopt", str(release.path), *addresses, *common, "--json"])
            assert adopted.exit_code == 0, adopted.output
            loaded = CliRunner().invoke(
                app,
                ["bench-serving", str(release.path), "--lookup", lookup.address, *secure, "--rate", "20", "--seconds", "0.5",
                 "--clients", "1", "--ids", "5", "--json"],
            )  # fmt: skip
            assert loaded.exit_code == 0, loaded.output


# --- 21: the order of a drain -----------------------------------------------------------------------------------------------


def test_a_drain_says_so_first_then_refuses_on_both_transports_and_ends_together(release, tmp_path):
    config = LookupConfig(
        releases=(release.path,),
        framed_listen=f"unix:{tmp_path / 'f'}",
        drain_delay_s=1.5,
        drain_timeout_s=5,
        listen="127.0.0.1:0",
    )
    process = ServerProcess("lookup", config, tmp_path)
    process.wait_until_ready()
    address, frames = process.address, f"framed:unix:{tmp_path / 'f'}"
    with (
        connect_lookup(address, timeout_s=2) as over_grpc,
        connect_lookup(frames, timeout_s=2) as over_frames,
        grpc.insecure_channel(address) as watched,
    ):
        watch = health_pb2_grpc.HealthStub(watched).Watch(health_pb2.HealthCheckRequest())  # does not hold it up
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        os.kill(process.pid, signal.SIGTERM)
        began = time.monotonic()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - began < 1
        assert health(address) == "NOT_SERVING"
        assert health(address, "alive") == "SERVING"
        for client in (over_grpc, over_frames):  # and still answers
            client.lookup(release.version, {"pin": [11]})
        refused = {}
        while len(refused) < 2:
            for name, client in (("grpc", over_grpc), ("frames", over_frames)):
                try:
                    client.lookup(release.version, {"pin": [11]})
                except UnavailableError:
                    refused.setdefault(name, time.monotonic() - began)
            time.sleep(0.01)
        assert min(refused.values()) > 1.2
        assert abs(refused["grpc"] - refused["frames"]) < 1.5
        assert process.terminate() == 0
        assert time.monotonic() - began < 1.5 + 4


# --- 22: what a server says of itself ---------------------------------------------------------------------------------------


def _scrape(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return answer.read().decode()


def test_metrics_tell_versions_requests_by_version_and_what_is_under_way(release, other_release, request_of, tmp_path):
    common = {"metrics_listen": "127.0.0.1:0"}
    request_ids, candidate_ids, dense = request_of(5)
    frames = f"unix:{tmp_path / 'f'}"
    with LookupServer(LookupConfig(releases=(release.path, other_release.path), framed_listen=frames, **common)) as lookup:
        config = RankerConfig(releases=(other_release.path, release.path), lookup=lookup.address, lookup_timeout_s=5, **common)
        with RankerServer(config) as ranker, RankerClient(ranker.address, timeout_s=5) as client:
            for _ in range(3):
                client.rank(request_ids, candidate_ids, dense=dense)
            with contextlib.suppress(ServingError):
                client.rank({"board": 1}, candidate_ids, dense=dense)
            with connect_lookup(lookup.framed_address, timeout_s=5) as framed:
                framed.lookup(other_release.version, {"pin": [11]})
                scores, rows = _scrape(ranker.metrics_address), _scrape(lookup.metrics_address)
    version, other = release.version, other_release.version
    for line in (
        f'multifacet_ranker_version_held{{version="{version}"}} 2.0',
        f'multifacet_ranker_version_held{{version="{other}"}} 1.0',
        f'multifacet_ranker_version_outcomes_total{{outcome="answered",version="{version}"}} 3.0',
        f'multifacet_ranker_version_outcomes_total{{outcome="refused",version="{version}"}} 1.0',
        'multifacet_ranker_requests_total{code="INVALID_ARGUMENT"} 1.0',
        "multifacet_ranker_ready 1.0",
        "multifacet_ranker_requests_in_flight 0.0",
        "multifacet_ranker_requests_queued 0.0",
        "multifacet_ranker_shadow_mean_abs_difference 0.0",
    ):
        assert line in scores.splitlines()
    for line in (
        f'multifacet_lookup_version_requests_total{{version="{version}"}} 3.0',
        f'multifacet_lookup_version_requests_total{{version="{other}"}} 1.0',
        "multifacet_lookup_framed_connections 1.0",
        "multifacet_lookup_half_calls 0.0",
    ):
        assert line in rows.splitlines()
    assert re.search(r'multifacet_lookup_build_info\{.*python="3\..*\} 1\.0', rows)


def test_a_refused_request_is_in_the_log_by_its_id(lookup_server, release, caplog):
    with caplog.at_level(logging.INFO), LookupClient(lookup_server.address, timeout_s=5) as client:
        with pytest.raises(ServingError):
            client.lookup(release.version, {"board": [1]}, request_id="request-7")
        until(lambda: any("request-7" in record.getMessage() for record in caplog.records))


# --- 23: small things -------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_an_address_is_told_before_the_release_is_read(tmp_path):
    nothing = tmp_path / "nothing"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for field in ("listen", "framed_listen", "metrics_listen"):
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
                serve_lookup(LookupConfig(releases=(nothing,), **{field: f"127.0.0.1:{port}"}))
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve_ranker(RankerConfig(releases=(nothing,), lookup="127.0.0.1:9", listen=f"127.0.0.1:{port}"))
    with pytest.raises(OSError, match="there is no folder"):
        serve_lookup(LookupConfig(releases=(nothing,), listen=f"unix:{nothing}/sock"))
    with pytest.raises(OSError, match="token"):
        LookupServer(LookupConfig(releases=(nothing,), token_file=tmp_path / "token"))


def test_unix_sockets_have_the_permissions_that_are_set(release, tmp_path):
    config = LookupConfig(
        releases=(release.path,), listen=f"unix:{tmp_path / 'g'}", framed_listen=f"unix:{tmp_path / 'f'}", socket_mode="0660"
    )
    with LookupServer(config):
        assert [(tmp_path / name).stat().st_mode & 0o777 for name in "gf"] == [0o660, 0o660]
    with pytest.raises(ValueError, match="is no octal number"):
        LookupConfig(releases=(release.path,), socket_mode="rw")


def test_paths_may_be_strings(release, tmp_path):
    token = tmp_path / "token"
    token.write_text("ours")
    config = LookupConfig(
        releases=(str(release.path),), token_file=str(token), admin_token_file=str(token), admin_releases=str(tmp_path)
    )
    with LookupServer(config) as server:
        with LookupClient(server.address, token_file=str(token), timeout_s=5) as client:
            client.describe()
        with AdminClient(server.address, token_file=str(token)) as admin:
            with pytest.raises(ServingError, match="is not below"):
                admin.load(str(release.path))
            assert admin.status().ready


def test_a_state_file_that_is_believed_instead_of_the_releases_says_so(release, other_release, tmp_path, caplog):
    config = LookupConfig(releases=(release.path,), state_file=tmp_path / "state")
    with LookupServer(config):
        pass
    config = config.model_copy(update={"releases": (other_release.path,)})
    with caplog.at_level(logging.INFO), LookupServer(config) as server:
        assert server.versions == (release.version,)
    assert any("is believed, and not the releases" in record.getMessage() for record in caplog.records)


def test_a_name_with_several_addresses_is_all_of_them(release, tmp_path, monkeypatch):
    found = socket.getaddrinfo

    def several(host, port, *rest, **more):
        if host != "fleet.test":
            return found(host, port, *rest, **more)
        return [entry for address in ("127.0.0.2", "127.0.0.1") for entry in found(address, port, *rest, **more)]

    monkeypatch.setattr("multifacet.serving.client.framed.socket.getaddrinfo", several)
    with LookupServer(LookupConfig(releases=(release.path,), framed_listen="127.0.0.1:0")) as server:
        port = server.framed_address.rpartition(":")[2]
        for _ in range(6):  # 127.0.0.2 has nobody
            with connect_lookup(f"framed:fleet.test:{port}", timeout_s=5) as client:
                client.lookup(release.version, {"pin": [11]})


def test_bench_serving_ends_when_it_was_asked_to_though_the_server_does_not_keep_up(release, lookup_server, monkeypatch):
    fetch = lookup_server._fetch
    monkeypatch.setattr(lookup_server, "_fetch", lambda *given: time.sleep(0.05) or fetch(*given))
    began = time.monotonic()
    loaded = CliRunner().invoke(
        app,
        ["bench-serving", str(release.path), "--lookup", lookup_server.address, "--rate", "2000", "--seconds", "1",
         "--clients", "2", "--ids", "5", "--json"],
    )  # fmt: skip
    assert loaded.exit_code == 0, loaded.output
    assert time.monotonic() - began < 15
    document = json.loads(loaded.stdout)
    assert not document["kept_up"]
    assert document["not_sent"] > 1000
    assert np.isfinite(document["latency_ms"]["p99"])
