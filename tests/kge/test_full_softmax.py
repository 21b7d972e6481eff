"""The full softmax against its definition, value and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from multifacet.kge import full_softmax
from multifacet.kge.full_softmax import Answers, full_softmax_loss


def naive(
    queries: Tensor, keys: Tensor, bias: Tensor, answers: list[list[int]], weights: Tensor, smoothing: float, compete: bool
) -> Tensor:
    """Triple by triple, as 1-vs-all training writes it."""
    total = queries.new_zeros(())
    for query, own in enumerate(answers):
        scores = queries[query] @ keys.t() + bias
        for answer in own:
            if compete:
                log_probabilities = scores - scores.logsumexp(0)
                loss = -(1 - smoothing) * log_probabilities[answer] - smoothing * log_probabilities.mean()
            else:
                rivals = [j for j in range(len(keys)) if j == answer or j not in own]
                loss = scores[rivals].logsumexp(0) - scores[answer]
            total = total + weights[query] * loss
    return total


@given(
    num_queries=st.integers(1, 9),
    num_keys=st.integers(2, 12),
    dim=st.integers(1, 5),
    mode=st.sampled_from([(0.0, True), (0.0, False), (0.3, True)]),
    seed=st.integers(0, 1000),
    block=st.sampled_from([1, 20, 1 << 22]),
)
def test_equals_one_triple_at_a_time(
    num_queries: int, num_keys: int, dim: int, mode: tuple[float, bool], seed: int, block: int
) -> None:
    smoothing, compete = mode
    generator = torch.Generator().manual_seed(seed)
    leaves = [
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((num_queries, dim), (num_keys, dim), (num_keys,))
    ]
    weights = torch.rand(num_queries, generator=generator, dtype=torch.float64)
    random = np.random.default_rng(seed)
    answers = [sorted(random.choice(num_keys, size=random.integers(1, num_keys), replace=False)) for _ in range(num_queries)]
    columns = Answers(
        queries=torch.tensor([query for query, own in enumerate(answers) for _ in own]),
        candidates=torch.tensor([int(answer) for own in answers for answer in own]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_softmax, "_BLOCK_ELEMENTS", block)
        loss = full_softmax_loss(
            leaves[0],
            leaves[1],
            columns,
            bias=leaves[2],
            query_weights=weights,
            label_smoothing=smoothing,
            answers_compete=compete,
        )
    expected = naive(*leaves, answers, weights, smoothing, compete)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for own, autograd in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(own, autograd, rtol=1e-9, atol=1e-10)


@given(
    mode=st.sampled_from([(0.0, True), (0.0, False), (0.3, True)]),
    seed=st.integers(0, 1000),
    num_keys=st.integers(3, 60),
    block=st.sampled_from([1, 100, 1 << 24]),
)
def test_products_in_bfloat16_keep_loss_and_gradients_to_their_precision(
    mode: tuple[float, bool], seed: int, num_keys: int, block: int
) -> None:
    smoothing, compete = mode
    generator = torch.Generator().manual_seed(seed)
    # Scores of about 1: a score of 30 that keeps 8 bits would be off by a tenth, and its probability with it.
    queries, keys, bias = (
        torch.randn(*shape, generator=generator).mul_(0.5).requires_grad_() for shape in ((7, 16), (num_keys, 16), (num_keys,))
    )
    random = np.random.default_rng(seed)
    own = [np.sort(random.choice(num_keys, size=random.integers(1, 3), replace=False)) for _ in range(len(queries))]
    answers = Answers(
        queries=torch.from_numpy(np.repeat(np.arange(len(own)), [len(some) for some in own])),
        candidates=torch.from_numpy(np.concatenate(own)),
    )
    found, exact = [], []
    for product_dtype, results in ((torch.bfloat16, found), (None, exact)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(full_softmax, "_BLOCK_ELEMENTS_HALF", block)
            loss = full_softmax_loss(
                queries,
                keys,
                answers,
                bias=bias,
                label_smoothing=smoothing,
                answers_compete=compete,
                product_dtype=product_dtype,
            )
        results += [loss.detach(), *torch.autograd.grad(loss, [queries, keys, bias])]
    for own_result, expected in zip(found, exact, strict=True):
        assert own_result.dtype == torch.float32
        assert (own_result - expected).norm() <= 0.02 * expected.norm() + 0.02
        # Not the float32 products by another name.
        assert not torch.equal(own_result, expected)


@pytest.mark.parametrize("compete", [True, False])
def test_far_scores_give_finite_gradients(compete: bool) -> None:
    queries = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    keys = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    answers = Answers(queries=torch.tensor([0, 0, 1]), candidates=torch.tensor([0, 2, 0]))
    loss = full_softmax_loss(queries, keys, answers, answers_compete=compete)
    gradients = torch.autograd.grad(loss, [queries, keys])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    # The second query's answer has no mass at all, and is still pulled up.
    assert gradients[1][0, 0] > 1.0


def test_answers_come_out_of_sparse_rows() -> None:
    answers = Answers.from_csr(np.array([0, 2, 2, 5]), np.array([7, 3, 1, 0, 4], dtype=np.int32), np.array([2, 0, 1, 2]))
    assert answers.queries.tolist() == [0, 0, 0, 1, 1, 3, 3, 3]
    assert answers.candidates.tolist() == [1, 0, 4, 7, 3, 1, 0, 4]


def test_shapes_and_contradicting_options_are_refused() -> None:
    answers = Answers(queries=torch.tensor([0]), candidates=torch.tensor([0]))
    with pytest.raises(ValueError, match="width"):
        full_softmax_loss(torch.zeros(1, 2), torch.zeros(3, 4), answers)
    with pytest.raises(ValueError, match="answers_compete"):
        full_softmax_loss(torch.zeros(1, 2), torch.zeros(3, 2), answers, label_smoothing=0.1, answers_compete=False)
