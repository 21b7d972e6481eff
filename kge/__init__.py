"""Knowledge graph embedding: the pretrainer on the heterogeneous graph."""

from kge.config import KgeConfig, KgeValidation
from kge.evaluation import evaluate, evaluate_constrained, evaluate_sampled, known_pairs
from kge.full_config import FullSoftmaxConfig
from kge.models import ComplEx, DistMult, Model, RotatE, TransE, TransR, TransRA, build_model
from kge.predictor import LinkPredictor, Prediction
from kge.result import KgeResult
from kge.search import Search, Trial, default_space, search
from kge.sources import read_split, read_triples
from kge.training import split_view, train, train_triples
from kge.triples import EdgeList, TripleSet, TripleSplit

__all__ = [
    "ComplEx",
    "DistMult",
    "EdgeList",
    "FullSoftmaxConfig",
    "KgeConfig",
    "KgeResult",
    "KgeValidation",
    "LinkPredictor",
    "Model",
    "Prediction",
    "RotatE",
    "Search",
    "TransE",
    "TransR",
    "TransRA",
    "Trial",
    "TripleSet",
    "TripleSplit",
    "build_model",
    "default_space",
    "evaluate",
    "evaluate_constrained",
    "evaluate_sampled",
    "known_pairs",
    "read_split",
    "read_triples",
    "search",
    "split_view",
    "train",
    "train_triples",
]
