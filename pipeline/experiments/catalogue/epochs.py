"""How often tables may see an example: one epoch, several, several from first rows, or until validation says stop."""

from __future__ import annotations

from typing import Any

from multifacet.pipeline.experiments.arm import TABLE_TRIALS, Arm
from multifacet.pipeline.experiments.catalogue.parts import FACETS, both_facets
from multifacet.pipeline.experiments.experiment import Comparison, Experiment, Settings

_SEVERAL = 5
_WORDS = "five"


def epochs(settings: Settings) -> Experiment:
    """Whether id tables overfit from their second epoch on, and what helps."""
    # One trial's rates suit one number of epochs and not another: each arm chooses among the same four.
    one: dict[str, Any] = {"max_epochs": 1, "keep": "last"}
    several: dict[str, Any] = {"max_epochs": _SEVERAL, "keep": "last"}
    again = several | {"reinit_tables": True}
    stopped: dict[str, Any] = {"max_epochs": _SEVERAL}

    def scratch(name: str, title: str, ranking: dict[str, Any]) -> Arm:
        return Arm(name=name, title=title, scratch=FACETS, ranking=ranking, trials=TABLE_TRIALS)

    def both(name: str, title: str, ranking: dict[str, Any]) -> Arm:
        return both_facets(settings, name=name, title=title, ranking=ranking, export=False)

    return Experiment(
        name="epochs",
        question="Do id tables overfit once they see an example again?",
        setting=f"Rankers trained for one epoch, for {_WORDS}, for {_WORDS} with the tables at their first rows again in each, "
        f"and for {_WORDS} at most with the weights of the best validation. But for the last, the weights are the last ones.",
        arms=(
            scratch("scratch1", "tables from scratch, one epoch", one),
            scratch("scratch5", f"tables from scratch, {_WORDS} epochs", several),
            scratch("scratch5.again", f"tables from scratch anew in each of {_WORDS} epochs", again),
            scratch("scratch.stopped", "tables from scratch, stopped early", stopped),
            both("both1", "contrastive and KGE, one epoch", one),
            both("both5", f"contrastive and KGE, {_WORDS} epochs", several),
            both("both5.again", f"contrastive and KGE, pretrained rows again in each of {_WORDS} epochs", again),
            both("both.stopped", "contrastive and KGE, stopped early", stopped),
        ),
        comparisons=(
            Comparison(
                arm="scratch1",
                baseline="scratch5",
                claim=f"from scratch, one epoch beats {_WORDS}",
                expectation="higher",
                by="us",
            ),
            Comparison(
                arm="both1", baseline="both5", claim=f"pretrained, one epoch beats {_WORDS}", expectation="higher", by="us"
            ),
            Comparison(
                arm="scratch5.again",
                baseline="scratch5",
                claim="starting tables from scratch anew in each epoch helps",
                expectation="higher",
                by="us",
            ),
            Comparison(
                arm="both5.again",
                baseline="both5",
                claim="starting from the pretrained rows in each epoch helps",
                expectation="higher",
                by="us",
            ),
            Comparison(
                arm="both.stopped",
                baseline="both5",
                claim="stopping early helps",
                expectation="higher",
                by="us",
            ),
            Comparison(
                arm="both.stopped",
                baseline="both1",
                claim="stopping early is no worse than one epoch",
                expectation="no difference",
                by="us",
            ),
        ),
    )
