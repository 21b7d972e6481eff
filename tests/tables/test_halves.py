"""Stochastic rounding: to a neighbour, by a chance that keeps the mean; and what it is for, steps too small to be seen."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
import torch

from multifacet.tables.halves import bits, store_stochastically
from multifacet.tables.occurrences import Occurrences, update_rows

HALVES = [torch.float16, torch.bfloat16]


@numba.njit
def store_all(array: Any, value: Any, random: Any) -> None:
    for index in range(len(array)):
        store_stochastically(array, index, value, random[index])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [0.7123, -1.00003, 3.3e-4, 4.1e-6, -2.71e-8, 812.3, 0.0, 0.5])
def test_a_number_becomes_one_of_its_neighbours_and_itself_on_average(dtype: torch.dtype, value: float) -> None:
    rounded = torch.empty(50_000, dtype=dtype)
    number = np.float32(value)

    store_all(bits(rounded), number, np.random.default_rng(1).integers(0, 2**32, len(rounded), dtype=np.uint32))

    nearest = torch.tensor(float(number)).to(dtype)
    towards = torch.tensor(float("inf") if float(nearest) < number else -float("inf"), dtype=dtype)
    neighbours = {float(nearest), float(torch.nextafter(nearest, towards)) if float(nearest) != number else float(nearest)}
    assert set(rounded.unique().tolist()) == neighbours
    spread = max(neighbours) - min(neighbours)
    # A share of draws, each 0 or 1: its standard deviation is at most half a root of their number.
    assert rounded.double().mean().item() == pytest.approx(float(number), abs=5 * spread * 0.5 / len(rounded) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("dtype", HALVES)
def test_steps_below_the_last_place_are_not_lost(dtype: torch.dtype) -> None:
    dim, num_steps = 512, 1000
    last_place = torch.finfo(dtype).eps
    step = last_place / 40
    tables = [torch.ones(3, dim, dtype=kind) for kind in (torch.float32, dtype)]
    squares = [np.full(3, 1e6, dtype=np.float32) for _ in tables]  # so that each step is as long as the one before
    rows = Occurrences.of(np.int32([1]), np.full(3, -1, dtype=np.int32))
    gradients = np.ones((1, dim), dtype=np.float32)

    for number in range(num_steps):
        for table, state in zip(tables, squares, strict=True):
            update_rows(bits(table), state, gradients, rows, np.zeros(1, dtype=np.int64), lr=1e3 * step, seed=number)

    expected, got = tables[0][1].double(), tables[1][1].double()
    assert float(torch.tensor(1.0 - step).to(dtype)) == 1.0, "rounding to nearest would keep such a step"
    assert expected.mean().item() == pytest.approx(1.0 - num_steps * step, rel=1e-2)
    assert got.mean().item() == pytest.approx(expected.mean().item(), abs=5 * last_place * (num_steps / 40 / dim) ** 0.5)
    assert bool((tables[1][[0, 2]] == 1.0).all())
    np.testing.assert_array_equal(squares[0], squares[1])


def test_the_same_seed_rounds_alike_and_another_does_not() -> None:
    tables = []
    for seed in (3, 3, 4):
        table = torch.linspace(0.1, 1.0, 64).bfloat16().repeat(2, 1)
        rows = Occurrences.of(np.int32([0, 1]), np.full(2, -1, dtype=np.int32))
        gradients = np.full((2, 64), 0.37, dtype=np.float32)
        state, turns = np.ones(2, dtype=np.float32), np.zeros(1, dtype=np.int64)
        update_rows(bits(table), state, gradients, rows, turns, lr=0.01, seed=seed)
        tables.append(table)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert not torch.equal(tables[0][0], tables[0][1]), "two rows are rounded by the same bits"
