"""A lookup server under hostile and ordinary clients for ten minutes: crashes, memory, descriptors, and what its clients see.

The server speaks frames on a Unix socket and gRPC over TLS, and asks for a token. 1,000 connections stay idle all the time.
Two hostile clients do one act after the other, drawn at random: fuzzed frames and protobufs, messages that are too long,
requests that stop half-way, answers that nobody reads, wrong tokens, plain text on the TLS port, garbage within TLS, half
handshakes, resets, deadlines that can hardly be kept. Two ordinary clients, one a transport, ask for 200 ids, and compare every
answer with the release's own rows. memory is the server's own (RssAnon of /proc); its growth is the median of the last fifth
of the run less that of the second fifth, since the first one fills caches and allocators. left_descriptors are those that the
server has more, 5 s after all clients have gone, than before they came. The rates are low: this looks for leaks and crashes,
not for speed.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from benchmarks.harness.hostile import Attacker, Victim, open_idle
from benchmarks.harness.memory import own_bytes
from benchmarks.harness.releases import write_release
from multifacet.serving import LookupConfig, Release, ServerProcess, ServingError, connect_lookup
from multifacet.tables import IdMap

NUM_ROWS = 100_000
NUM_IDS = 200
IDLE = 1000
ATTACKERS = 2
ACTS_PER_S = 10.0
REQUESTS_PER_S = 20.0
_MAX_MESSAGE_BYTES = 200_000
_COUNT = {
    name: Metric(name=name, unit="", better=LOWER)
    for name in ("crashes", "logged_tracebacks", "wrong_answers", "failed_requests", "left_descriptors")
}
_MEMORY = Metric(name="memory", unit="bytes", better=LOWER)
_GROWTH = Metric(name="memory_growth", unit="bytes", better=LOWER)
_DESCRIPTORS = Metric(name="descriptors", unit="", better=LOWER)
_P50 = Metric(name="p50_ms", unit="ms", better=LOWER)
_P99 = Metric(name="p99_ms", unit="ms", better=LOWER)
_ACTS = Metric(name="acts", unit="", better=HIGHER)
_ANSWERED = Metric(name="answered", unit="", better=HIGHER)


def run(quick: bool) -> Iterator[Row]:
    """20 s when quick, else 600 s."""
    seconds = 20.0 if quick else 600.0
    config = {
        "seconds": seconds,
        "rows": NUM_ROWS,
        "ids": NUM_IDS,
        "idle_connections": IDLE,
        "acts_per_s": ATTACKERS * ACTS_PER_S,
        "requests_per_s": 2 * REQUESTS_PER_S,
    }
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name:
        soaked = _soak(Path(name), seconds)
    case = f"{seconds:g} s"
    for fault, count in soaked.faults.items():
        yield Row(case=case, metric=_COUNT[fault], value=count, config=config)
    growth = _fifth(soaked.memory, 4) - _fifth(soaked.memory, 1)
    yield Row(case=case, metric=_GROWTH, value=growth, config=config)
    for place in range(11):
        at = min(len(soaked.memory) - 1, round(place / 10 * len(soaked.memory)))
        moment = f"after {soaked.moments[at]:.0f} s"
        yield Row(case=moment, metric=_MEMORY, value=soaked.memory[at], config=config)
        yield Row(case=moment, metric=_DESCRIPTORS, value=soaked.descriptors[at], config=config)
    for transport, client in soaked.clients.items():
        p50, p99 = np.percentile(client.latencies_ms, [50, 99])
        yield Row(case=f"ordinary, {transport}", metric=_ANSWERED, value=len(client.latencies_ms), config=config)
        yield Row(case=f"ordinary, {transport}", metric=_P50, value=float(p50), config=config)
        yield Row(case=f"ordinary, {transport}", metric=_P99, value=float(p99), config=config)
    for (act, outcome), count in sorted(soaked.outcomes.items()):
        yield Row(case=f"{act}: {outcome}", metric=_ACTS, value=count, config=config)


@dataclass
class _Soaked:
    """What was seen.

    Attributes:
        faults: Counts that should all be 0.
        moments: Seconds from the start of each sample.
        memory: The server's own bytes at each.
        descriptors: Its open descriptors at each.
        clients: The ordinary clients by transport.
        outcomes: What came of the hostile acts.
    """

    faults: dict[str, int] = field(default_factory=dict)
    moments: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    clients: dict[str, _Client] = field(default_factory=dict)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)


class _Client(threading.Thread):
    """An ordinary client that checks its answers.

    Attributes:
        latencies_ms: Of each request that was answered.
        failed: Requests that got an error.
        wrong: Answers that differ from the release's rows.
    """

    def __init__(self, address: str, victim: Victim, release: Release, seed: int):
        super().__init__(daemon=True, name=f"ordinary-{seed}")
        self.latencies_ms: list[float] = []
        self.failed = 0
        self.wrong = 0
        self.done = threading.Event()
        certificate = None if address.startswith("framed:") else victim.certificate
        self._client = connect_lookup(address, timeout_s=300, tls_ca=certificate, token_file=victim.token)
        self._version = victim.version
        self._rows = release.map_rows(release.tables[0])
        self._generator = np.random.default_rng(seed)

    def run(self) -> None:
        """Ask until told to stop."""
        due = time.monotonic()
        with self._client as client:
            while not self.done.wait(max(0.0, due - time.monotonic())):
                due += 1 / REQUESTS_PER_S
                rows = self._generator.integers(0, NUM_ROWS - 1, NUM_IDS)
                started = time.perf_counter()
                try:
                    answer = client.lookup(self._version, {"pin": _ids(rows)})
                except ServingError:
                    self.failed += 1
                    continue
                self.latencies_ms.append((time.perf_counter() - started) * 1e3)
                self.wrong += not np.array_equal(answer.tables["pin"].rows, self._rows[rows])


def _soak(folder: Path, seconds: float) -> _Soaked:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * IDLE)), hard))
    release = write_release(folder / "release", {"pin": IdMap.exact(_ids(np.arange(NUM_ROWS - 1)))})
    soaked = _Soaked()
    with ExitStack() as running:
        victim, server = _serve(folder, release, running)
        before = _descriptors(server.pid)
        idle = open_idle(victim.frames, IDLE)
        addresses = {"frames": f"framed:unix:{victim.frames}", "grpc over tls": victim.grpc_address}
        for seed, (transport, address) in enumerate(addresses.items()):
            soaked.clients[transport] = _Client(address, victim, release, seed)
            soaked.clients[transport].start()
        attackers = [Attacker(victim, seed=seed, hold_s=4) for seed in range(ATTACKERS)]
        ended = threading.Event()
        threads = [threading.Thread(target=_attack, args=(attacker, ended), daemon=True) for attacker in attackers]
        for thread in threads:
            thread.start()
        crashes = _watch(server.pid, soaked, seconds)
        ended.set()
        for thread in threads:
            thread.join()
        for client in soaked.clients.values():
            client.done.set()
            client.join()
        for attacker in attackers:
            attacker.close()
            soaked.outcomes.update(attacker.outcomes)
        for stream in idle:
            stream.close()
        time.sleep(5)
        left = 0 if crashes else _descriptors(server.pid) - before
        log = server.log_path.read_text(errors="replace")
    soaked.faults = {
        "crashes": crashes,
        "logged_tracebacks": log.count("Traceback (most recent call last)"),
        "wrong_answers": sum(client.wrong for client in soaked.clients.values()),
        "failed_requests": sum(client.failed for client in soaked.clients.values()),
        "left_descriptors": max(0, left),
    }
    return soaked


def _serve(folder: Path, release: Release, running: ExitStack) -> tuple[Victim, ServerProcess]:
    certificate, key = _certificate(folder)
    (folder / "token").write_text("the soak's own token")
    (folder / "wrong").write_text("somebody else's token")
    frames = folder / "frames.sock"
    config = LookupConfig(
        releases=(release.path,),
        listen="127.0.0.1:0",
        framed_listen=f"unix:{frames}",
        tls_certificate=certificate,
        tls_key=key,
        token_file=folder / "token",
        max_message_bytes=_MAX_MESSAGE_BYTES,
        stall_timeout_s=2,
    )
    server = running.enter_context(ServerProcess("lookup", config, folder))
    victim = Victim(
        frames=frames,
        grpc_address=server.address,
        certificate=certificate,
        token=folder / "token",
        wrong_token=folder / "wrong",
        version=release.version,
        max_message_bytes=_MAX_MESSAGE_BYTES,
    )
    for address in (f"framed:unix:{frames}", server.address):  # what a first request opens is no leak
        tls = None if address.startswith("framed:") else certificate
        with connect_lookup(address, timeout_s=10, tls_ca=tls, token_file=victim.token) as client:
            client.lookup(release.version, {"pin": [1]})
    time.sleep(0.5)
    return victim, server


def _attack(attacker: Attacker, ended: threading.Event) -> None:
    due = time.monotonic()
    while not ended.wait(max(0.0, due - time.monotonic())):
        due = max(due + 1 / ACTS_PER_S, time.monotonic() - 1)
        attacker.act()


def _watch(pid: int, soaked: _Soaked, seconds: float) -> int:
    """Sample the process until the time is over; 1 if it ended before."""
    started = time.monotonic()
    every_s = min(1.0, seconds / 40)
    while (moment := time.monotonic() - started) < seconds:
        try:
            memory, descriptors = own_bytes(pid), _descriptors(pid)
        except (OSError, StopIteration):
            return 1
        soaked.moments.append(moment)
        soaked.memory.append(memory)
        soaked.descriptors.append(descriptors)
        time.sleep(every_s)
    return 0


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _fifth(samples: list[int], place: int) -> float:
    return statistics.median(samples[place * len(samples) // 5 : (place + 1) * len(samples) // 5])


def _certificate(folder: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        raise RuntimeError("openssl is needed for the server's certificate: install it")
    certificate, key = folder / "server.pem", folder / "server.key"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
        timeout=30,
    )  # fmt: skip
    return certificate, key


def _ids(rows: np.ndarray) -> np.ndarray:
    """Ids that are no row numbers."""
    return rows.astype(np.int64) * 7 + 13
