"""The random numbers beneath everything: uniform, without bias, and a function of their key."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from multifacet.graphdb.counter import derive_key, draw_below, draw_unit, key_at
from multifacet.graphdb.sampling.stream import Stream


@pytest.mark.parametrize("bound", [3, 3 << 30])
def test_integers_are_unbiased_at_any_bound(bound: int):
    # Of 2^32 numbers, 3 * 2^30 outcomes take one or two each: without rejection, every third would come twice as often.
    drawn = [draw_below(np.uint64(derive_key(position)), 0, bound)[0] % 3 for position in range(6000)]
    assert chisquare(np.bincount(drawn, minlength=3)).pvalue > 1e-4


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**32))
def test_integers_are_below_their_bound(key: int, bound: int):
    counter = 0
    for _ in range(3):
        drawn, counter = draw_below(np.uint64(key), counter, bound)
        assert 0 <= drawn < bound


def test_units_are_uniform_within_the_open_interval():
    drawn = []
    counter = 0
    for _ in range(3000):
        unit, counter = draw_unit(np.uint64(7), counter)
        drawn.append(unit)
    assert 0 < min(drawn) < max(drawn) < 1
    assert kstest(drawn, "uniform").pvalue > 1e-3


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4), st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_keys_tell_their_parts_apart(parts: list[int], others: list[int]):
    wrapped = [[part % 2**64 for part in each] for each in (parts, others)]
    assert (derive_key(*parts) == derive_key(*others)) == (wrapped[0] == wrapped[1])


def test_positions_of_neighbouring_keys_do_not_meet():
    keys = {int(key_at(np.uint64(key), position)) for key, position in itertools.product(range(50), range(50))}
    assert len(keys) == 2500


def test_calls_count():
    stream, again = Stream(3), Stream(3)
    assert [stream.next_key() for _ in range(3)] == [again.next_key() for _ in range(3)]
    assert stream.next_key() not in {Stream(3).next_key(), Stream(4).next_key()}
