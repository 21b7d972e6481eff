"""Contrastive pretraining of user and pin tables."""

from contrastive.config import ComposedTower, ContrastiveConfig, ContrastiveValidation, PositiveWalks
from contrastive.evaluation import evaluate
from contrastive.positives import Positives
from contrastive.result import ContrastiveResult
from contrastive.training import train, train_pairs

__all__ = [
    "ComposedTower",
    "ContrastiveConfig",
    "ContrastiveResult",
    "ContrastiveValidation",
    "PositiveWalks",
    "Positives",
    "evaluate",
    "train",
    "train_pairs",
]
