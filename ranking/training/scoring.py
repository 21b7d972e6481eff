"""Scores of looked-up examples, and the metrics of a validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from multifacet.ranking.evaluation.metrics import log_loss, roc_auc
from multifacet.ranking.model.heads import TASKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.ranking.model.columns import Columns
    from multifacet.ranking.model.model import RankingModel

SCORING_BATCH: Final = 8192


def score_columns(model: RankingModel, columns: Columns) -> NDArray[np.float32]:
    """Score examples; the model is left in evaluation mode.

    Args:
        model: The model.
        columns: Examples, looked up for it.

    Returns:
        Probabilities of (ctr, cvr), float32 [n, 2].
    """
    model.eval()
    scores: list[Any] = []
    with torch.inference_mode():
        for start in range(0, len(columns), SCORING_BATCH):
            batch = columns.take(slice(start, start + SCORING_BATCH))
            scores.append(torch.sigmoid(model.score(batch.dense, model.gather(batch.rows), batch.num_recent)).numpy())
    return np.concatenate(scores) if scores else np.zeros((0, len(TASKS)), dtype=np.float32)


def validate(scores: NDArray[np.float32], columns: Columns) -> dict[str, float]:
    """Compare scores with labels.

    Args:
        scores: Probabilities of (ctr, cvr), [n, 2].
        columns: The examples that were scored.

    Returns:
        valid_ctr_log_loss and valid_ctr_roc_auc, weighted like the examples; the same of cvr where there are known labels of
        both kinds.
    """
    labels = columns.ctr.numpy()
    weight = None if columns.weight is None else columns.weight.numpy()
    metrics = {
        "valid_ctr_log_loss": log_loss(labels, scores[:, 0], weight),
        "valid_ctr_roc_auc": roc_auc(labels, scores[:, 0], weight),
    }
    known = columns.cvr_known.numpy() > 0
    if known.any():
        cvr = columns.cvr.numpy()[known]
        known_weight = None if weight is None else weight[known]
        metrics["valid_cvr_log_loss"] = log_loss(cvr, scores[known, 1], known_weight)
        if 0 < cvr.mean() < 1:
            metrics["valid_cvr_roc_auc"] = roc_auc(cvr, scores[known, 1], known_weight)
    return metrics
