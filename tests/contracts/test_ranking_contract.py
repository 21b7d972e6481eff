from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import ranking
from multifacet.ranking import LabelledColumns, RankingConfig
from multifacet.tables import IdMap

from .contract import Case, missing_functions

LABELS, SCORES = np.array([0, 1, 0, 1.0]), np.array([0.1, 0.2, 0.3, 0.4])
USERS = np.array([1, 1, 2, 2])
NAN = np.array([0.1, np.nan, 0.3, 0.4])
COLUMNS = LabelledColumns(dense=("price",))
CONFIG = RankingConfig(features=("user", "pin"), facets=("own",), pretrained_facets=(), dim=4, max_epochs=1)


def table(**columns: Any) -> pa.Table:
    given = {"user_id": [1, 1, 2, 2], "pin_id": [7, 8, 7, 8], "clicked": [0, 1, 0, 1], "price": [0.5, 1.0, 2.0, 3.0]}
    return pa.table(given | columns)


ROWS = ranking.read_examples(table(), COLUMNS)
NONE = ROWS.take(np.zeros(0, np.int64))
PAIR = np.stack([SCORES, SCORES], 1).astype(np.float32)
MAPS = {"user": IdMap.exact([1, 2]), "pin": IdMap.exact([7, 8])}


def of_metric(name: str) -> list[Case]:
    """The cases of a metric of (labels, scores)."""
    metric = getattr(ranking, name)
    more = {"bootstrap_roc_auc": (USERS,), "group_roc_auc": (USERS,), "delong_test": (SCORES,)}.get(name, ())
    none = np.zeros(0)
    return [
        Case(
            name,
            "wrong type",
            lambda: metric(LABELS, np.array(["a", "b", "c", "d"]), *more),
            "scores are <U1; expected numbers",
        ),
        Case(name, "wrong type", lambda: metric("labels", SCORES, *more), "labels are <U6; expected numbers"),
        Case(name, "nan", lambda: metric(LABELS, NAN, *more), "1 of 4 scores are not finite"),
        Case(name, "nan", lambda: metric(NAN, SCORES, *more), "labels hold the values"),
        Case(name, "empty", lambda: metric(none, none, *(none for _ in more)), r"labels hold the values \[\]"),
        Case(name, "mismatched", lambda: metric(LABELS, SCORES[:3], *more), r"labels are \[4\] and scores \[3\]"),
        Case(name, "unknown", lambda: metric(LABELS + 1, SCORES, *more), "needs both 0 and 1 and nothing else"),
        Case(
            name,
            "duplicated",
            lambda: metric(LABELS, SCORES * 0, *more),
            gives=lambda area: bool(np.all(np.isfinite(_number(area)))),
        ),
    ]


def _number(found: Any) -> Any:
    return found.roc_auc if hasattr(found, "roc_auc") else found


