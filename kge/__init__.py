"""Knowledge graph embedding: the pretrainer on the heterogeneous graph."""

from multifacet.kge.alignment import align, symmetry_of
from multifacet.kge.config import KgeConfig, KgeValidation
from multifacet.kge.evaluation.predictor import LinkPredictor, Prediction
from multifacet.kge.evaluation.protocols import evaluate, evaluate_constrained, evaluate_sampled, known_pairs
from multifacet.kge.full_config import FullSoftmaxConfig
from multifacet.kge.models.scoring import ComplEx, DistMult, Model, RotatE, TransE, TransR, TransRA, build_model
from multifacet.kge.result import KgeResult
from multifacet.kge.search import default_space, search
from multifacet.kge.training import split_view, train, train_triples
from multifacet.kge.trials import Search, Trial
from multifacet.kge.triples.sources import read_split, read_triples
from multifacet.kge.triples.triples import EdgeList, TripleSet, TripleSplit

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
    "align",
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
    "symmetry_of",
    "train",
    "train_triples",
]
