"""TorchRec CTR/CVR models whose tables start from snapshots."""

from ranking.config import Arm, RankingConfig, arm_config
from ranking.coverage import InitReport, TableCoverage
from ranking.evaluation import bootstrap_roc_auc, compare, evaluate, roc_auc
from ranking.examples import Examples
from ranking.export import ExportedModel, export_model, load_model, quantized_scores
from ranking.exposures import build_examples
from ranking.features import FeatureConfig
from ranking.initialise import init_tables
from ranking.model import RankingModel, TableSpec, UpperModel
from ranking.negatives import WEIGHTINGS, Weighting
from ranking.sources import TableSource
from ranking.training import RankingResult, train

__all__ = [
    "WEIGHTINGS",
    "Arm",
    "Examples",
    "ExportedModel",
    "FeatureConfig",
    "InitReport",
    "RankingConfig",
    "RankingModel",
    "RankingResult",
    "TableCoverage",
    "TableSource",
    "TableSpec",
    "UpperModel",
    "Weighting",
    "arm_config",
    "bootstrap_roc_auc",
    "build_examples",
    "compare",
    "evaluate",
    "export_model",
    "init_tables",
    "load_model",
    "quantized_scores",
    "roc_auc",
    "train",
]
