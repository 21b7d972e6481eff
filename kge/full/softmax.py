"""Softmax cross-entropy of queries over ALL entities, with every answer of a query at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Answers", "full_softmax_loss"]

# 16 MiB of float32 scores: a block goes from its product over the softmax to its two gradient products within the cache.
_BLOCK_ELEMENTS = 1 << 22
# In bfloat16 products are so fast that adding a block's gradient of all keys to the sum shows: fewer, larger blocks.
_BLOCK_ELEMENTS_HALF = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The right candidates of each query, all in one column.

    Attributes:
        queries: position of each answer's query, int64 [A], ascending.
        candidates: each answer's candidate, int64 [A]; no pair twice.
    """

    queries: Tensor
    candidates: Tensor

    @classmethod
    def from_csr(cls, indptr: NDArray[Any], indices: NDArray[Any], rows: NDArray[Any]) -> Answers:
        """Take the answers of some queries out of compressed sparse rows.

        Args:
            indptr: int [R + 1].
            indices: the answers of row r are `indices[indptr[r]:indptr[r + 1]]`.
            rows: each query's row, int [B].

        Returns:
            The answers of query b are those of row `rows[b]`.
        """
        begins = torch.from_numpy(indptr[rows])
        counts = torch.from_numpy(indptr[rows + 1]) - begins
        queries = torch.repeat_interleave(torch.arange(len(rows)), counts)
        firsts = counts.cumsum(0) - counts
        positions = torch.arange(len(queries)) + (begins - firsts)[queries]
        return cls(queries=queries, candidates=torch.from_numpy(indices)[positions].long())

    def __len__(self) -> int:
        return len(self.queries)


