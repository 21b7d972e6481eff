"""Whether what helps CTR hurts CVR, and which end of the model keeps one task from the other."""

from __future__ import annotations

from typing import Any

from multifacet.pipeline.experiments.arm import FROZEN_TRIALS, TABLE_TRIALS
from multifacet.pipeline.experiments.catalogue.parts import both_facets, without_tables
from multifacet.pipeline.experiments.experiment import Comparison, Experiment, Settings

#: Share of embeddings that training hides (`id_dropout`).
_HIDDEN = 0.3
_HEADS = {"shared_bottom": "one MLP for both tasks", "mmoe": "MMoE", "esmm": "ESMM"}


def tasks(settings: Settings) -> Experiment:
    """No tables and tables, by shared and by separate ends of the model."""
    arms = []
    for heads, title in _HEADS.items():
        ranking: dict[str, Any] = {} if heads == "shared_bottom" else {"heads": heads}
        arms += [
            without_tables(name=f"none_{heads}", title=f"no id tables, {title}", ranking=ranking),
            both_facets(
                settings, name=f"frozen_{heads}", title=f"frozen, {title}", ranking=ranking, trials=FROZEN_TRIALS, export=False
            ),
        ]
    arms += [
        both_facets(
            settings, name="fine_esmm", title="fine-tuned, ESMM", ranking={"heads": "esmm"}, trials=TABLE_TRIALS, export=False
        ),
        *(
            both_facets(
                settings,
                name=f"hidden_{heads}",
                title=f"frozen, {_HEADS[heads]}, {_HIDDEN:.0%} of embeddings hidden in training",
                ranking={"heads": heads, "id_dropout": _HIDDEN} if heads != "shared_bottom" else {"id_dropout": _HIDDEN},
                trials=FROZEN_TRIALS,
                export=False,
            )
            for heads in ("shared_bottom", "esmm")
        ),
        both_facets(
            settings,
            name="reinit_esmm",
            title="fine-tuned from the first rows in each epoch, ESMM",
            ranking={"heads": "esmm", "reinit_tables": True},
            trials=TABLE_TRIALS,
            export=False,
        ),
    ]
    return Experiment(
        name="tasks",
        question="Do tables that help CTR hurt CVR, and does a part of the model for each task help?",
        setting="Both facets, frozen unless the title says otherwise.",
        arms=tuple(arms),
        comparisons=(
            *(
                Comparison(
                    arm=f"frozen_{heads}",
                    baseline="none_shared_bottom",
                    claim=f"frozen tables help, by {title}",
                    expectation="higher",
                    by="us",
                )
                for heads, title in _HEADS.items()
            ),
            Comparison(
                arm="frozen_esmm",
                baseline="frozen_shared_bottom",
                claim="a tower for each task, learning from all exposures, is better",
                expectation="higher",
                by="us",
            ),
            Comparison(
                arm="frozen_esmm",
                baseline="none_esmm",
                claim="frozen tables help where both have towers",
                expectation="higher",
                by="us",
            ),
            Comparison(
                arm="hidden_esmm",
                baseline="frozen_esmm",
                claim="hiding embeddings in training helps",
                expectation="higher",
                by="us",
            ),
            Comparison(
                arm="hidden_esmm",
                baseline="none_shared_bottom",
                claim="tables that are frozen and hidden in training help both tasks",
                expectation="higher",
                by="us",
            ),
            Comparison(
                arm="reinit_esmm",
                baseline="frozen_esmm",
                claim="tables that learn anew in each epoch are as good as frozen ones",
                expectation="no difference",
                by="us",
            ),
        ),
    )
