"""Whether what helps CTR hurts CVR, and which end of the model keeps one task from the other."""

from __future__ import annotations

from typing import Any

from multifacet.pipeline.experiments.arm import FROZEN_TRIALS, TABLE_TRIALS, Arm
from multifacet.pipeline.experiments.catalogue.parts import both_facets, without_tables
from multifacet.pipeline.experiments.experiment import Comparison, Experiment, Settings

#: Share of embeddings that training hides (`id_dropout`).
_HIDDEN = 0.3


def tasks(settings: Settings) -> Experiment:
    """No tables and tables, by shared and by separate ends of the model."""
    arms = (
        without_tables(name="none", title="no id tables, one MLP for both tasks"),
        without_tables(name="none_esmm", title="no id tables, ESMM", ranking={"heads": "esmm"}),
        _frozen(settings, "frozen", "frozen, one MLP for both tasks"),
        _frozen(settings, "mmoe", "frozen, MMoE", heads="mmoe"),
        _frozen(settings, "esmm", "frozen, ESMM", heads="esmm"),
        _frozen(settings, "dense", "frozen, ESMM whose CVR reads no ids", heads="esmm_dense"),
        _frozen(settings, "hidden", f"frozen, ESMM, {_HIDDEN:.0%} of embeddings hidden", heads="esmm", id_dropout=_HIDDEN),
        _frozen(
            settings,
            "hidden_dense",
            f"frozen, ESMM whose CVR reads no ids, {_HIDDEN:.0%} of embeddings hidden",
            heads="esmm_dense",
            id_dropout=_HIDDEN,
        ),
        both_facets(
            settings,
            name="reinit",
            title="fine-tuned from the first rows in each epoch, ESMM",
            ranking={"heads": "esmm", "reinit_tables": True},
            trials=TABLE_TRIALS,
            export=False,
        ),
    )
    return Experiment(
        name="tasks",
        question="Do tables that help CTR hurt CVR, and does a part of the model for each task help?",
        setting="Both facets, frozen unless the title says otherwise.",
        arms=arms,
        comparisons=(
            _claim("frozen", "none", "frozen tables help"),
            _claim("esmm", "frozen", "a tower for each task, learning from all exposures, is better"),
            _claim("mmoe", "frozen", "experts that tasks mix are better"),
            _claim("esmm", "none_esmm", "frozen tables help where each task has a tower"),
            _claim("hidden", "esmm", "hiding embeddings in training helps"),
            _claim("dense", "esmm", "a CVR tower without ids is better"),
            _claim("dense", "none", "tables that CTR alone reads help"),
            _claim("hidden_dense", "none", "so do they with embeddings hidden in training"),
            _claim("reinit", "esmm", "tables that learn anew in each epoch beat frozen ones"),
        ),
    )


def _frozen(settings: Settings, name: str, title: str, **ranking: Any) -> Arm:
    return both_facets(settings, name=name, title=title, ranking=ranking, trials=FROZEN_TRIALS, export=False)


def _claim(arm: str, baseline: str, claim: str) -> Comparison:
    return Comparison(arm=arm, baseline=baseline, claim=claim, expectation="higher", by="us")
