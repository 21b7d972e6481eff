"""TorchRec CTR/CVR models whose tables start from snapshots."""

from multifacet.ranking.assembly import make_id_maps, make_model
from multifacet.ranking.config import Arm, RankingConfig, arm_config
from multifacet.ranking.evaluation.calibration import (
    CalibrationBucket,
    calibration_buckets,
    correct_for_sampling,
    expected_calibration_error,
)
from multifacet.ranking.evaluation.delong import DeLongTest, delong_covariance, delong_interval, delong_test
from multifacet.ranking.evaluation.intervals import bootstrap_roc_auc
from multifacet.ranking.evaluation.metrics import group_roc_auc, log_loss, normalized_entropy, pr_auc, roc_auc
from multifacet.ranking.evaluation.models import compare, evaluate
from multifacet.ranking.evaluation.segments import evaluate_segments, standard_segments
from multifacet.ranking.examples.examples import Examples
from multifacet.ranking.examples.exposures import build_examples
from multifacet.ranking.examples.features import FeatureConfig
from multifacet.ranking.examples.labelled import LabelledColumns, read_examples, read_times
from multifacet.ranking.examples.loader import Batch, ExampleLoader
from multifacet.ranking.examples.negatives import WEIGHTINGS, Weighting
from multifacet.ranking.examples.recent import IdLists, RecentPins, recent_pins
from multifacet.ranking.examples.shared import share_examples
from multifacet.ranking.export.export import ExportedModel, export_model, load_model, quantized_scores
from multifacet.ranking.export.own_model import write_model
from multifacet.ranking.export.renewal import TableRenewal, renew_model
from multifacet.ranking.initialize.coverage import InitReport, TableCoverage
from multifacet.ranking.initialize.initialize import init_tables
from multifacet.ranking.initialize.sources import TableSource
from multifacet.ranking.model.columns import Columns
from multifacet.ranking.model.layout import TableSpec
from multifacet.ranking.model.model import RankingModel
from multifacet.ranking.model.upper import UpperModel
from multifacet.ranking.training.training import RankingResult, train

__all__ = [
    "WEIGHTINGS",
    "Arm",
    "Batch",
    "CalibrationBucket",
    "Columns",
    "DeLongTest",
    "ExampleLoader",
    "Examples",
    "ExportedModel",
    "FeatureConfig",
    "IdLists",
    "InitReport",
    "LabelledColumns",
    "RankingConfig",
    "RankingModel",
    "RankingResult",
    "RecentPins",
    "TableCoverage",
    "TableRenewal",
    "TableSource",
    "TableSpec",
    "UpperModel",
    "Weighting",
    "arm_config",
    "bootstrap_roc_auc",
    "build_examples",
    "calibration_buckets",
    "compare",
    "correct_for_sampling",
    "delong_covariance",
    "delong_interval",
    "delong_test",
    "evaluate",
    "evaluate_segments",
    "expected_calibration_error",
    "export_model",
    "group_roc_auc",
    "init_tables",
    "load_model",
    "log_loss",
    "make_id_maps",
    "make_model",
    "normalized_entropy",
    "pr_auc",
    "quantized_scores",
    "read_examples",
    "read_times",
    "recent_pins",
    "renew_model",
    "roc_auc",
    "share_examples",
    "standard_segments",
    "train",
    "write_model",
]
