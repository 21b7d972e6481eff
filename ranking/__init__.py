"""TorchRec CTR/CVR models whose tables start from snapshots."""

from ranking.assembly import make_id_maps, make_model
from ranking.calibration import CalibrationBucket, calibration_buckets, correct_for_sampling, expected_calibration_error
from ranking.columns import Columns
from ranking.config import Arm, RankingConfig, arm_config
from ranking.coverage import InitReport, TableCoverage
from ranking.delong import DeLongTest, delong_covariance, delong_interval, delong_test
from ranking.evaluation import (
    bootstrap_roc_auc,
    compare,
    evaluate,
    group_roc_auc,
    log_loss,
    normalized_entropy,
    pr_auc,
    roc_auc,
)
from ranking.examples import Examples
from ranking.export import ExportedModel, export_model, load_model, quantized_scores
from ranking.exposures import build_examples
from ranking.features import FeatureConfig
from ranking.initialise import init_tables
from ranking.labelled import LabelledColumns, read_examples, read_times
from ranking.layout import TableSpec
from ranking.loader import Batch, ExampleLoader
from ranking.model import RankingModel
from ranking.negatives import WEIGHTINGS, Weighting
from ranking.own_model import write_model
from ranking.recent import IdLists, RecentPins, recent_pins
from ranking.segments import evaluate_segments, standard_segments
from ranking.shared_examples import share_examples
from ranking.sources import TableSource
from ranking.training import RankingResult, train
from ranking.upper import UpperModel

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
    "roc_auc",
    "share_examples",
    "standard_segments",
    "train",
    "write_model",
]
