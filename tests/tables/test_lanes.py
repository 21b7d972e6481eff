"""Lanes run side by side, hand errors on, and leave torch's threads as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tables.lanes import Lanes


@pytest.fixture(params=[1, 2, 4])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_threads_are_shared_out(num_threads: int) -> None:
    with Lanes() as lanes:
        inside = lanes.run(torch.get_num_threads, torch.get_num_threads)
        prepared = [lanes.prepare(lambda position=position: position) for position in range(5)]
        assert [future.result() for future in prepared] == list(range(5))

    assert inside == (max(1, num_threads // 2),) * 2
    assert torch.get_num_threads() == num_threads


def test_two_lanes_run_at_the_same_time() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=20)
    try:
        with Lanes() as lanes:
            assert sorted(lanes.run(meeting.wait, meeting.wait)) == [0, 1]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("failing", ["first", "second", "prepare"])
def test_an_error_reaches_the_caller_and_threads_are_restored(num_threads: int, failing: str) -> None:
    def fail() -> int:
        raise RuntimeError("no row 7")

    def run() -> None:
        with Lanes() as lanes:
            if failing == "prepare":
                lanes.prepare(fail).result()
            lanes.run(fail if failing == "first" else int, fail if failing == "second" else int)

    with pytest.raises(RuntimeError, match="no row 7"):
        run()

    assert torch.get_num_threads() == num_threads
