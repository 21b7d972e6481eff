"""The losses' closed-form derivatives against autograd on the formulas, written out positive by positive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from multifacet.contrastive.candidates.candidates import Slots
from multifacet.contrastive.objective.differentiable import sum_losses
from multifacet.contrastive.objective.losses import LossName, ScoreLoss

POSITIVES = [[0, 4], [3], [7, 7, 2]]  # places of each query's positives; one is drawn twice
KNOWN = [[0, 4, 9], [3], [2, 7]]
MARGIN, WEIGHT, SCALE = 0.1, 3.0, 2.0


def slots(places: list[list[int]]) -> Slots:
    return Slots(indptr=np.cumsum([0, *map(len, places)]), slots=np.int32([slot for row in places for slot in row]))


def written_out(name: LossName, scores: torch.Tensor, bias: torch.Tensor, *, mask_known: bool) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row, positives, known in zip(scores, POSITIVES, KNOWN, strict=True):
        for target in positives:
            hidden = set(known) if mask_known else {target}
            negatives = row[[slot for slot in range(len(row)) if slot not in hidden]]
            if name == "softmax":
                total = total + torch.logsumexp(torch.cat([row[target, None], negatives]), 0) - row[target]
            elif name == "bilateral":
                hidden |= set(positives)
                negatives = row[[slot for slot in range(len(row)) if slot not in hidden]]
                of_negatives = torch.logsumexp(negatives, 0) - np.log(len(negatives))
                total = total + WEIGHT * of_negatives - (row - bias)[target]
            elif name == "ccl":
                total = total + (1 - row[target]) + WEIGHT * (negatives - MARGIN).clamp(min=0).mean()
            else:
                total = total + F.softplus(negatives - row[target]).mean()
    return total


@pytest.mark.parametrize("mask_known", [True, False])
@pytest.mark.parametrize("name", ["softmax", "ccl", "bpr", "bilateral"])
def test_loss_and_derivatives_equal_the_formula(name: LossName, mask_known: bool) -> None:
    generator = np.random.default_rng(0)
    similarities = generator.normal(size=(3, 10)).astype(np.float32)
    bias = generator.normal(size=10).astype(np.float32)
    scores = torch.from_numpy(similarities * SCALE + bias).double().requires_grad_()
    expected = written_out(name, scores, torch.from_numpy(bias).double(), mask_known=mask_known)
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


def test_bilateral_leaves_slots_without_a_chance_out_of_the_negatives() -> None:
    block = np.float32([[0.3, -0.2, 0.5, 0.1]])
    bias = np.float32([-np.inf, 0.0, -np.inf, 0.0])  # the positive, and one that is another query's only

    loss = ScoreLoss(name="bilateral", negative_weight=1.22)(
        block, scale=2.0, bias=bias, targets=slots([[0]]), masked=None, first=0
    )

    negatives = np.exp(2.0 * np.array([-0.2, 0.1]))
    assert loss == pytest.approx(1.22 * np.log(negatives.mean()) - 0.6, rel=1e-6)
    np.testing.assert_allclose(
        block, [[-1.0, *(1.22 * negatives[:1] / negatives.sum()), 0.0, 1.22 * negatives[1] / negatives.sum()]], atol=1e-6
    )


def test_bilateral_without_negatives_is_the_positives_alone() -> None:
    block = np.float32([[0.3, -0.2]])
    loss = ScoreLoss(name="bilateral")(
        block, scale=1.0, bias=np.zeros(2, np.float32), targets=slots([[0]]), masked=slots([[0, 1]]), first=0
    )
    assert loss == pytest.approx(-0.3, rel=1e-6)
    assert block.tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize("mask_known", [True, False])
def test_the_torch_form_of_bilateral_equals_the_kernel(mask_known: bool) -> None:
    similarities = np.random.default_rng(1).normal(size=(3, 10)).astype(np.float32)
    masked = torch.zeros(3, 10, dtype=torch.bool)
    if mask_known:
        for number, places in enumerate(KNOWN):
            masked[number, places] = True
    scores = torch.from_numpy(similarities * SCALE).requires_grad_()
    queries = torch.tensor([number for number, places in enumerate(POSITIVES) for _ in places])
    targets = torch.tensor([slot for places in POSITIVES for slot in places])
    loss = ScoreLoss(name="bilateral", negative_weight=WEIGHT)
    total = sum_losses(loss, scores, queries=queries, targets=targets, masked=masked)
    total.backward()
    block = similarities.copy()
    of_kernel = loss(
        block,
        scale=SCALE,
        bias=np.zeros(10, np.float32),
        targets=slots(POSITIVES),
        masked=slots(KNOWN) if mask_known else None,
        first=0,
    )
    assert of_kernel == pytest.approx(float(total.detach()), rel=1e-5)
    assert scores.grad is not None
    np.testing.assert_allclose(block, scores.grad.numpy(), atol=2e-6)
