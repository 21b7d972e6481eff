"""Contrastive pretraining of user and pin tables."""

from contrastive.config import ComposedTower, ContrastiveConfig, ContrastiveValidation
from contrastive.evaluation import evaluate
from contrastive.result import ContrastiveResult
from contrastive.trainer import train

__all__ = [
    "ComposedTower",
    "ContrastiveConfig",
    "ContrastiveResult",
    "ContrastiveValidation",
    "evaluate",
    "train",
]
