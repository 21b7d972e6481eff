"""The kernel pool: every part once, errors passed on after all threads are done, alive after a fork."""

import multiprocessing
import os
import threading
import time

import pytest
import torch

from multifacet.tables.threads import run_ranges


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("total", "min_size", "parts"), [(0, 10, 1), (9, 10, 1), (25, 10, 2), (1000, 1, 4), (1000, 0, 4)])
def test_the_ranges_cover_everything_once(total, min_size, parts):
    seen = []
    run_ranges(lambda start, stop: seen.append((start, stop)), total, min_size=min_size)
    seen.sort()
    assert len(seen) == parts
    assert [start for start, _ in seen] == [0, *(stop for _, stop in seen[:-1])]
    assert seen[-1][1] == total


def test_one_thread_means_the_callers_own():
    torch.set_num_threads(1)
    names = []
    run_ranges(lambda *_: names.append(threading.current_thread()), 1000, min_size=1)
    assert names == [threading.current_thread()]


@pytest.mark.parametrize("failing", [0, 3])
def test_an_error_is_raised_once_all_threads_are_done(failing):
    done = []

    def kernel(start: int, stop: int) -> None:
        if start == failing * 250:
            raise ArithmeticError(f"part {failing}")
        time.sleep(0.05)
        done.append(start)

    with pytest.raises(ArithmeticError, match=f"part {failing}"):
        run_ranges(kernel, 1000, min_size=1)
    assert len(done) == 3


def test_many_callers_share_the_pool():
    totals = []

    def call() -> None:
        sums = []
        run_ranges(lambda start, stop: sums.append(sum(range(start, stop))), 10_000, min_size=1)
        totals.append(sum(sums))

    callers = [threading.Thread(target=call) for _ in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert totals == [sum(range(10_000))] * 16


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_gets_a_pool_of_its_own():
    run_ranges(lambda *_: None, 1000, min_size=1)
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        run_ranges(lambda start, stop: queue.put((start, stop)), 1000, min_size=1)
        os._exit(0)
    deadline = time.monotonic() + 30
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    assert status[1] == 0
    assert sorted([queue.get(), queue.get()]) == [(0, 500), (500, 1000)]
