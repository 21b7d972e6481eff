"""Metrics of parts of the examples: new and old users and pins, head and tail advertisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multifacet.inputs import expect_type, number
from multifacet.ranking.evaluation.models import evaluate
from multifacet.ranking.examples.examples import Examples

if TYPE_CHECKING:
    from numpy.typing import NDArray


def standard_segments(examples: Examples, training: Examples, *, head_share: float = 0.5) -> dict[str, NDArray[np.bool_]]:
    """Divide examples by what the training examples knew of them.

    Args:
        examples: The examples to divide.
        training: What the model was trained on.
        head_share: Head advertisers are the fewest that make up this share of the training examples.

    Returns:
        Name -> mask [n]: old_users and new_users (in the training examples or not), old_pins and new_pins,
        head_advertisers and tail_advertisers (examples without an advertiser are in neither).

    Raises:
        ValueError: If `head_share` is not between 0 and 1.
    """
    expect_type("examples", examples, Examples)
    expect_type("training", training, Examples)
    number(above=0, below=1)("head_share", head_share)
    segments: dict[str, NDArray[np.bool_]] = {}
    for feature in ("user", "pin"):
        known = _are_among(examples.ids(feature), training.ids(feature))
        segments |= {f"old_{feature}s": known, f"new_{feature}s": ~known}
    numbers, counts = np.unique(training.advertiser_id[_has_advertiser(training)], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    heads = training.words("advertiser", numbers[order][before < head_share * counts.sum()])
    head = _are_among(examples.ids("advertiser"), heads)
    segments["head_advertisers"] = head
    segments["tail_advertisers"] = ~head & _has_advertiser(examples)
    return segments


def _has_advertiser(examples: Examples) -> NDArray[np.bool_]:
    words = examples.vocabularies.get("advertiser")
    if words is None:
        return np.asarray(examples.advertiser_id >= 0)
    empty = pc.index(words, "").as_py()
    return np.asarray(examples.advertiser_id != empty)


def _are_among(ids: Any, others: Any) -> NDArray[np.bool_]:
    """Say of each id whether it is one of the others, int64 or strings."""
    return np.asarray(pc.is_in(pa.array(ids), value_set=pa.array(others)).to_numpy(zero_copy_only=False), dtype=np.bool_)


def evaluate_segments(
    scores: NDArray[np.float32], examples: Examples, segments: Mapping[str, NDArray[np.bool_]], **options: Any
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure scores in each segment, as `evaluate` does.

    Args:
        scores: Probabilities of (ctr, cvr), [n, 2].
        examples: The scored examples.
        segments: Name -> mask [n].
        **options: As for `evaluate`.

    Returns:
        Segment -> task -> metrics. A segment without both clicked and unclicked examples has no entry under "ctr": only
        num_examples and num_positives under "counts".

    Raises:
        ValueError: If a mask has another shape than the examples.
    """
    expect_type("scores", scores, np.ndarray)
    expect_type("examples", examples, Examples)
    expect_type("segments", segments, Mapping)
    if scores.shape != (len(examples), 2):
        raise ValueError(f"scores are {list(scores.shape)}; expected [{len(examples)}, 2], columns ctr and cvr")
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for name, mask in segments.items():
        expect_type(f"segment {name!r}", mask, np.ndarray)
        if mask.shape != (len(examples),) or mask.dtype != np.bool_:
            raise ValueError(f"segment {name!r} is {mask.dtype}{list(mask.shape)}; expected bool[{len(examples)}]")
        part = examples.take(mask)
        counts = {"num_examples": float(len(part)), "num_positives": float(part.ctr_label.sum())}
        measured[name] = {"counts": counts}
        if 0 < counts["num_positives"] < counts["num_examples"]:
            measured[name] |= evaluate(scores[mask], part, **options)
    return measured
