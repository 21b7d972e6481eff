"""Losses and similarities in place against autograd in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import softplus

from tables.chunks import AnswerIndex, ChunkSampler
from tables.occurrences import Occurrences, sum_rows, update_rows
from tables.rowloss import LossName, RowLoss
from tables.rowwise import RowwiseAdagrad, accumulate_rows
from tables.similarity import Dot, Euclidean, Manhattan, Moduli, Similarity, SquaredEuclidean


def reference(name: LossName, logits: Tensor, targets: Tensor) -> Tensor:
    """Each query's loss, margin 0.7 and temperature 0.5; candidates of -inf are left out."""
    positive = logits.gather(2, targets[..., None])[..., 0]
    kept = torch.isfinite(logits).scatter(2, targets[..., None], False)
    finite = logits.masked_fill(~kept, 0.0)
    if name == "softmax":
        return logits.logsumexp(2) - positive
    if name == "margin":
        return ((0.7 - positive[..., None] + finite).clamp(min=0) * kept).sum(2) / kept.sum(2)
    temperature = 0.5 if name == "self_adversarial" else 0.0
    shares = (finite.detach() * temperature).masked_fill(~kept, -torch.inf).softmax(2)
    return softplus(-positive - 0.7) + (shares * softplus(finite + 0.7)).sum(2)


@pytest.mark.parametrize("name", ["softmax", "logistic", "margin", "self_adversarial"])
@pytest.mark.parametrize("scale", [0.1, 5.0, 200.0])
def test_derivatives_are_those_of_autograd(name: LossName, scale: float) -> None:
    generator = np.random.default_rng(3)
    scores = (generator.normal(size=(2, 5, 37)) * scale).astype(np.float32)
    bias = generator.normal(size=(2, 37)).astype(np.float32)
    bias[:, [4, 36]] = -np.inf
    targets = generator.choice([0, 7, 35], size=(2, 5)).astype(np.int32)
    weights = generator.random((2, 5)).astype(np.float32)
    weights[1, 4] = 0.0
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    losses = reference(name, leaf + torch.tensor(bias, dtype=torch.float64)[:, None], torch.tensor(targets).long())
    (losses * torch.tensor(weights)).sum().backward()
    assert leaf.grad is not None

    total = RowLoss(name=name, margin=0.7, temperature=0.5)(scores, bias=bias, targets=targets, weights=weights)

    assert total == pytest.approx(losses[torch.tensor(weights) > 0].sum().item(), rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(scores, leaf.grad.numpy(), atol=2e-6 * max(1.0, scale), rtol=1e-5)
    assert not scores[:, :, [4, 36]].any(), "a candidate that is left out has a gradient"
    assert not scores[1, 4].any(), "padding has a gradient"


def direct(similarity: Similarity, queries: Tensor, keys: Tensor) -> Tensor:
    difference = queries[:, :, None] - keys[:, None]
    if isinstance(similarity, Manhattan):
        return -difference.abs().sum(-1)
    if isinstance(similarity, Moduli):
        real, imaginary = difference.chunk(2, dim=-1)
        return -(real.square() + imaginary.square()).sqrt().sum(-1)
    if isinstance(similarity, Euclidean):
        return -difference.square().sum(-1).sqrt()
    if isinstance(similarity, SquaredEuclidean):
        return -difference.square().sum(-1)
    return queries @ keys.mT


@pytest.mark.parametrize("similarity", [Dot(), SquaredEuclidean(), Euclidean(), Manhattan(), Moduli()], ids=repr)
def test_similarities_and_their_gradients_are_those_of_autograd(similarity: Similarity) -> None:
    generator = torch.Generator().manual_seed(4)
    queries, keys = torch.randn(3, 5, 12, generator=generator), torch.randn(3, 9, 12, generator=generator)
    gradients = torch.randn(3, 5, 9, generator=generator)
    exact = queries.double().requires_grad_(), keys.double().requires_grad_()
    expected = direct(similarity, *exact)
    expected.backward(gradients.double())
    scores, queries_gradient, keys_gradient = torch.empty(3, 5, 9), torch.empty_like(queries), torch.empty_like(keys)

    similarity.forward(queries, keys, scores)
    torch.testing.assert_close(scores.double(), expected.detach(), atol=1e-5, rtol=1e-5)
    similarity.backward(gradients, queries, keys, scores, queries_gradient, keys_gradient)

    for found, leaf in zip((queries_gradient, keys_gradient), exact, strict=True):
        torch.testing.assert_close(found.double(), leaf.grad, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 12), min_size=1, max_size=60), st.integers(0, 2**31))
