"""Losses and similarities in place against autograd in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from multifacet.kernels.losses import RowLoss, differentiate_rows
from multifacet.kernels.similarity import Similarity, differentiate, score
from multifacet.kge.batches.answers import AnswerIndex
from multifacet.kge.batches.chunks import ChunkCandidates, ChunkSampler
from multifacet.kge.batches.frequencies import count_positives
from multifacet.tables.optim import Occurrences, RowwiseAdagrad, accumulate_rows, sum_rows, update_rows


def reference(loss: RowLoss, logits: Tensor, targets: Tensor) -> Tensor:
    """Each query's loss, margin 0.7 and temperature 0.5; candidates of -inf are left out."""
    positive = logits.gather(1, targets[:, None])[:, 0]
    kept = torch.isfinite(logits).scatter(1, targets[:, None], False)
    finite = logits.masked_fill(~kept, 0.0)
    if loss == RowLoss.SOFTMAX:
        return logits.logsumexp(1) - positive
    if loss == RowLoss.MARGIN:
        return ((0.7 - positive[:, None] + finite).clamp(min=0) * kept).sum(1) / kept.sum(1)
    temperature = 0.5 if loss == RowLoss.SELF_ADVERSARIAL else 0.0
    shares = (finite.detach() * temperature).masked_fill(~kept, -torch.inf).softmax(1)
    return softplus(-positive - 0.7) + (shares * softplus(finite + 0.7)).sum(1)


