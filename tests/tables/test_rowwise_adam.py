"""Row-wise Adam against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multifacet.tables.rowwise_adam import RowwiseAdam


def test_steps_follow_the_formula_and_leave_other_rows_alone() -> None:
    generator = np.random.default_rng(0)
    table = torch.from_numpy(generator.normal(size=(6, 4)).astype(np.float32))
    expected, momentum, state, steps = table.double().numpy().copy(), np.zeros((6, 4)), np.zeros(6), np.zeros(6)
    optimizer = RowwiseAdam(6, 4, lr=0.1, beta1=0.8, beta2=0.9)
    for _ in range(5):
        rows = generator.permutation(5)[:3].astype(np.int32)  # never the last
        gradients = generator.normal(size=(3, 4)).astype(np.float32)
        for row, gradient in zip(rows, gradients.astype(np.float64), strict=True):
            steps[row] += 1
            momentum[row] = 0.8 * momentum[row] + 0.2 * gradient
            state[row] = 0.9 * state[row] + 0.1 * (gradient**2).mean()
            corrected = np.sqrt(state[row] / (1 - 0.9 ** steps[row]))
            expected[row] -= 0.1 * momentum[row] / (1 - 0.8 ** steps[row]) / corrected
        optimizer.step(table, torch.from_numpy(rows), torch.from_numpy(gradients))

    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert optimizer.steps[5] == 0


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing() -> None:
    table, optimizer = torch.ones(3, 2), RowwiseAdam(3, 2, lr=0.1)
    with pytest.raises(ValueError, match="The gradient of row 2"):
        optimizer.step(table, torch.tensor([2], dtype=torch.int32), torch.tensor([[1.0, float("nan")]]))
    assert torch.equal(table, torch.ones(3, 2))