def test_summing_by_place_and_stepping_is_what_accumulate_rows_and_the_optimiser_do(rows: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    column, gradients = np.array(rows, dtype=np.int32), torch.randn(len(rows), 6, generator=generator)
    table = torch.randn(13, 6, generator=generator)
    optimizer, expected = RowwiseAdagrad(13, lr=0.3), table.clone()
    kept = column >= 0
    distinct, sums = accumulate_rows(torch.from_numpy(column[kept]), gradients[torch.from_numpy(kept)].contiguous())
    optimizer.step(expected, distinct, sums)
    scratch, squares = np.full(13, -1, dtype=np.int32), np.zeros(13, dtype=np.float32)

    occurrences = Occurrences.of(column, scratch)
    for part in occurrences.parts(3):
        update_rows(table.numpy(), squares, gradients.numpy(), occurrences, part, lr=0.3)

    assert (scratch == -1).all()
    order = np.argsort(occurrences.rows)
    np.testing.assert_allclose(sum_rows(gradients.numpy(), occurrences)[order], sums.numpy(), atol=1e-5)
    torch.testing.assert_close(table, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(squares, optimizer.state.numpy(), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 60), st.booleans())
def test_a_chunk_has_each_row_once_its_positives_among_them_and_only_known_answers_masked(
    seed: int, num_rows: int, masks: bool
) -> None:
    generator = np.random.default_rng(seed)
    known = generator.integers(0, 7, 80).astype(np.int32)
    relations = generator.integers(0, 3, 80).astype(np.int32)
    asked = generator.integers(0, num_rows, 80).astype(np.int32)
    answers = AnswerIndex.of(known, relations, asked)
    sampler = ChunkSampler(asked, num_rows, chunk_size=4, num_uniform=8, num_degree=5, logq=True)
    lengths = np.array([4, 4, 2], dtype=np.int32)
    edges = generator.integers(0, 80, (3, 4))

    drawn = sampler.draw(asked[edges], lengths, generator, queries=answers.queries[edges], known=answers if masks else None)

    triples = set(zip(known.tolist(), relations.tolist(), asked.tolist(), strict=True))
    for chunk in range(3):
        counted = drawn.rows[chunk][~np.isneginf(drawn.bias[chunk])]
        assert len(set(counted)) == len(counted), "a row counts twice"
        full = np.zeros((3, 4, drawn.rows.shape[1]), dtype=np.float32)
        drawn.mask(full, 0)
        for edge in range(lengths[chunk]):
            position = edges[chunk, edge]
            target = drawn.targets[chunk, edge]
            assert drawn.rows[chunk, target] == asked[position]
            assert np.isfinite(drawn.bias[chunk, target])
            for slot in np.flatnonzero(~np.isneginf(drawn.bias[chunk])):
                triple = (known[position], relations[position], drawn.rows[chunk, slot])
                expected = masks and slot != target and tuple(map(int, triple)) in triples
                assert np.isneginf(full[chunk, edge, slot]) == expected


@pytest.mark.parametrize("num_rows", [60, 400])  # a dense and a sparse correction
def test_the_correction_is_the_chance_of_being_a_candidate(num_rows: int) -> None:
    generator = np.random.default_rng(5)
    positives = (30 * generator.random(200) ** 2).astype(np.int32)
    sampler = ChunkSampler(positives, num_rows, chunk_size=5, num_uniform=9, num_degree=4, logq=True)
    counts = np.zeros(num_rows)
    num_draws = 4000
    for _ in range(num_draws):
        batch = generator.choice(positives, size=(1, 5))
        drawn = sampler.draw(batch, np.array([5], dtype=np.int32), generator)
        counts[drawn.rows[0][~np.isneginf(drawn.bias[0])]] += 1
    # One positive more than the others that a row of the chunk sees.
    chances = np.exp(sampler.log_inclusion(np.arange(num_rows, dtype=np.int32), 6))
    deviation = np.sqrt(chances * (1 - chances) / num_draws)
    assert (np.abs(counts / num_draws - chances) < 5 * deviation + 1e-3).all()
