"""The logQ correction on a world of known probabilities with very uneven popularity.

p(item | user) is popularity times affinity. A softmax against negatives drawn with chances q has its optimum at
log p(item | user) - log q(item), so without the correction it depends on the negatives which way the tables err:

    negatives       q             uncorrected optimum                        it prefers
    in-batch        popularity    log affinity                               what the user likes, however rare
    uniform         constant      log p = log affinity + log popularity      the popular

With the correction the optimum is log p(item | user), whatever the negatives are.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from multifacet.contrastive import ContrastiveConfig, Positives
from multifacet.contrastive.positives.merging import EdgeColumns
from multifacet.contrastive.trainer.towers import Tower
from multifacet.contrastive.trainer.trainer import Trainer

NUM_USERS, NUM_ITEMS, NUM_GROUPS = 20, 240, 4


def world() -> tuple[Positives, NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    popularity = 1.0 / (1.0 + generator.permutation(NUM_ITEMS))
    item_group, user_group = np.arange(NUM_ITEMS) % NUM_GROUPS, np.arange(NUM_USERS) % NUM_GROUPS
    affinity = np.where(user_group[:, None] == item_group, 4.0, 1.0)
    probability = popularity * affinity
    probability /= probability.sum(1, keepdims=True)
    users, items = np.divmod(np.arange(NUM_USERS * NUM_ITEMS), NUM_ITEMS)
    pairs = EdgeColumns(
        queries=users.astype(np.int32),
        items=items.astype(np.int32),
        weights=probability.ravel(),
        times=np.zeros(1, dtype=np.int64),
    )
    positives = Positives.merge([pairs], num_queries=NUM_USERS, num_items=NUM_ITEMS)
    return positives, probability, popularity, affinity.argmax(1)


@functools.cache
def learned_scores(sources: str, *, logq: bool) -> NDArray[np.float64]:
    positives, *_ = world()
    config = ContrastiveConfig.model_validate(
        {
            "dim": 8,
            "similarity": "dot",
            "temperature": 1.0,
            "batch_size": 64,
            "num_uniform": 0,
            "num_degree": 0,
            "mask_known": False,
            "logq": logq,
            "lr": 0.1,
        }
        | SOURCES[sources]
    )
    trainer = Trainer([Tower("pin", positives, config, share=1.0)], config, np.random.default_rng(config.seed))
    for _ in range(15):
        trainer.run_epoch()
    tables = trainer.state.tables
    return (tables["user"] @ tables["pin"].t()).double().numpy()


def correlation(scores: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Mean over users, each user's popular half of the items: the rare ones are hardly ever drawn."""
    popular = world()[2] > np.median(world()[2])
    return float(np.mean([np.corrcoef(row[popular], true[popular])[0, 1] for row, true in zip(scores, truth, strict=True)]))


def share_of_popular_first(scores: NDArray[np.float64]) -> float:
    """Share of pairs scored popular first: a is disliked, b liked 4 times as much, and a 12 to 40 times as popular.

    By probability a comes first in all of them, by affinity b.
    """
    _, _, popularity, _ = world()
    liked = np.arange(NUM_USERS)[:, None] % NUM_GROUPS == np.arange(NUM_ITEMS) % NUM_GROUPS
    ratio = popularity[:, None] / popularity[None]
    shares = []
    for row, likes in zip(scores, liked, strict=True):
        pairs = ~likes[:, None] & likes[None] & (ratio > 12) & (ratio < 40)
        shares.append((row[:, None] > row[None])[pairs].mean())
    return float(np.mean(shares))


SOURCES: dict[str, dict[str, object]] = {
    "in-batch": {},
    "uniform": {"batch_size": 32, "num_uniform": 200},
    "in-batch and queue": {"queue_size": 64},
    "in-batch, uniform and degree": {"num_uniform": 24, "num_degree": 24},
}


@pytest.mark.slow
@pytest.mark.parametrize("sources", SOURCES)
def test_the_corrected_loss_recovers_the_probabilities(sources: str) -> None:
    _, probability, _, _ = world()

    corrected = learned_scores(sources, logq=True)

    assert correlation(corrected, np.log(probability)) > 0.93
    assert share_of_popular_first(corrected) > 0.9


def test_the_uncorrected_loss_forgets_popularity() -> None:
    _, probability, popularity, _ = world()
    log_popularity = np.broadcast_to(np.log(popularity), probability.shape)

    uncorrected, corrected = (learned_scores("in-batch", logq=logq) for logq in (False, True))

    assert correlation(uncorrected, np.log(probability / popularity)) > 0.8
    assert correlation(uncorrected, log_popularity) < 0.4
    assert correlation(corrected, log_popularity) > 0.7
    assert share_of_popular_first(uncorrected) < 0.35


def test_the_uncorrected_loss_against_uniform_negatives_prefers_the_popular() -> None:
    _, probability, popularity, _ = world()

    uncorrected = learned_scores("uniform", logq=False)

    assert share_of_popular_first(uncorrected) > 0.9
    assert correlation(uncorrected, np.log(probability)) > correlation(uncorrected, np.log(probability / popularity))