def full_softmax_loss(
    queries: Tensor,
    keys: Tensor,
    answers: Answers,
    *,
    bias: Tensor | None = None,
    query_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    answers_compete: bool = True,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Sum of the cross-entropies of all answers, over all candidates.

    With scores s = queries @ keys.T + bias, a query's loss is the sum over its answers y of

        -s[y] + log(sum of exp(s[j]) over all j)                      if answers compete ("1-vs-all"), or
        -s[y] + log(exp(s[y]) + sum of exp(s[j]) over j no answer)    if they don't, as filtered ranks see it

    Each query is scored once however many answers it has: the first form is the loss of "1-vs-all" training (Lacroix et
    al., ICML 2018), triple by triple, to rounding, at the price of the distinct queries. Its gradient in the scores is
    count * softmax - indicator; the two products that carry it to queries and keys are taken block by block while the
    scores are in the cache, and no more than a block of scores is ever held.

    Args:
        queries: float [B, D].
        keys: vectors of the candidates, float [N, D].
        answers: the right candidates of each query.
        bias: added to every query's score of a candidate, float [N].
        query_weights: weight of each query's sum, float [B], not differentiated; None for 1.
        label_smoothing: this share of each answer's target is spread evenly over all candidates.
        answers_compete: whether the answers of a query push each other down.
        product_dtype: what the three matrix products multiply and the scores are kept in; None for the queries' own type.
            With bfloat16, sums within a product are still float32, but a score keeps 8 bits.

    Returns:
        The sum of the losses in nats, a scalar; differentiable in `queries`, `keys` and `bias`. One answer's loss is
        capped at about 87 nats, where float32 probabilities end; its gradient is not.

    Raises:
        ValueError: if the shapes don't fit, or smoothing is asked for where answers don't compete.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries [B, D] and keys [N, D] need one width, got {queries.shape} and {keys.shape}")
    if label_smoothing and not answers_compete:
        raise ValueError("label_smoothing spreads targets over all candidates, answers included: it needs answers_compete=True")
    if bias is None:
        bias = queries.new_zeros(len(keys))
    if query_weights is None:
        query_weights = queries.new_ones(len(queries))
    loss: Tensor = _FullSoftmax.apply(  # type: ignore[no-untyped-call]
        queries, keys, bias, query_weights, answers, label_smoothing, answers_compete, product_dtype or queries.dtype
    )
    return loss


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        bias: Tensor,
        query_weights: Tensor,
        answers: Answers,
        label_smoothing: float,
        answers_compete: bool,
        product_dtype: torch.dtype,
    ) -> Tensor:
        with_bias = bool(ctx.needs_input_grad[2])
        num_queries, num_keys = len(queries), len(keys)
        is_narrow = product_dtype != queries.dtype
        query_gradient = torch.empty_like(queries)
        key_gradient = torch.zeros_like(keys)
        bias_gradient = torch.zeros_like(bias)
        counts = torch.bincount(answers.queries, minlength=num_queries)
        bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).tolist()
        loss = 0.0
        num_elements = _BLOCK_ELEMENTS_HALF if is_narrow else _BLOCK_ELEMENTS
        num_rows = max(1, min(num_queries, num_elements // max(1, num_keys)))
        scores_buffer = queries.new_empty(num_rows, num_keys, dtype=product_dtype)
        factor_keys, factor_bias = keys.to(product_dtype), bias.to(product_dtype)
        for begin in range(0, num_queries, num_rows):
            end = min(begin + num_rows, num_queries)
            block, block_weights = queries[begin:end], query_weights[begin:end]
            scores = torch.addmm(factor_bias, block.to(product_dtype), factor_keys.t(), out=scores_buffer[: end - begin])
            rows = answers.queries[bounds[begin] : bounds[end]] - begin
            columns = answers.candidates[bounds[begin] : bounds[end]]
            if answers_compete:
                losses, scale = _differentiate(scores, rows, columns, counts[begin:end], label_smoothing)
            else:
                losses, scale = _differentiate_apart(scores, rows, columns)
            loss += float(losses @ block_weights)
            # `scores` now holds each query's gradient but for one factor, which is cheaper to put on D than on N columns.
            factors = scale * block_weights
            scaled = (block * factors[:, None]).to(product_dtype)
            if is_narrow:
                query_gradient[begin:end] = scores @ factor_keys
                key_gradient += (scores.t() @ scaled).to(keys.dtype)  # adding across types is several times slower
            else:
                torch.mm(scores, keys, out=query_gradient[begin:end])
                key_gradient.addmm_(scores.t(), scaled)
            query_gradient[begin:end] *= factors[:, None]
            if with_bias:
                bias_gradient += scores.t() @ factors.to(product_dtype)
        if label_smoothing:
            # The evenly spread targets are the same for all queries: their products are of rank one.
            shares = label_smoothing * counts.to(queries.dtype) * query_weights
            mean_key, mean_bias = keys.mean(0), bias.mean()
            loss -= float(shares @ (queries @ mean_key + mean_bias))
            query_gradient -= shares[:, None] * mean_key
            key_gradient -= (shares @ queries) / num_keys
            bias_gradient -= shares.sum() / num_keys
        ctx.save_for_backward(query_gradient, key_gradient, bias_gradient)
        return queries.new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        # Of a sum it is 1, and a pass over the gradients of all keys is saved.
        scaled = ctx.saved_tensors if gradient == 1.0 else [saved * gradient for saved in ctx.saved_tensors]
        return *scaled, None, None, None, None, None


def _differentiate(
    scores: Tensor, rows: Tensor, columns: Tensor, counts: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Replace scores by softmax - (1 - smoothing) * indicator / count, in place.

    Returns:
        Each query's loss (without the mean score's part of smoothing) and the factor that its row still lacks, its count.
    """
    own = _widened(scores[rows, columns])
    torch.softmax(scores, dim=-1, out=scores)
    losses = -_widened(scores[rows, columns]).clamp(min=torch.finfo(scores.dtype).tiny).log()
    # The log-partition is own + loss, the same for all of a row's answers; smoothing leaves its coefficient at 1.
    if label_smoothing:
        losses += label_smoothing * own
    factors = counts.to(losses.dtype)
    targets = -((1.0 - label_smoothing) / factors)[rows]
    scores.index_put_((rows, columns), targets.to(scores.dtype), accumulate=True)
    return losses.new_zeros(len(scores)).index_add_(0, rows, losses), factors


def _differentiate_apart(scores: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Replace scores by the gradient of answers that don't compete, in place, but for one factor a row.

    In units of the row's whole partition, an answer has mass a and all non-answers together z. The answer's loss is
    log(a + z) - log(a), with the gradient p / (a + z) by a non-answer of mass p, and -z / (a + z) by itself.

    Returns:
        Each query's loss, and the factor that its row still lacks.
    """
    tiny = torch.finfo(scores.dtype).tiny
    torch.softmax(scores, dim=-1, out=scores)
    own = _widened(scores[rows, columns])
    scores[rows, columns] = 0.0
    others = scores.sum(-1, dtype=own.dtype)
    # Where another answer holds all but 1e-30 of the mass, the rest is below float32: its gradient is then zero, not inf.
    masses = (own + others[rows]).clamp(min=1e-30)
    losses = masses.log() - own.clamp(min=tiny).log()
    factors = losses.new_zeros(len(scores)).index_add_(0, rows, 1.0 / masses)
    scores[rows, columns] = (-(others[rows] / masses) / factors[rows]).to(scores.dtype)
    return losses.new_zeros(len(scores)).index_add_(0, rows, losses), factors


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
