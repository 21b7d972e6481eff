"""Lazy Adam against torch's SparseAdam."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multifacet.tables.optim import LazyAdam


def test_steps_are_those_of_torch_sparse_adam() -> None:
    generator = np.random.default_rng(0)
    table = torch.from_numpy(generator.normal(size=(6, 4)).astype(np.float32))
    peer = torch.nn.Parameter(table.clone())
    expected = torch.optim.SparseAdam([peer], lr=0.1, betas=(0.8, 0.99))
    optimizer = LazyAdam(6, 4, lr=0.1, beta1=0.8, beta2=0.99)
    for _ in range(6):
        rows = torch.from_numpy(generator.permutation(5)[:3].astype(np.int32))  # never the last
        gradients = torch.from_numpy(generator.normal(size=(3, 4)).astype(np.float32))
        optimizer.step(table, rows, gradients)
        peer.grad = torch.sparse_coo_tensor(rows.long()[None], gradients, (6, 4), check_invariants=False)
        expected.step()

    np.testing.assert_allclose(table.numpy(), peer.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert (optimizer.state > 0).tolist() == [True] * 5 + [False]
    assert torch.allclose(optimizer.state, optimizer.squares.mean(1))


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing() -> None:
    table, optimizer = torch.ones(3, 2), LazyAdam(3, 2, lr=0.1)
    with pytest.raises(ValueError, match="The gradient of row 2"):
        optimizer.step(table, torch.tensor([2], dtype=torch.int32), torch.tensor([[1.0, float("nan")]]))
    assert torch.equal(table, torch.ones(3, 2))
