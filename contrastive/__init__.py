"""Contrastive pretraining of user and pin tables."""

from contrastive.config import ComposedTower, ContrastiveConfig, ContrastiveValidation, PositiveWalks
from contrastive.evaluation import evaluate
from contrastive.pairs import Pairs, read_pairs
from contrastive.positives import Positives
from contrastive.predictor import ItemPredictor, Prediction
from contrastive.result import ContrastiveResult
from contrastive.training import train, train_pairs

__all__ = [
    "ComposedTower",
    "ContrastiveConfig",
    "ContrastiveResult",
    "ContrastiveValidation",
    "ItemPredictor",
    "Pairs",
    "PositiveWalks",
    "Positives",
    "Prediction",
    "evaluate",
    "read_pairs",
    "train",
    "train_pairs",
]