@pytest.mark.parametrize("loss", RowLoss)
@pytest.mark.parametrize("scale", [0.1, 5.0, 200.0])
def test_derivatives_are_those_of_autograd(loss: RowLoss, scale: float) -> None:
    generator = np.random.default_rng(3)
    scores = (generator.normal(size=(10, 37)) * scale).astype(np.float32)
    bias = generator.normal(size=37).astype(np.float32)
    bias[[4, 36]] = -np.inf
    targets = generator.choice([0, 7, 35], size=10).astype(np.int32)
    weights = generator.random(10).astype(np.float32)
    weights[9] = 0.0
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    losses = reference(loss, leaf + torch.tensor(bias, dtype=torch.float64), torch.tensor(targets).long())
    (losses * torch.tensor(weights)).sum().backward()
    assert leaf.grad is not None

    total = differentiate_rows(int(loss), np.float32(0.7), np.float32(0.5), scores, bias, targets, weights)

    assert total == pytest.approx(losses[torch.tensor(weights) > 0].sum().item(), rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(scores, leaf.grad.numpy(), atol=2e-6 * max(1.0, scale), rtol=1e-5)
    assert not scores[:, [4, 36]].any(), "a candidate that is left out has a gradient"
    assert not scores[9].any(), "padding has a gradient"


def direct(similarity: Similarity, queries: Tensor, keys: Tensor) -> Tensor:
    difference = queries[:, None] - keys
    if similarity == Similarity.MANHATTAN:
        return -difference.abs().sum(-1)
    if similarity == Similarity.MODULI:
        real, imaginary = difference.chunk(2, dim=-1)
        return -(real.square() + imaginary.square()).sqrt().sum(-1)
    if similarity == Similarity.EUCLIDEAN:
        return -difference.square().sum(-1).sqrt()
    if similarity == Similarity.SQUARED_EUCLIDEAN:
        return -difference.square().sum(-1)
    return queries @ keys.mT


@pytest.mark.slow
@pytest.mark.parametrize("similarity", Similarity)
def test_similarities_and_their_gradients_are_those_of_autograd(similarity: Similarity) -> None:
    generator = torch.Generator().manual_seed(4)
    queries, keys = torch.randn(15, 12, generator=generator), torch.randn(27, 12, generator=generator)
    gradients = torch.randn(15, 27, generator=generator)
    exact = queries.double().requires_grad_(), keys.double().requires_grad_()
    expected = direct(similarity, *exact)
    expected.backward(gradients.double())
    scores, queries_gradient, keys_gradient = torch.empty(15, 27), torch.empty_like(queries), torch.empty_like(keys)

    score(int(similarity), queries.numpy(), keys.numpy(), scores.numpy())
    torch.testing.assert_close(scores.double(), expected.detach(), atol=1e-5, rtol=1e-5)
    arrays = gradients, queries, keys, scores, queries_gradient, keys_gradient
    differentiate(int(similarity), *(array.numpy() for array in arrays))

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

    occurrences, turns = Occurrences.of(column, scratch), np.zeros(1, dtype=np.int64)
    for _ in range(2):  # whoever comes second finds nothing left to do
        update_rows(table.numpy(), squares, gradients.numpy(), occurrences, turns, lr=0.3)

    assert (scratch == -1).all()
    order = np.argsort(occurrences.rows)
    np.testing.assert_allclose(sum_rows(gradients.numpy(), occurrences)[order], sums.numpy(), atol=1e-5)
    torch.testing.assert_close(table, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(squares, optimizer.state.numpy(), rtol=1e-5)


def masked(drawn: ChunkCandidates, *, size: int) -> NDArray[np.float32]:
    """Which candidates of which edge are left out, -inf in [C, B, N]."""
    full = np.zeros((len(drawn.rows), size, drawn.rows.shape[1]), dtype=np.float32)
    if drawn.hits is not None and drawn.hits_indptr is not None:
        queries = np.repeat(np.arange(len(drawn.rows) * size), np.diff(drawn.hits_indptr))
        full.reshape(-1, full.shape[2])[queries, drawn.hits] = -np.inf
    return full


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
    sampler = ChunkSampler(count_positives(asked), num_rows, chunk_size=4, num_uniform=8, num_degree=5, logq=True)
    lengths = np.array([4, 4, 2], dtype=np.int32)
    edges = generator.integers(0, 80, (3, 4))

    drawn = sampler.draw(asked[edges], lengths, generator, queries=answers.queries[edges], known=answers if masks else None)

    triples = set(zip(known.tolist(), relations.tolist(), asked.tolist(), strict=True))
    for chunk in range(3):
        counted = drawn.rows[chunk][~np.isneginf(drawn.bias[chunk])]
        assert len(set(counted)) == len(counted), "a row counts twice"
        full = masked(drawn, size=4)
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
@pytest.mark.parametrize("group", [None, 0, 1])
def test_the_correction_is_the_chance_of_being_a_candidate(num_rows: int, group: int | None) -> None:
    generator = np.random.default_rng(5)
    positives = np.concatenate([30 * generator.random(200) ** 2, 20 + 25 * generator.random(100) ** 3]).astype(np.int32)
    bounds = None if group is None else np.array([0, 200, 300])
    own = positives if group is None else positives[bounds[group] : bounds[group + 1]]
    counted = count_positives(positives, bounds=bounds)
    sampler = ChunkSampler(counted, num_rows, chunk_size=5, num_uniform=9, num_degree=4, logq=True)
    counts = np.zeros(num_rows)
    num_draws = 4000
    # Chunks of the two groups alternate: none may draw from the other's.
    groups = None if group is None else np.array([group, 1 - group], dtype=np.int32)
    for _ in range(num_draws):
        batch = generator.choice(own, size=(1 if group is None else 2, 5))
        drawn = sampler.draw(batch, np.full(len(batch), 5, dtype=np.int32), generator, groups=groups)
        counts[drawn.rows[0][~np.isneginf(drawn.bias[0])]] += 1
    # One positive more than the others that a row of the chunk sees.
    chances = np.exp(sampler.log_inclusion(np.arange(num_rows, dtype=np.int32), 6, group or 0))
    deviation = np.sqrt(chances * (1 - chances) / num_draws)
    assert (np.abs(counts / num_draws - chances) < 5 * deviation + 1e-3).all()
    np.testing.assert_allclose(
        drawn.bias[0][np.isfinite(drawn.bias[0])],
        -sampler.log_inclusion(drawn.rows[0], 5, group or 0)[np.isfinite(drawn.bias[0])],
        rtol=1e-6,
    )
