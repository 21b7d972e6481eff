"""The logQ correction on a world of known probabilities with very uneven popularity.

p(item | user) is popularity times affinity. In-batch negatives are drawn by popularity, so the uncorrected loss learns
the affinity alone (log p(item | user) - log p(item)): it can't tell a popular item from a rare one that the user likes
as much. The corrected loss learns log p(item | user).
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from contrastive import ContrastiveConfig
from contrastive.positives import Positives
from contrastive.towers import Tower
from contrastive.trainer import Trainer

NUM_USERS, NUM_ITEMS, NUM_GROUPS = 20, 240, 4


def world() -> tuple[Positives, NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    popularity = 1.0 / (1.0 + generator.permutation(NUM_ITEMS))
    item_group, user_group = np.arange(NUM_ITEMS) % NUM_GROUPS, np.arange(NUM_USERS) % NUM_GROUPS
    affinity = np.where(user_group[:, None] == item_group, 4.0, 1.0)
    probability = popularity * affinity
    probability /= probability.sum(1, keepdims=True)
    users, items = np.divmod(np.arange(NUM_USERS * NUM_ITEMS), NUM_ITEMS)
    positives = Positives.merge(
        users.astype(np.int32),
        items.astype(np.int32),
        probability.ravel(),
        np.zeros(len(users), dtype=np.int64),
        num_queries=NUM_USERS,
        num_items=NUM_ITEMS,
    )
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


SOURCES: dict[str, dict[str, object]] = {
    "in-batch": {},
    "in-batch and queue": {"queue_size": 64},
    "in-batch, uniform and degree": {"num_uniform": 24, "num_degree": 24},
}


@pytest.mark.parametrize("sources", SOURCES)
def test_the_corrected_loss_recovers_the_probabilities(sources: str) -> None:
    _, probability, _, _ = world()

    corrected = learned_scores(sources, logq=True)

    assert correlation(corrected, np.log(probability)) > 0.93


def test_the_uncorrected_loss_forgets_popularity() -> None:
    _, probability, popularity, _ = world()
    log_popularity = np.broadcast_to(np.log(popularity), probability.shape)

    uncorrected, corrected = (learned_scores("in-batch", logq=logq) for logq in (False, True))

    assert correlation(uncorrected, np.log(probability / popularity)) > 0.8
    assert correlation(uncorrected, log_popularity) < 0.4
    assert correlation(corrected, log_popularity) > 0.7
