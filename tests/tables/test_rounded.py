"""Half-precision rows that are changed in FP32: against the FP32 optimiser, whatever the threads and the processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from multifacet.tables import RowwiseAdagrad
from multifacet.tables.rounded import step_rounded, write_rounded

HALVES = [torch.float16, torch.bfloat16]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", HALVES)
def test_steps_are_those_of_fp32_rows_within_a_last_place(dtype: torch.dtype) -> None:
    num_rows, dim = 60, 12
    whole = normal(num_rows, dim).to(dtype).float()
    for number in range(3):
        rows = torch.randperm(num_rows, generator=torch.Generator().manual_seed(number))[:40].int()
        gradients = normal(40, dim, seed=number + 1)
        half, state = whole.to(dtype), torch.full((num_rows,), 0.5)
        optimizer = RowwiseAdagrad(num_rows, lr=0.1, initial=0.5)
        optimizer.step(whole, rows, gradients)
        step_rounded(half, state, rows, gradients, lr=0.1, seed=number)
        torch.testing.assert_close(state, optimizer.state, rtol=1e-6, atol=0)
        torch.testing.assert_close(half.float(), whole, rtol=torch.finfo(dtype).eps, atol=2.0**-24)
        whole = whole.to(dtype).float()


def test_a_row_learns_at_its_share_of_the_rate() -> None:
    tables = [torch.zeros(4, 8, dtype=torch.float16) for _ in range(2)]
    gradients = normal(1, 8)
    for table, share in zip(tables, (None, torch.tensor([0.25])), strict=True):
        step_rounded(table, torch.zeros(4), torch.tensor([2]), gradients, lr=0.1, seed=5, shares=share)
    assert tables[0][2].abs().min() > 0
    torch.testing.assert_close(tables[1].float(), tables[0].float() / 4, rtol=2e-3, atol=0)
    assert not tables[1][[0, 1, 3]].any()


def test_small_steps_add_up_where_nearest_rounding_loses_each() -> None:
    num_steps, dim, lr = 400, 1024, 1e-4
    half, state = torch.ones(1, dim, dtype=torch.float16), torch.full((1,), 1e6)
    row, gradients = torch.tensor([0]), torch.ones(1, dim)
    assert (half.float() - lr).half().equal(half), "nearest rounding would keep such a step"
    for number in range(num_steps):
        step_rounded(half, state, row, gradients, lr=1e3 * lr, seed=number)
    assert float(half.float().mean()) == pytest.approx(1 - num_steps * lr, abs=1e-3)


def test_bits_do_not_depend_on_threads_nor_on_how_rows_are_shared_out(threads: Any) -> None:
    num_rows, dim = 3000, 64
    start, gradients = normal(num_rows, dim).half(), normal(num_rows, dim, seed=1)
    rows = torch.arange(num_rows)
    stepped = []
    for count in (1, 2):
        threads(count)
        stepped.append(start.clone())
        step_rounded(stepped[-1], torch.ones(num_rows), rows, gradients, lr=0.01, seed=7)
    assert torch.equal(*stepped)
    values = normal(num_rows, dim, seed=2)
    whole, other = torch.zeros_like(start), torch.zeros_like(start)
    parts = [torch.zeros_like(part) for part in start.split(1000)]
    write_rounded(whole, rows, values, seed=7)
    write_rounded(other, rows, values, seed=8)
    for number, part in enumerate(parts):
        write_rounded(part, torch.arange(1000), values[1000 * number : 1000 * (number + 1)], seed=7, first=1000 * number)
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(other, whole)
    torch.testing.assert_close(whole.float(), values, rtol=1e-3, atol=2.0**-24)
    write_rounded(other, rows, whole.float(), seed=9)
    assert torch.equal(other, whole), "numbers that the type holds stay"


def test_wrong_tensors_rows_and_gradients_are_refused() -> None:
    table, state = torch.zeros(4, 2, dtype=torch.float16), torch.zeros(4)
    good: dict[str, Any] = {"table": table, "state": state, "rows": torch.tensor([0]), "gradients": torch.ones(1, 2)}
    for wrong, message in (
        ({"table": torch.zeros(4, 2)}, "expected a table .* of float16 or bfloat16"),
        ({"gradients": torch.zeros(1, 3)}, r"values is torch.float32 \[1, 3\]"),
        ({"rows": torch.tensor([4])}, "rows reach from 4 to 4; the table has rows 0 to 3"),
        ({"rows": torch.tensor([-1])}, "rows reach from -1"),
        ({"state": torch.zeros(3)}, r"state is torch.float32 \[3\]"),
        ({"shares": torch.zeros(2)}, r"shares \[2\]"),
        ({"gradients": torch.full((1, 2), torch.nan)}, "row 0 .* is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            step_rounded(**(good | wrong), lr=0.1, seed=0)
    assert not table.any()
    assert not state.any()
