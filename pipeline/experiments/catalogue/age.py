"""How tables age, and what keeps them fresh."""

from __future__ import annotations

from multifacet.pipeline.experiments.arm import TABLE_TRIALS, Arm, Facet
from multifacet.pipeline.experiments.catalogue.parts import (
    FACETS,
    MONTH_PERIODS,
    both_facets,
    contrastive_facet,
    kge_facet,
    without_tables,
)
from multifacet.pipeline.experiments.experiment import Comparison, Experiment, Settings


def staleness(settings: Settings) -> Experiment:
    """Pretraining that ended months before fine-tuning, over windows of one length."""
    splits = settings.source.splits
    start, end = splits.pretraining[0], splits.training[0]
    months = [months for months in (0, 1, 3, 6, 12) if end - months * MONTH_PERIODS - start >= 2 * MONTH_PERIODS]
    length = end - max(months) * MONTH_PERIODS - start
    arms = [without_tables(), Arm(name="scratch", title="tables from scratch", scratch=FACETS, trials=TABLE_TRIALS)]
    for number in months:
        until = end - number * MONTH_PERIODS
        window = {"until_period": until, "since_period": until - length}
        facets = tuple(facet.model_copy(update=window) for facet in (contrastive_facet(settings), kge_facet(settings)))
        title = f"both, pretraining ended {number} months before" if number else "both, pretraining ended just before"
        arms.append(Arm(name=f"months{number}", title=title, facets=facets, trials=TABLE_TRIALS))
    oldest = months[-1]
    return Experiment(
        name="staleness",
        question="How fast does a pretrained table lose its worth?",
        setting=f"Both facets, fine-tuned, pretrained on windows of {length} periods that end some months (of four "
        "periods) before fine-tuning begins.",
        arms=tuple(arms),
        comparisons=(
            *(
                Comparison(
                    arm=f"months{number}",
                    baseline="months0",
                    claim=f"{number} months of staleness cost ROC-AUC",
                    expectation="lower",
                    by="paper" if number >= 3 else "us",
                    size=0.0005,
                )
                for number in months[1:]
            ),
            Comparison(arm="months0", baseline="scratch", claim="fresh tables help", expectation="higher"),
            Comparison(
                arm=f"months{oldest}",
                baseline="scratch",
                claim=f"after {oldest} months the gain is gone",
                expectation="no difference",
                by="paper" if oldest >= 6 else "us",
            ),
        ),
        axis="months between pretraining and fine-tuning",
        positions={f"months{number}": float(number) for number in months},
    )


def refresh(settings: Settings) -> Experiment:
    """Tables that are three months old: kept, trained anew, or trained on from where they stood."""
    splits = settings.source.splits
    end, age = splits.training[0], 3 * MONTH_PERIODS
    facets = (contrastive_facet(settings), kge_facet(settings))
    older = tuple(facet.model_copy(update={"until_period": end - age}) for facet in facets)

    def going_on(since_period: int | None) -> tuple[Facet, ...]:
        return tuple(
            facet.model_copy(
                update={
                    "starts_from": old,
                    "since_period": since_period,
                    "pretrainer": facet.pretrainer.model_copy(update={"epochs": max(1, facet.pretrainer.epochs // 3)}),
                }
            )
            for facet, old in zip(facets, older, strict=True)
        )

    return Experiment(
        name="refresh",
        question="How much of a full retraining's gain does a cheaper refresh keep?",
        setting="Both facets, fine-tuned. The old tables saw nothing of the last three months (of four periods). They are "
        "kept, or trained on for a third of the epochs, over the last three months or over all; or new ones are trained.",
        arms=(
            without_tables(),
            both_facets(settings, name="full", title="trained anew on all"),
            both_facets(settings, name="old", title="kept as they were three months ago", facets=older),
            both_facets(settings, name="onall", title="trained on, over all", facets=going_on(None)),
            both_facets(settings, name="onlast", title="trained on, over the last three months", facets=going_on(end - age)),
        ),
        comparisons=(
            Comparison(arm="full", baseline="old", claim="a refresh is worth having", expectation="higher"),
            Comparison(
                arm="onall",
                baseline="full",
                claim="going on over all is as good as training anew",
                expectation="no difference",
                by="us",
            ),
            Comparison(
                arm="onlast",
                baseline="full",
                claim="going on over the last months is as good as training anew",
                expectation="no difference",
                by="us",
            ),
            Comparison(
                arm="onlast",
                baseline="old",
                claim="going on over the last months beats old tables",
                expectation="higher",
                by="us",
            ),
        ),
        axis="CPU seconds of a refresh of both facets",
        positions={"old": 0.0, "onlast": None, "onall": None, "full": None},
    )
