"""Contrastive pretraining of user and pin tables."""

from multifacet.contrastive.config import ComposedTower, ContrastiveConfig, ContrastiveValidation, PositiveWalks
from multifacet.contrastive.evaluation import evaluate
from multifacet.contrastive.pairs import Pairs, read_pairs
from multifacet.contrastive.positives import Positives
from multifacet.contrastive.predictor import ItemPredictor, Prediction
from multifacet.contrastive.result import ContrastiveResult
from multifacet.contrastive.training import train, train_pairs

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
