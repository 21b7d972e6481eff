"""Knowledge graph embedding: the pretrainer on the heterogeneous graph."""

from multifacet.kge.alignment import align, symmetry_of
from multifacet.kge.config import KgeConfig, KgeValidation, PlateauConfig
from multifacet.kge.evaluation.predictor import LinkPredictor, Prediction
from multifacet.kge.evaluation.protocols import evaluate, evaluate_constrained, evaluate_sampled, known_pairs
from multifacet.kge.full_config import FullSoftmaxConfig
from multifacet.kge.models.complex import ComplEx
from multifacet.kge.models.distmult import DistMult
from multifacet.kge.models.model import Model
from multifacet.kge.models.registry import build_model, model_names, register_model
from multifacet.kge.models.rotate import RotatE
from multifacet.kge.models.transe import TransE
from multifacet.kge.models.transr import TransR
from multifacet.kge.models.transra import TransRA
from multifacet.kge.result import KgeResult
from multifacet.kge.search import Search, default_space, search
from multifacet.kge.statistics import GraphStatistics
from multifacet.kge.training import split_view, train, train_triples
from multifacet.kge.triples.sources import read_split, read_triples
from multifacet.kge.triples.triples import EdgeList, TripleSet, TripleSplit

__all__ = [
    "ComplEx",
    "DistMult",
    "EdgeList",
    "FullSoftmaxConfig",
    "GraphStatistics",
    "KgeConfig",
    "KgeResult",
    "KgeValidation",
    "LinkPredictor",
    "Model",
    "PlateauConfig",
    "Prediction",
    "RotatE",
    "Search",
    "TransE",
    "TransR",
    "TransRA",
    "TripleSet",
    "TripleSplit",
    "align",
    "build_model",
    "default_space",
    "evaluate",
    "evaluate_constrained",
    "evaluate_sampled",
    "known_pairs",
    "model_names",
    "read_split",
    "read_triples",
    "register_model",
    "search",
    "split_view",
    "symmetry_of",
    "train",
    "train_triples",
]
