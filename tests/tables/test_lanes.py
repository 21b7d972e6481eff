"""Lanes run side by side, hand errors on, and leave torch's threads as they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from multifacet.tables.lanes import Lanes


@pytest.fixture(params=[1, 2, 4])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_threads_are_shared_out(num_threads: int) -> None:
    with Lanes() as lanes:
        inside = lanes.run(torch.get_num_threads, torch.get_num_threads)
        prepared = [lanes.prepare(partial(int, position)) for position in range(5)]
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


def test_no_lane_begins_a_phase_before_all_have_ended_the_one_before(num_threads: int) -> None:
    ended: list[int] = []
    seen: dict[int, int] = {}

    def first(lane: int) -> None:
        time.sleep(0.01 * lane)
        ended.append(lane)

    def second(lane: int) -> None:
        seen[lane] = len(ended)

    with Lanes() as lanes:
        assert lanes.num_lanes == num_threads
        prepared = lanes.prepare(lambda: threading.current_thread().name)
        lanes.phases(first, second)
        assert "prepare" not in prepared.result()

    assert seen == dict.fromkeys(range(num_threads), num_threads)


@pytest.mark.parametrize("failing", range(4))
def test_a_lane_that_fails_does_not_leave_the_others_waiting(num_threads: int, failing: int) -> None:
    def fail(lane: int) -> None:
        if lane == failing % num_threads:
            raise RuntimeError("no row 7")

    begun: list[int] = []
    with Lanes() as lanes, pytest.raises(RuntimeError, match="no row 7"):
        lanes.phases(fail, begun.append)
    assert not begun


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
