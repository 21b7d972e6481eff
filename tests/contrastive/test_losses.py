"""The losses' closed-form derivatives against autograd on the formulas, written out positive by positive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from multifacet.contrastive.candidates import Slots
from multifacet.contrastive.losses import LossName, ScoreLoss

POSITIVES = [[0, 4], [3], [7, 7, 2]]  # places of each query's positives; one is drawn twice
KNOWN = [[0, 4, 9], [3], [2, 7]]
MARGIN, WEIGHT, SCALE = 0.1, 3.0, 2.0


def slots(places: list[list[int]]) -> Slots:
    return Slots(indptr=np.cumsum([0, *map(len, places)]), slots=np.int32([slot for row in places for slot in row]))


def written_out(name: LossName, scores: torch.Tensor, *, mask_known: bool) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row, positives, known in zip(scores, POSITIVES, KNOWN, strict=True):
        for target in positives:
            hidden = set(known) if mask_known else {target}
            negatives = row[[slot for slot in range(len(row)) if slot not in hidden]]
            if name == "softmax":
                total = total + torch.logsumexp(torch.cat([row[target, None], negatives]), 0) - row[target]
            elif name == "ccl":
                total = total + (1 - row[target]) + WEIGHT * (negatives - MARGIN).clamp(min=0).mean()
            else:
                total = total + F.softplus(negatives - row[target]).mean()
    return total


@pytest.mark.parametrize("mask_known", [True, False])
@pytest.mark.parametrize("name", ["softmax", "ccl", "bpr"])
def test_loss_and_derivatives_equal_the_formula(name: LossName, mask_known: bool) -> None:
    generator = np.random.default_rng(0)
    similarities = generator.normal(size=(3, 10)).astype(np.float32)
    bias = generator.normal(size=10).astype(np.float32)
    scores = torch.from_numpy(similarities * SCALE + bias).double().requires_grad_()
    expected = written_out(name, scores, mask_known=mask_known)
    expected.backward()

    block = similarities.copy()
    loss = ScoreLoss(name=name, margin=MARGIN, negative_weight=WEIGHT)(
        block, scale=SCALE, bias=bias, targets=slots(POSITIVES), masked=slots(KNOWN) if mask_known else None, first=0
    )

    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert scores.grad is not None
    np.testing.assert_allclose(block, scores.grad.numpy(), atol=2e-6)
    if mask_known:
        assert block[0, 9] == 0.0


def test_large_scores_neither_overflow_nor_vanish() -> None:
    block = np.float32([[200.0, -200.0, 199.0]])

    loss = ScoreLoss(name="softmax")(
        block, scale=1.0, bias=np.zeros(3, np.float32), targets=slots([[1]]), masked=slots([[1]]), first=0
    )

    assert loss == pytest.approx(400.0 + np.log1p(np.exp(-1.0)), rel=1e-6)
    np.testing.assert_allclose(block, [[0.731059, -1.0, 0.268941]], atol=1e-5)
