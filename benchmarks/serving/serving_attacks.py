"""Clients without a token at a lookup server and a ranker: what ordinary requests notice of it, and what memory it takes.

Each attack does one thing a hundred times a second, from a process of its own, and holds 400 of what it opened: headers of
calls without a message, messages of 4 MB, idle streams and connections. Windows with and without it alternate, and ordinary
clients (gRPC and framed lookups of 500 ids, rankings of 9 candidates, 50 a second each) go on through both. The ratio is the
p99 without the attack over the p99 with it: above 1/3 is asked for. Memory is the servers' own (RssAnon) after each round of
all attacks, beside what it was after the first one.
"""

from __future__ import annotations

import functools
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.harness import LOWER, Metric, Peer, Row
from benchmarks.harness.attacks import ATTACKS, Target, attack
from benchmarks.harness.forked import FORKS, ForkedServer
from benchmarks.harness.memory import own_bytes
from benchmarks.harness.witness import IDS, write_witness
from multifacet.serving import LookupConfig, RankerClient, RankerConfig, ServingError, connect_lookup

_P99 = Metric(name="p99", unit="us", better=LOWER)
_FAILED = Metric(name="failed", unit="", better=LOWER)
_MEMORY = Metric(name="memory", unit="bytes", better=LOWER)
_INTERVAL_S = 0.02

Window = tuple[float, float]
"""Its beginning and its end."""


class Asker(threading.Thread):
    """An ordinary client that notes how long each request took.

    Args:
        ask: One request.

    Attributes:
        latencies: Of requests so far: when each began, and its seconds.
        num_failed: Requests that failed.
    """

    def __init__(self, ask: Callable[[], object]):
        super().__init__(daemon=True)
        self.latencies: list[tuple[float, float]] = []
        self.num_failed = 0
        self._ask = ask
        self._over = threading.Event()

    def run(self) -> None:
        """Ask until told to stop."""
        while not self._over.wait(_INTERVAL_S):
            began = time.monotonic()
            try:
                self._ask()
            except ServingError:
                self.num_failed += 1
            self.latencies.append((began, time.monotonic() - began))

    def stop(self) -> None:
        """End with the request under way."""
        self._over.set()
        self.join()

    def p99_us(self, windows: list[tuple[float, float]]) -> float:
        """The 99th percentile of requests that began in these windows."""
        within = [took for began, took in self.latencies if any(start <= began < stop for start, stop in windows)]
        return float(np.quantile(within, 0.99) * 1e6)


def run(quick: bool) -> Iterator[Row]:
    """Two rounds of windows of 0.4 s when quick, else four of 4 s."""
    window_s, num_rounds = (0.4, 2) if quick else (4.0, 4)
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name, ExitStack() as running:
        yield from _run(Path(name), running, window_s, num_rounds)


def _run(folder: Path, running: ExitStack, window_s: float, num_rounds: int) -> Iterator[Row]:
    token = folder / "token"
    token.write_text("ours")
    release = write_witness(folder / "release", 1)
    frames = f"unix:{folder / 'frames'}"
    fields = {"releases": (release.path,), "token_file": token}
    lookup = LookupConfig(**fields, listen=_free_address(), framed_listen=frames, ready_file=folder / "lookup.ready")
    ranker = RankerConfig(
        **fields,
        listen=_free_address(),
        lookup=f"framed:{frames}",
        lookup_token_file=token,
        ready_file=folder / "ranker.ready",
        lookup_timeout_s=5,
    )
    servers = {"lookup server": ForkedServer(lookup), "ranker": ForkedServer(ranker)}
    for server in servers.values():
        running.enter_context(server)
    askers = {name: Asker(ask) for name, ask in _clients(running, lookup, ranker, token, release.version)}
    for asker in askers.values():
        asker.start()
    time.sleep(1)
    targets = {
        "lookup server": Target(lookup.listen, str(folder / "frames"), "/multifacet.serving.v1.Lookup/Lookup"),
        "ranker": Target(ranker.listen, "", "/multifacet.serving.v1.Ranker/Rank"),
    }
    config = {"window_s": window_s, "windows": 2 * num_rounds}
    pairs = [
        (attack_name, target_name)
        for attack_name in ATTACKS
        for target_name, target in targets.items()
        if target.frames or "frame" not in attack_name
    ]
    windows: dict[tuple[str, str], list[tuple[Window, Window]]] = {pair: [] for pair in pairs}
    memory: list[dict[str, int]] = []
    for _ in range(num_rounds):
        for pair in pairs:
            windows[pair].append(_windows(pair[0], targets[pair[1]], window_s))
        memory.append({name: own_bytes(server.pid) for name, server in servers.items()})
    for attack_name, target_name in pairs:
        calm, stormy = ([both[place] for both in windows[attack_name, target_name]] for place in range(2))
        for asker_name, asker in askers.items():
            if asker_name.startswith("ranking") == (target_name == "ranker"):
                case = f"{attack_name} at the {target_name}, {asker_name}"
                peer = Peer(name="without it", value=asker.p99_us(calm))
                yield Row(case=case, metric=_P99, value=asker.p99_us(stormy), peer=peer, config=config)
    yield from _memory_rows(memory, config)
    for name, asker in askers.items():
        asker.stop()
        yield Row(case=name, metric=_FAILED, value=asker.num_failed, config=config)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _memory_rows(memory: list[dict[str, int]], config: dict[str, float]) -> Iterator[Row]:
    for name, first in memory[0].items():
        for number, held in enumerate(memory[1:], 2):
            peer = Peer(name="after the first round", value=first)
            yield Row(case=f"{name}, after round {number}", metric=_MEMORY, value=held[name], peer=peer, config=config)


def _windows(name: str, target: Target, window_s: float) -> tuple[Window, Window]:
    """A window without the attack and one with it."""
    began = time.monotonic()
    time.sleep(window_s)
    calm = began, time.monotonic()
    over = FORKS.Event()
    process = FORKS.Process(target=attack, args=(name, target, over), daemon=True)
    process.start()
    time.sleep(min(1.0, window_s))  # until it is at work
    began = time.monotonic()
    time.sleep(window_s)
    stormy = began, time.monotonic()
    over.set()
    process.join(2)
    process.kill()
    process.join()
    time.sleep(0.5)
    return calm, stormy


def _clients(
    running: ExitStack, lookup: LookupConfig, ranker: RankerConfig, token: Path, version: str
) -> Iterator[tuple[str, Callable[[], object]]]:
    pins, ids = np.arange(9), np.arange(IDS)
    dense = np.stack([np.full(9, 7), pins], axis=1)
    for name, address in (("lookups over gRPC", lookup.listen), ("lookups over frames", f"framed:{lookup.framed_listen}")):
        client = running.enter_context(connect_lookup(address, token_file=token, timeout_s=5))
        yield name, functools.partial(client.lookup, version, {"pin": ids})
    scored = running.enter_context(RankerClient(ranker.listen, token_file=token, timeout_s=5))
    yield "rankings", lambda: scored.rank({"user": 7}, {"pin": pins}, dense=dense)