CASES = [
    Case("pr_auc", "nan", lambda: ranking.pr_auc(np.array([0, 1]), np.array([0.5, np.nan])), "not finite"),
    Case("log_loss", "nan", lambda: ranking.log_loss(np.array([0, 1]), np.array([0.5, np.nan])), "not finite"),
    Case("normalized_entropy", "unknown", lambda: ranking.normalized_entropy(np.ones(2), np.ones(2)), "are all 1"),
    *(
        case
        for name in ("roc_auc", "group_roc_auc", "bootstrap_roc_auc", "delong_test", "delong_interval")
        for case in of_metric(name)
    ),
    Case("delong_covariance", "nan", lambda: ranking.delong_covariance(LABELS, [NAN]), "not finite"),
    Case("delong_covariance", "empty", lambda: ranking.delong_covariance(LABELS, []), "there are no models' scores"),
    Case("delong_covariance", "mismatched", lambda: ranking.delong_covariance(LABELS, [SCORES[:2]]), "expected one axis alike"),
    Case("bootstrap_roc_auc", "mismatched", lambda: ranking.bootstrap_roc_auc(LABELS, SCORES, USERS[:2]), "users are"),
    Case("group_roc_auc", "mismatched", lambda: ranking.group_roc_auc(LABELS, SCORES, USERS[:2]), "and groups"),
    Case("calibration_buckets", "wrong type", lambda: ranking.calibration_buckets(LABELS, ["a"] * 4), "expected numbers"),
    Case(
        "calibration_buckets", "nan", lambda: ranking.calibration_buckets(LABELS, NAN), r"not all within \[0, 1\], such as nan"
    ),
    Case(
        "calibration_buckets", "nan", lambda: ranking.calibration_buckets(LABELS, SCORES, weights=NAN), "weights must be finite"
    ),
    Case("calibration_buckets", "empty", lambda: ranking.calibration_buckets(LABELS[:0], SCORES[:0]), "not empty"),
    Case("calibration_buckets", "mismatched", lambda: ranking.calibration_buckets(LABELS, SCORES[:3]), "one axis alike"),
    Case("calibration_buckets", "unknown", lambda: ranking.calibration_buckets(LABELS * 2, SCORES), "expected 0 and 1 only"),
    Case(
        "calibration_buckets",
        "duplicated",
        lambda: ranking.calibration_buckets(LABELS, SCORES * 0),
        gives=lambda b: len(b) == 1,
    ),
    Case("expected_calibration_error", "empty", lambda: ranking.expected_calibration_error([]), "no buckets"),
    Case(
        "expected_calibration_error", "wrong type", lambda: ranking.expected_calibration_error(SCORES), "buckets is a ndarray"
    ),
    Case("correct_for_sampling", "wrong type", lambda: ranking.correct_for_sampling("half", 0.5), "expected numbers"),
    Case("correct_for_sampling", "nan", lambda: ranking.correct_for_sampling(NAN, 0.5), "such as nan"),
    Case("correct_for_sampling", "nan", lambda: ranking.correct_for_sampling(SCORES, np.nan), "not positive numbers"),
    Case(
        "correct_for_sampling",
        "unknown",
        lambda: ranking.correct_for_sampling(SCORES * 9, 0.5),
        "pass probabilities, not logits",
    ),
    Case("correct_for_sampling", "empty", lambda: ranking.correct_for_sampling(SCORES[:0], 0.5), gives=lambda p: len(p) == 0),
    Case(
        "correct_for_sampling",
        "mismatched",
        lambda: ranking.correct_for_sampling(SCORES, np.ones(3)),
        "one rate, or one for each",
    ),
    Case("read_examples", "wrong type", lambda: ranking.read_examples(7, COLUMNS), "labelled rows are a int"),
    Case(
        "read_examples",
        "wrong type",
        lambda: ranking.read_examples(table(), "price"),
        "columns is a str; expected LabelledColumns",
    ),
    Case("read_examples", "nan", lambda: ranking.read_examples(table(price=NAN), COLUMNS), "row 1: not a finite number"),
    Case("read_examples", "empty", lambda: ranking.read_examples(table()[:0], COLUMNS), "has 0 rows"),
    Case(
        "read_examples",
        "unknown",
        lambda: ranking.read_examples(table(), LabelledColumns(pin="p")),
        r"columns \['p'\] are missing",
    ),
    Case(
        "read_examples",
        "duplicated",
        lambda: ranking.read_examples(
            pa.table([[1]] * 4, names=["user_id", "pin_id", "clicked", "clicked"]), LabelledColumns()
        ),
        r"several columns named \['clicked'\]",
    ),
    Case(
        "read_examples",
        "mismatched",
        lambda: ranking.read_examples(table(clicked=[0, 1, 2, 0]), COLUMNS),
        "row 2: a label other",
    ),
    Case(
        "read_times",
        "wrong type",
        lambda: ranking.read_times(table(), LabelledColumns(time="price")),
        "expected timestamps or dates",
    ),
    Case("read_times", "unknown", lambda: ranking.read_times(table(), LabelledColumns(time="at")), "'at' is missing"),
    Case("train", "wrong type", lambda: ranking.train(table(), ROWS, CONFIG), "examples_train is a Table; expected Examples"),
    Case("train", "wrong type", lambda: ranking.train(ROWS, ROWS, "pretrained"), "config is a str; expected RankingConfig"),
    Case("train", "empty", lambda: ranking.train(NONE, ROWS, CONFIG), "no training examples"),
    Case("train", "unknown", lambda: ranking.train(ROWS, ROWS, RankingConfig(features=("user", "place"))), "features names"),
    Case(
        "train",
        "mismatched",
        lambda: ranking.train(ROWS, ranking.read_examples(table(), LabelledColumns()), CONFIG),
        "dense features differ",
    ),
    Case("evaluate", "wrong type", lambda: ranking.evaluate(SCORES.tolist(), ROWS), "scores is a list; expected ndarray"),
    Case("evaluate", "wrong type", lambda: ranking.evaluate(PAIR, table()), "examples is a Table; expected Examples"),
    Case("evaluate", "nan", lambda: ranking.evaluate(PAIR * np.float32(np.nan), ROWS), r"not all within \[0, 1\]"),
    Case("evaluate", "mismatched", lambda: ranking.evaluate(PAIR[:3], ROWS), r"expected \[4, 2\]"),
    Case("evaluate", "empty", lambda: ranking.evaluate(PAIR[:0], NONE), r"labels hold the values \[\]"),
    Case("compare", "wrong type", lambda: ranking.compare(PAIR, SCORES.tolist(), ROWS), "baseline is a list"),
    Case("compare", "mismatched", lambda: ranking.compare(PAIR, PAIR[:2], ROWS), r"baseline is \[2, 2\]; expected \[4, 2\]"),
    Case("compare", "nan", lambda: ranking.compare(PAIR * np.float32(np.nan), PAIR, ROWS), "not finite"),
    Case("compare", "empty", lambda: ranking.compare(PAIR[:0], PAIR[:0], NONE), gives=lambda found: found == {}),
    Case("standard_segments", "wrong type", lambda: ranking.standard_segments(table(), ROWS), "examples is a Table"),
    Case(
        "standard_segments",
        "nan",
        lambda: ranking.standard_segments(ROWS, ROWS, head_share=float("nan")),
        "expected between 0 and 1",
    ),
    Case("standard_segments", "empty", lambda: ranking.standard_segments(NONE, ROWS), gives=lambda s: not s["new_users"].any()),
    Case(
        "evaluate_segments",
        "mismatched",
        lambda: ranking.evaluate_segments(PAIR, ROWS, {"a": np.ones(3, bool)}),
        r"expected bool\[4\]",
    ),
    Case("evaluate_segments", "wrong type", lambda: ranking.evaluate_segments(PAIR, ROWS, {"a": "all"}), "segment 'a' is"),
    Case("init_tables", "wrong type", lambda: ranking.init_tables("model", {}), "model is a str; expected Module"),
    Case(
        "init_tables", "wrong type", lambda: ranking.init_tables(torch.nn.Linear(1, 1), {"t": 7}), "sources\\['t'\\] is a int"
    ),
    Case("init_tables", "empty", lambda: ranking.init_tables(torch.nn.Linear(1, 1), {}), gives=lambda report: len(report) == 0),
    Case("make_id_maps", "wrong type", lambda: ranking.make_id_maps((), table(), CONFIG), "examples is a Table"),
    Case("make_id_maps", "empty", lambda: ranking.make_id_maps((), NONE, CONFIG), gives=lambda maps: maps["pin"].num_rows == 1),
    Case(
        "make_id_maps",
        "unknown",
        lambda: ranking.make_id_maps((), ROWS, RankingConfig(features=("place",))),
        "no id feature 'place'",
    ),
    Case("make_model", "wrong type", lambda: ranking.make_model("dlrm", MAPS, num_dense=1), "config is a str"),
    Case(
        "make_model",
        "unknown",
        lambda: ranking.make_model(CONFIG, {"pin": MAPS["pin"]}, num_dense=1),
        r"no id maps of \['user'\]",
    ),
    Case("arm_config", "unknown", lambda: ranking.arm_config("best"), "arm is 'best'; expected one of"),
    Case(
        "arm_config", "wrong type", lambda: ranking.arm_config("scratch", dim="wide"), "dim is 'wide': expected a whole number"
    ),
    Case("export_model", "wrong type", lambda: ranking.export_model("x", "model"), "result is a str; expected RankingResult"),
    Case("load_model", "unknown", lambda: ranking.load_model("nowhere"), "nowhere"),
    Case("load_model", "wrong type", lambda: ranking.load_model(7), "path is a int; expected"),
    Case("quantized_scores", "unknown", lambda: ranking.quantized_scores("nowhere", "int4", ROWS), "nowhere"),
    Case("quantized_scores", "wrong type", lambda: ranking.quantized_scores(7, "int4", ROWS), "path is a int"),
    Case("write_model", "wrong type", lambda: ranking.write_model("x", "upper", {}, {}), "upper is a str; expected Module"),
    Case("write_model", "empty", lambda: ranking.write_model("x", torch.nn.Linear(1, 1), {}, {}), "there are tables of"),
    Case("build_examples", "wrong type", lambda: ranking.build_examples("store", [1]), "store is a str; expected"),
    Case("build_examples", "unknown", lambda: ranking.build_examples(_Store(), [1], weighting="some"), "weighting is 'some'"),
    Case("recent_pins", "unknown", lambda: _recent([9]), "periods"),
    Case("recent_pins", "mismatched", lambda: _recent([1, 1]), "as many"),
]


class _Store:
    def sql(self, query: str, params: Any = None) -> pa.Table:
        raise NotImplementedError


def _recent(exposed_in: list[int]) -> Any:
    events = pa.table({"user_id": [1], "pin_id": [2], "time": pa.array([0], pa.timestamp("us"))})
    periods = pa.table({"period": [1], "start_time": pa.array([0], pa.timestamp("us"))})
    return ranking.recent_pins(events, periods, np.array([1]), np.array(exposed_in, np.int32), length=2)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_bad_input_gets_our_own_words(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case.run()


def test_every_public_function_is_asked() -> None:
    left_out = {
        "share_examples": "of a process group, in tests/ranking/training/test_sharded.py",
        "renew_model": "refusals in tests/ranking/export/test_renewal.py",
    }
    assert missing_functions(ranking, CASES, left_out) == set()
