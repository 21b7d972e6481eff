"""The blocked loss and its closed-form gradient against autograd in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tables.candidates import Hits
from tables.softmax import sampled_softmax_loss

NUM_QUERIES, NUM_KEYS, DIM = 11, 7, 4


def hits() -> Hits:
    """Examples with the same query (two of them) share what is masked: its target and two more candidates."""
    slots = [[query, (query + 2) % NUM_KEYS, (query + 5) % NUM_KEYS] for query in range(NUM_KEYS)]
    return Hits(
        groups=(np.arange(NUM_QUERIES) % NUM_KEYS).astype(np.int32),
        indptr=np.arange(0, 3 * NUM_KEYS + 1, 3, dtype=np.int64),
        slots=np.array(slots, dtype=np.int32).ravel(),
    )


@pytest.mark.parametrize("block_elements", [1, 3 * NUM_KEYS, 1 << 18])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_and_gradients_are_autograds(block_elements: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tables.softmax.BLOCK_ELEMENTS", block_elements)
    generator = torch.Generator().manual_seed(0)
    shapes = ((NUM_QUERIES, DIM), (NUM_KEYS, DIM), (NUM_KEYS,))
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    targets = torch.arange(NUM_QUERIES) % NUM_KEYS

    loss = sampled_softmax_loss(leaves[0], leaves[1], targets, bias=leaves[2], hits=hits() if masked else None)
    (3.0 * loss).backward()

    logits = copies[0] @ copies[1].t() + copies[2]
    if masked:
        mask = torch.zeros(NUM_QUERIES, NUM_KEYS, dtype=torch.bool)
        for query in range(NUM_QUERIES):
            mask[query, [(query + 2) % NUM_KEYS, (query + 5) % NUM_KEYS]] = True
        logits = logits.masked_fill(mask, -torch.inf)
    expected = F.cross_entropy(logits, targets)
    (3.0 * expected).backward()
    torch.testing.assert_close(loss, expected)
    for leaf, copy in zip(leaves, copies, strict=True):
        torch.testing.assert_close(leaf.grad, copy.grad)


def test_a_hopeless_target_still_has_a_finite_loss_and_its_gradient() -> None:
    queries = torch.tensor([[1000.0]]).requires_grad_()
    keys = torch.tensor([[1.0], [-1.0]])

    loss = sampled_softmax_loss(queries, keys, torch.tensor([1]))
    loss.backward()

    assert 80 < float(loss.detach()) < 100
    assert queries.grad is not None
    assert queries.grad.item() == pytest.approx(2.0)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="need one width"):
        sampled_softmax_loss(torch.ones(2, 3), torch.ones(4, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected shape \(2,\), got \(3,\)"):
        sampled_softmax_loss(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(3, dtype=torch.int64))
