"""Real processes: they drain when told, end with their parent, and find each other again after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from multifacet.serving import (
    LocalDeployment,
    LookupConfig,
    RankerClient,
    RankerConfig,
    ServerProcess,
    ServingError,
    UnavailableError,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deployment(release):
    with LocalDeployment(release.path, ranker={"lookup_timeout_s": 8, "drain_timeout_s": 8}) as deployment:
        yield deployment


@pytest.fixture
def client(deployment):
    with RankerClient(deployment.ranker_address, timeout_s=10) as client:
        yield client


def _wait_until(condition, timeout_s: float = 10.0, log: Path | None = None) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {'' if log is None else log.read_text()[-2000:]}"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_processes_score_as_the_model_does_offline(deployment, client, model, request_of, all_ids):
    assert deployment.lookup_address.startswith("unix:")
    request_ids, candidate_ids, dense = request_of(50)
    answer = client.rank(request_ids, candidate_ids, dense=dense)
    offline = model.score(all_ids(request_ids, candidate_ids, 50), dense)
    np.testing.assert_allclose(np.stack([answer.ctr, answer.cvr], axis=1), offline, rtol=2e-6, atol=2e-7)


def test_sigkill_of_the_lookup_server_is_a_clear_error_and_a_restart_heals_it(deployment, client, request_of):
    request_ids, candidate_ids, dense = request_of(5)
    before = client.rank(request_ids, candidate_ids, dense=dense)
    deployment.lookup.kill()
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=f"lookup server {deployment.lookup_address}"):
        client.rank(request_ids, candidate_ids, dense=dense)
    assert time.monotonic() - started < 5  # refused, not waited out
    deployment.lookup.restart()  # takes the place of the socket file that the killed one left

    def healed() -> bool:
        try:
            return client.rank(request_ids, candidate_ids, dense=dense).ctr.tolist() == before.ctr.tolist()
        except UnavailableError:
            return False

    _wait_until(healed, timeout_s=5)


def test_sigterm_lets_a_request_in_flight_end_and_refuses_new_ones(deployment, client, request_of):
    """The last test of this deployment: its ranker ends here."""
    request_ids, candidate_ids, dense = request_of(5)
    client.rank(request_ids, candidate_ids, dense=dense)
    lookup, ranker = deployment.lookup, deployment.ranker
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(client.rank(request_ids, candidate_ids, dense=dense))
        except ServingError as error:
            answers.append(error)

    os.kill(lookup.pid, signal.SIGSTOP)  # so that the ranker waits in the middle of a request
    try:
        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(0.3)
        os.kill(ranker.pid, signal.SIGTERM)

        def refuses() -> bool:
            with RankerClient(deployment.ranker_address, timeout_s=1) as late:
                try:
                    late.describe()
                except UnavailableError:
                    return True
            return False

        _wait_until(refuses, log=ranker.log_path)
        assert answers == []
        assert _is_running(ranker.pid)
    finally:
        os.kill(lookup.pid, signal.SIGCONT)
    asker.join(10)
    assert len(answers) == 1
    assert not isinstance(answers[0], Exception), answers
    assert len(answers[0].ctr) == 5
    assert ranker.terminate() == 0
    assert "Traceback" not in ranker.log_path.read_text()


def test_a_server_announces_its_address_once_ready_and_drains_with_status_0(release, tmp_path):
    ready = tmp_path / "lookup.ready"
    with ServerProcess("lookup", LookupConfig(releases=(release.path,)), tmp_path) as process:
        assert process.announcement["versions"] == [release.version]
        assert process.address.startswith("127.0.0.1:")
        assert not process.address.endswith(":0")
        assert ready.exists()
        assert process.terminate() == 0
        assert not ready.exists()
    events = [json.loads(line[line.index("{") :])["event"] for line in process.log_path.read_text().splitlines() if "{" in line]
    assert events == ["ready", "stopped"]


@pytest.mark.parametrize("role", ["lookup", "ranker"])
def test_a_server_that_cannot_start_says_why(release, tmp_path, role):
    (tmp_path / "damaged").mkdir()
    if role == "lookup":
        config = LookupConfig(releases=(tmp_path / "damaged",))
        message = "There is no artefact at"
    else:
        config = RankerConfig(releases=(release.path,), lookup="127.0.0.1:9", startup_timeout_s=0.2)
        message = "lookup server 127.0.0.1:9 was not ready within 0.2 s"
    with pytest.raises(ServingError, match=f"(?s)the {role} ended with status 1.*{message}"):
        ServerProcess(role, config, tmp_path).wait_until_ready()


def test_a_wrong_configuration_ends_with_status_2():
    ended = subprocess.run(
        [sys.executable, "-m", "serving", "lookup", "--config-json", '{"releases": []}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "releases" in ended.stderr


_PARENT = """
import pathlib, sys, time
from multifacet.serving import LookupConfig, ServerProcess

process = ServerProcess("lookup", LookupConfig(releases=(sys.argv[1],)), pathlib.Path(sys.argv[2]))
process.wait_until_ready()
print(process.pid, flush=True)
time.sleep(60)
"""


def test_children_end_when_their_parent_is_killed(release, tmp_path):
    command = [sys.executable, "-c", _PARENT, str(release.path), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert _is_running(child)
        parent.kill()
    _wait_until(lambda: not _is_running(child))
    assert '"event": "stopped"' in (tmp_path / "lookup.log").read_text()
