"""Squared error and microseconds a row of INT4 rounding: min/max, PyTorch's greedy search, and the least squares refit.

relative_error is the sum of squared errors over the sum of squares. One thread, so that all three are compared alike, but
for the case `refit, all threads`. us_per_row is by the clock, cpu_us_per_row the processor time that it took, which other
work on the machine changes less. min/max is FBGEMM's operator, greedy is quantized::embedding_bag_4bit_prepack; each case's
peer is the one before it in cost. Rows are drawn: normal with a length of its own for each row, and Student's t with 5
degrees of freedom, whose tails are those of tables trained on skewed frequencies.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import LOWER, Metric, Peer, Row
from multifacet.tables import decode, encode, relative_error
from multifacet.tables.codec.rows import Rounding

ERROR = Metric(name="relative_error", unit="", better=LOWER)
MICROSECONDS = Metric(name="us_per_row", unit="us", better=LOWER)
CPU_MICROSECONDS = Metric(name="cpu_us_per_row", unit="us", better=LOWER)
DIM = 64
_PEERS: dict[Rounding, Rounding] = {"greedy": "minmax", "refit": "greedy"}
_ROUNDS = 3


def run(quick: bool) -> Iterator[Row]:
    """20,000 rows of each kind when quick, else 200,000; greedy on a tenth of them."""
    num_rows = 20_000 if quick else 200_000
    threads = torch.get_num_threads()
    for kind, vectors in _rows(num_rows).items():
        try:
            torch.set_num_threads(1)
            found: dict[Rounding, tuple[float, float, float]] = {
                "minmax": _measure(vectors, "minmax"),
                "greedy": _measure(vectors[: num_rows // 10], "greedy"),
                "refit": _measure(vectors, "refit"),
            }
            torch.set_num_threads(threads)
            _, parallel, _ = _measure(vectors, "refit")
        finally:
            torch.set_num_threads(threads)
        config = {"rows": num_rows, "dim": DIM, "precision": "int4", "kind": kind, "threads": 1}
        for rounding, values in found.items():
            peer = _PEERS.get(rounding)
            for position, metric in enumerate((ERROR, MICROSECONDS, CPU_MICROSECONDS)):
                beside = None if peer is None else Peer(name=peer, value=found[peer][position])
                yield Row(case=f"{rounding}, {kind}", metric=metric, value=values[position], peer=beside, config=config)
        beside = Peer(name="minmax", value=found["minmax"][0])
        yield Row(case=f"refit against minmax, {kind}", metric=ERROR, value=found["refit"][0], peer=beside, config=config)
        yield Row(
            case=f"refit, all threads, {kind}",
            metric=MICROSECONDS,
            value=parallel,
            peer=Peer(name="refit on one thread", value=found["refit"][1]),
            config=config | {"threads": threads},
        )


def _rows(num_rows: int) -> dict[str, Tensor]:
    generator = np.random.default_rng(0)
    normal = generator.standard_normal((num_rows, DIM)) * generator.lognormal(sigma=0.5, size=(num_rows, 1))
    student = generator.standard_t(5, size=(num_rows, DIM))
    return {"normal": torch.from_numpy(normal).float(), "student": torch.from_numpy(student).float()}


def _measure(vectors: Tensor, rounding: Rounding) -> tuple[float, float, float]:
    """Give the relative error, and the least of some rounds' clock and processor time for a row."""
    encode(vectors[:1000], "int4", rounding)
    seconds, cpu_seconds = [], []
    for _ in range(_ROUNDS):
        started, cpu_started = time.perf_counter(), time.process_time()
        encoded = encode(vectors, "int4", rounding)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    per_row = 1e6 / len(vectors)
    return relative_error(vectors, decode(encoded, DIM, "int4")), min(seconds) * per_row, min(cpu_seconds) * per_row
