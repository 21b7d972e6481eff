"""Arms against arms on the test split: by task, by slice, over seeds and users."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multifacet import ranking
from multifacet.pipeline.experiments.fitting import load_examples
from multifacet.pipeline.experiments.statistics import paired_effect
from multifacet.pipeline.runs.workspace import Say

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.ranking import Examples

Mask = Callable[["Examples"], "NDArray[np.bool_]"]


def _dense(examples: Examples, name: str) -> NDArray[np.float32]:
    return examples.dense[:, examples.dense_names.index(name)]


#: Slice -> which exposures it holds. Slices other than `all` are secondary.
SLICES: dict[str, Mask] = {
    "all": lambda examples: np.ones(len(examples), dtype=np.bool_),
    "repeat pairs": lambda examples: _dense(examples, "log_user_pin_total") > 0,
    "new pairs": lambda examples: _dense(examples, "log_user_pin_total") == 0,
    # At most three purchases by anyone before.
    "cold pins": lambda examples: _dense(examples, "log_pin_total") < np.log1p(3.5),
    "hot pins": lambda examples: _dense(examples, "log_pin_total") >= np.quantile(_dense(examples, "log_pin_total"), 0.75),
}
TASKS = ("ctr", "cvr")


def compare(
    directory: Path,
    say: Say,
    *,
    examples_paths: Sequence[Path],
    scores: Mapping[str, Sequence[Path]],
    pairs: Sequence[tuple[str, str]],
    num_resamples: int,
    slices: Sequence[str] = tuple(SLICES),
) -> dict[str, Any]:
    """Measures arms, and the differences of pairs of arms, on every seed's test split.

    Args:
        directory: Not written to; the result is all.
        say: Told of the progress.
        examples_paths: Folder of each seed's examples, [S].
        scores: Arm -> file of test scores of each seed, [S].
        pairs: (arm, baseline) to compare.
        num_resamples: Bootstrap resamples of users.
        slices: Names of `SLICES`.

    Returns:
        `arms`: arm -> task -> slice -> mean and standard deviation of ROC-AUC over seeds, exposures and positives of the first
        seed. `effects`: task -> slice -> one effect a pair, p-values not yet adjusted.
    """
    del directory
    tests = [load_examples(path, "test") for path in examples_paths]
    population = np.unique(np.concatenate([test.user_id for test in tests]))
    arms: dict[str, dict[str, dict[str, Any]]] = {arm: {task: {} for task in TASKS} for arm in scores}
    effects: dict[str, dict[str, list[dict[str, Any]]]] = {task: {} for task in TASKS}
    for task, column in (("ctr", 0), ("cvr", 1)):
        for name in slices:
            parts = [_part(test, task, SLICES[name]) for test in tests]
            if not all(_has_both(test, task, rows) for test, rows in zip(tests, parts, strict=True)):
                continue
            say(f"{task.upper()}, {name}")
            areas: dict[str, list[float]] = {}
            resampled: dict[str, NDArray[np.float64]] = {}
            for arm, files in scores.items():
                values = [
                    _areas(test, task, rows, np.load(file)[:, column], population, num_resamples)
                    for test, rows, file in zip(tests, parts, files, strict=True)
                ]
                areas[arm] = [area for area, _ in values]
                resampled[arm] = np.stack([resamples for _, resamples in values])
                arms[arm][task][name] = {
                    "roc_auc": float(np.mean(areas[arm])),
                    "roc_auc_by_seed": areas[arm],
                    "seed_deviation": float(np.std(areas[arm], ddof=1)) if len(areas[arm]) > 1 else None,
                    "num_examples": len(parts[0]),
                    "num_positives": int(_labels(tests[0], task)[parts[0]].sum()),
                }
            effects[task][name] = [
                {
                    "arm": arm,
                    "baseline": baseline,
                    **paired_effect(
                        np.subtract(areas[arm], areas[baseline]).tolist(), resampled[arm] - resampled[baseline]
                    ).model_dump(),
                }
                for arm, baseline in pairs
            ]
    return {"arms": arms, "effects": effects}


def _labels(examples: Examples, task: str) -> NDArray[np.float32]:
    return examples.ctr_label if task == "ctr" else examples.cvr_label


def _part(examples: Examples, task: str, mask: Mask) -> NDArray[np.int64]:
    return np.flatnonzero(np.isfinite(_labels(examples, task)) & mask(examples))


def _has_both(examples: Examples, task: str, rows: NDArray[np.int64]) -> bool:
    return len(np.unique(_labels(examples, task)[rows])) == 2


def _areas(
    examples: Examples,
    task: str,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    population: NDArray[np.int64],
    num_resamples: int,
) -> tuple[float, NDArray[np.float64]]:
    labels, users = _labels(examples, task)[rows], examples.user_id[rows]
    resampled = ranking.bootstrap_roc_auc(
        labels, scores[rows], users, num_resamples=num_resamples, seed=0, population=population
    )
    return ranking.roc_auc(labels, scores[rows]), resampled
